"""The catalogue: what is in it is found, what is wrong with it is named."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from shared import catalog, reload
from shared.catalog import CatalogError
from shared.errors import ContextLengthExceeded, InvalidRequest, ModelNotFound
from shared.settings import PACKAGED_CATALOG

UPSTREAM = '[upstreams.u]\ndialect = "openai"\nbase_url = "http://localhost/v1"\n'
LIMITS = 'upstream = "u"\ncontext_window = 10\nmax_output_tokens = 5\n'
FREE = LIMITS + "free = true\n"
LOST = FREE.replace('"u"', '"v"')
WIDE = FREE.replace("10", "100")
TINY = FREE.replace("10", "0")


def load(directory: Path, text: str, **environment: str) -> catalog.Catalog:
    """The catalogue with this text."""
    path = directory / "models.toml"
    path.write_text(text, encoding="utf-8")
    return catalog.load(path, environment)


def test_a_model_is_found_by_its_name_and_by_its_alias(tmp_path: Path) -> None:
    """Names may hold dots and slashes; the upstream's own name is the same unless set."""
    models = f'[models."a/b.1"]\n{FREE}aliases = ["b"]\n[models.c]\n{FREE}upstream_model = "d"\n'

    found = load(tmp_path, UPSTREAM + models)

    assert found.find("a/b.1") is found.find("b")
    assert found.find("b").upstream_model == "a/b.1"
    assert found.find("c").upstream_model == "d"


def test_an_unknown_model_is_told_what_there_is(tmp_path: Path) -> None:
    """The message names the others, and repeats only the start of a long name."""
    found = load(tmp_path, f"{UPSTREAM}[models.a]\n{FREE}")

    with pytest.raises(ModelNotFound, match=r"Available: a\.") as refused:
        found.find("x" * 1_000)

    assert refused.value.param == "model"
    assert len(refused.value.message) < 200


def test_addresses_may_come_from_the_environment(tmp_path: Path) -> None:
    """`${NAME:-default}`: the variable when it is set and not empty."""
    text = UPSTREAM.replace("http://localhost", "${HERE:-http://there}") + f"[models.a]\n{FREE}"

    assert load(tmp_path, text).upstreams["u"].base_url == "http://there/v1"
    assert load(tmp_path, text, HERE="").upstreams["u"].base_url == "http://there/v1"
    assert load(tmp_path, text, HERE="http://here").upstreams["u"].base_url == "http://here/v1"


@pytest.mark.parametrize(
    "models, complaint",
    [
        (f"[models.a]\n{LIMITS}", "models.a: .*has no price"),
        (f"[models.a]\n{LIMITS}input_price = 1.0\n", "models.a: .*has no price"),
        (f"[models.a]\n{FREE}input_price = -1.0\n", "models.a.input_price"),
        (f"[models.a]\n{FREE}input_price = 1.0\n", "models.a: is free and has a price; leave one"),
        (f"[models.a]\n{LIMITS}input_price = inf\n", "models.a.input_price: .*finite"),
        (f"[models.a]\n{FREE}colour = 1\n", "models.a.colour: no such key; take it out"),
        (f"[models.a]\n{FREE}fallback = []\n", "a.fallback: no such key; did you mean 'fallbacks'"),
        (f'[models.a]\n{FREE}name = "b"\n', "models: 'a' is named by its table; leave 'name' out"),
        (f'[models.a]\n{FREE}lacks = ["tool"]\n', "models.a.lacks.0: .*'tools'"),
        (f"[models.a]\n{FREE}[models.a]\n{FREE}", r"models.toml: .*line 9"),
        (f"[models.a]\n{FREE}[models.a.limits]\nconcurrency = 0", "models.a.limits.concurrency"),
        (f"[models.a]\n{TINY}", "models.a.context_window"),
        (f"[models.a]\n{FREE}".replace("5", "11"), "models.a: max_output_tokens is more than"),
        ('[models.a]\nupstream = "u"\nfree = true\n', "a.context_window: is missing; set it"),
        (f"[models.a]\n{LOST}", "models.a.upstream: there is no upstream 'v'; write one of: u"),
        (
            f'[models.a]\n{FREE}fallbacks = ["b"]\n',
            "models.a.fallbacks: there is no model 'b'; add it",
        ),
        (f'[models.a]\n{FREE}aliases = ["a"]\n', "models.a.aliases: 'a' is taken"),
        (
            f'[models.a]\n{FREE}aliases = ["c"]\n[models.b]\n{FREE}aliases = ["c"]\n',
            "models.a.aliases: 'c' is taken by another model; choose",
        ),
        (f'[models.a]\n{FREE}aliases = ["c", "c"]\n', "models.a.aliases: 'c' is there twice"),
        (f'[models.a]\n{FREE}fallbacks = ["a"]\n', "fallbacks: 'a' is in its chain already"),
        (
            f'[models.a]\n{FREE}fallbacks = ["b*"]\n[models."b*"]\n{FREE}',
            "'b.' is a pattern; write",
        ),
        (f'[models."a*b"]\n{FREE}', r"models: 'a\*b' may have a '\*' only at its end"),
        (f'[models."a*"]\n{FREE}aliases = ["b"]\n', "aliases: a pattern has no alias"),
        (f'[models.a]\n{FREE}upstream_model = "b*"\n', "models.a.upstream_model: may have one"),
        ("models = 3\n", "models"),
        ("[models]\na = 3\n", "models.a"),
        ("[models.a\n", "models.toml"),
        ("[[models]]\n", "models"),
    ],
)
def test_a_fault_is_named_with_its_entry(tmp_path: Path, models: str, complaint: str) -> None:
    """The process refuses to start, and the message says where to look."""
    with pytest.raises(CatalogError, match=complaint):
        load(tmp_path, models + UPSTREAM if models.startswith("models =") else UPSTREAM + models)


