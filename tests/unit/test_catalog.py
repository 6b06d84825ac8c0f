"""The catalogue: what is in it is found, what is wrong with it is named."""

from pathlib import Path

import pytest

from shared import catalog
from shared.catalog import CatalogError
from shared.errors import ModelNotFound
from shared.settings import PACKAGED_CATALOG

UPSTREAM = '[upstreams.u]\ndialect = "openai"\nbase_url = "http://localhost/v1"\n'
LIMITS = 'upstream = "u"\ncontext_window = 10\nmax_output_tokens = 5\n'
FREE = LIMITS + "free = true\n"
LOST = FREE.replace('"u"', '"v"')
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
        (f"[models.a]\n{FREE}colour = 1\n", "models.a.colour"),
        (f"[models.a]\n{TINY}", "models.a.context_window"),
        ('[models.a]\nupstream = "u"\nfree = true\n', "models.a.context_window"),
        (f"[models.a]\n{LOST}", "'a' names no known upstream: 'v'"),
        (f'[models.a]\n{FREE}fallbacks = ["b"]\n', "'a' falls back to unknown 'b'"),
        (f'[models.a]\n{FREE}aliases = ["a"]\n', "alias 'a' of 'a' is taken"),
        (
            f'[models.a]\n{FREE}aliases = ["c"]\n[models.b]\n{FREE}aliases = ["c"]\n',
            "alias 'c' of 'b' is taken",
        ),
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


def test_a_catalogue_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    """No file, or one that is not UTF-8."""
    with pytest.raises(CatalogError, match=r"nowhere\.toml"):
        catalog.load(tmp_path / "nowhere.toml")

    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9\n")
    with pytest.raises(CatalogError, match=r"latin\.toml"):
        catalog.load(tmp_path / "latin.toml")


def test_the_packaged_catalogue_loads() -> None:
    """It offers the embedded model, with nothing set."""
    assert catalog.load(PACKAGED_CATALOG, {}).find("smollm2-135m").free