@pytest.mark.parametrize(
    "options, complaint",
    [
        ('dialect = "klingon"', "upstreams.u.dialect: Input should be 'openai' or 'anthropic'"),
        ('base_url = "localhost/v1"', "upstreams.u.base_url: .*begin with http:// or https://"),
        ('base_url = "http://h/v1?a=b"', "upstreams.u.base_url: .*no '?'"),
        ('headers = { "X-Api-Key" = "k" }', "upstreams.u.headers: .*'X-Api-Key'.*api_key_env"),
        ('headers = { Host = "h" }', "upstreams.u.headers: .*'Host' is set by the worker"),
        ('headers = { "X Title" = "a" }', "upstreams.u.headers: .*'X Title'.*no header can have"),
        ('headers = { X-Title = "a\\nb" }', "upstreams.u.headers: .*'X-Title'.*no header"),
        ('dialect = "anthropic"\napi_version = "1"', "upstreams.u: .*api_version makes it Azure"),
        ('api_version = "1"\nquery = { api-version = "2" }', "upstreams.u: .*'api-version'"),
        ("query = { a = 1 }", "upstreams.u.query.a"),
        ('on_cancel = "wait"', "upstreams.u.on_cancel: Input should be 'close' or 'drain'"),
        ('colour = "blue"', "upstreams.u.colour"),
    ],
)
def test_a_fault_of_an_upstream_is_named(tmp_path: Path, options: str, complaint: str) -> None:
    """What could not be sent, or would be sent wrong, is known at the start."""
    given = {"dialect": 'dialect = "openai"', "base_url": 'base_url = "http://localhost/v1"'}
    given |= {line.split(" = ")[0]: line for line in options.split("\n")}
    upstream = "[upstreams.u]\n" + "\n".join(given.values())

    with pytest.raises(CatalogError, match=complaint):
        load(tmp_path, f"{upstream}\n[models.a]\n{FREE}")


def test_every_fault_is_named_at_once(tmp_path: Path) -> None:
    """With the file before each, so that nobody starts the process five times over."""
    with pytest.raises(CatalogError) as refused:
        load(tmp_path, f"{UPSTREAM}[models.a]\n{FREE}colour = 1\n[models.b]\n{TINY}size = 2\n")

    lines = str(refused.value).splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"{tmp_path / 'models.toml'}: models.") for line in lines)


def test_a_variable_that_is_not_set_is_named(tmp_path: Path) -> None:
    """An empty address would be found out at the first call; a comment may say what it likes."""
    text = f"# ${{NOWHERE}}\n{UPSTREAM}[models.a]\n{FREE}".replace("http://localhost", "${HERE}")

    with pytest.raises(CatalogError, match=r"upstreams.u.base_url: the variable HERE is not set"):
        load(tmp_path, text, HERE="")
    assert load(tmp_path, text, HERE="http://a").upstreams["u"].base_url == "http://a/v1"


def test_a_pattern_stands_for_every_model_whose_name_begins_so(tmp_path: Path) -> None:
    """A name of its own comes first, then an alias, then the longest pattern."""
    models = (
        f'[models."r/*"]\n{FREE}[models."r/meta/*"]\n{FREE}upstream_model = "x-*"\n'
        f'[models."r/a"]\n{FREE}aliases = ["r/b"]\n'
    )

    found = load(tmp_path, UPSTREAM + models).find

    assert found("r/a") is found("r/b")
    assert (found("r/c/d").name, found("r/c/d").upstream_model) == ("r/c/d", "c/d")
    assert (found("r/meta/l").upstream_model, found("r/meta/l").entry) == ("x-l", "r/meta/*")
    for nothing in ("r/", "r", "r/*", "r/meta/*", "s/a"):
        with pytest.raises(ModelNotFound):
            found(nothing)


def test_a_fallback_may_be_one_that_a_pattern_stands_for(tmp_path: Path) -> None:
    """And a model never falls back to itself."""
    models = f'[models."r/*"]\n{FREE}fallbacks = ["a", "r/b"]\n[models.a]\n{FREE}'
    found = load(tmp_path, UPSTREAM + models)

    assert [model.name for model in found.chain("r/c")] == ["r/c", "a", "r/b"]
    assert [model.name for model in found.chain("r/b")] == ["r/b", "a"]


def test_a_model_is_not_asked_for_what_it_lacks(tmp_path: Path) -> None:
    """The one that was named refuses, with the field; a fallback is left out."""
    upstream = f'{UPSTREAM}lacks = ["seed"]\n'.replace("[upstreams.u]", "[upstreams.v]")
    models = (
        f'[models.a]\n{FREE}fallbacks = ["b", "c", "d"]\n'
        f'[models.b]\n{FREE}lacks = ["tools"]\n[models.c]\n{LOST}[models.d]\n{FREE}'
    )
    found = load(tmp_path, UPSTREAM + upstream + models)

    assert [m.name for m in found.chain("a", {"tools": "tools"})] == ["a", "c", "d"]
    assert [m.name for m in found.chain("a", {"seed": "seed"})] == ["a", "b", "d"]
    with pytest.raises(InvalidRequest, match="'functions' asks for 'tools'") as refused:
        found.chain("b", {"tools": "functions"})
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "functions")


def test_a_model_is_not_asked_for_more_than_its_window(tmp_path: Path) -> None:
    """A fallback with a smaller one is left out."""
    models = f'[models.a]\n{WIDE}fallbacks = ["b"]\n[models.b]\n{FREE}'
    found = load(tmp_path, UPSTREAM + models)

    assert [model.name for model in found.chain("a", tokens=10)] == ["a", "b"]
    assert [model.name for model in found.chain("a", tokens=11)] == ["a"]
    with pytest.raises(ContextLengthExceeded) as refused:
        found.chain("a", tokens=101)
    assert refused.value.param == "messages"


def test_a_catalogue_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    """No file, or one that is not UTF-8."""
    with pytest.raises(CatalogError, match=r"nowhere\.toml"):
        catalog.load(tmp_path / "nowhere.toml")

    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9\n")
    with pytest.raises(CatalogError, match=r"latin\.toml"):
        catalog.load(tmp_path / "latin.toml")


PROMISED = {
    "claude-3-5-sonnet-20241022": 200_000,
    "claude-3-5-haiku-20241022": 200_000,
    "claude-3-opus-20240229": 200_000,
    "gpt-4o": 128_000,
    "atdak-gpt-4": 128_000,
    "atdak-gpt-4-mini": 128_000,
    "atdak-claude-3": 200_000,
    "atdak-llama-70b": 32_768,
}


def test_the_packaged_catalogue_offers_what_was_promised() -> None:
    """The embedded model, free, and every name of the two APIs, with a price and a way out."""
    found = catalog.load(PACKAGED_CATALOG, {})

    assert next(iter(found.models)) == "smollm2-135m"
    assert found.find("smollm2-135m").free
    assert {name: found.find(name).context_window for name in PROMISED} == PROMISED
    for name in PROMISED:
        first, *others = found.chain(name)
        assert others
        assert all(model.upstream != first.upstream for model in others)


def test_a_reload_takes_what_is_good_and_keeps_what_it_has(tmp_path: Path) -> None:
    """The log says what came, went and changed, or what is wrong."""
    old = load(tmp_path, f"{UPSTREAM}[models.a]\n{FREE}[models.b]\n{FREE}")
    path = tmp_path / "models.toml"
    path.write_text(f"{UPSTREAM}[models.b]\n{WIDE}[models.c]\n{FREE}", encoding="utf-8")

    with capture_logs() as logged:
        new = reload.again(path, old)
        path.write_text("models = 3", encoding="utf-8")
        kept = reload.again(path, new)

    assert kept is new
    assert list(new.models) == ["b", "c"]
    assert [entry["event"] for entry in logged] == ["catalog_reloaded", "catalog_kept"]
    changes = {"models_added": ["c"], "models_removed": ["a"], "models_changed": ["b"]}
    assert changes.items() <= logged[0].items()
    assert "upstreams: is missing" in logged[1]["error"]
