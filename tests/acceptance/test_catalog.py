"""The catalogue of a running service: what it shows, what it refuses, how it is exchanged."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import openai
import pytest
from typer.testing import CliRunner

from cli.main import app
from shared.limits import Limits
from tests.conftest import migrated, started_valkey
from tests.fakes.upstream import Say, ScriptedUpstream, WaitFor
from tests.stack import CATALOG, MODEL, QUICK_LEASES, Process, Stack, eventually
from tests.valkey import Valkey

MORE = """
[models.narrow]
upstream = "fake"
context_window = 1000
max_output_tokens = 100
input_price = 100
cached_input_price = 10
output_price = 500
lacks = ["tools"]
fallbacks = ["test"]
limits = { concurrency = 3 }
[models."fake/*"]
upstream = "fake"
context_window = 8192
max_output_tokens = 100
free = true
lacks = ["penalties", "seed"]
"""
HELLO: Any = [{"role": "user", "content": "Hello"}]
TOOL: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


class Shelf(NamedTuple):
    """A running service that offers `test`, a model with a price, and a pattern."""

    stack: Stack
    worker: Process
    api: Process
    redis: Valkey


@pytest.fixture(scope="module", params=["sqlite"])
def shelf(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shelf]:
    """One for all tests of the module; the last of them exchanges the catalogue."""
    home = tmp_path_factory.mktemp("shelf")
    with (
        migrated(request, home) as url,
        started_valkey(home) as redis,
        ScriptedUpstream() as upstream,
        Stack(home, url, redis.url, upstream) as stack,
    ):
        models = MODEL.format(name="test") + MODEL.format(name="old") + MORE
        (home / "models.toml").write_text(CATALOG.format(base_url=upstream.base_url) + models)
        stack.environment |= QUICK_LEASES
        worker, api = stack.worker(), stack.api()
        stack.ready(api, worker)
        yield Shelf(stack, worker, api, redis)


def test_models_are_shown_with_all_that_is_known_of_them(shelf: Shelf) -> None:
    """Price, window, limits, and whether one can be had; also while Redis is away."""
    stack, redis = shelf.stack, shelf.redis
    http = stack.http()
    shown = {model["id"]: model for model in http.get("/v1/models").json()["data"]}
    words = ["models", "--url", stack.url, "--api-key", stack.key]

    listed = CliRunner().invoke(app, [*words, "--json"])
    table = CliRunner().invoke(app, words)
    redis.stop()
    without_redis = http.get("/v1/models/narrow")
    redis.restart()

    assert list(shown) == ["test", "old", "narrow", "fake/*"]
    assert shown["narrow"] == {
        "id": "narrow",
        "object": "model",
        "created": 0,
        "owned_by": "fake",
        "context_window": 1000,
        "max_output_tokens": 100,
        "input_price": 100.0,
        "cached_input_price": 10.0,
        "cache_write_price": None,
        "output_price": 500.0,
        "free": False,
        "aliases": [],
        "fallbacks": ["test"],
        "lacks": ["tools"],
        "limits": Limits(concurrency=3).model_dump(exclude_none=True),
        "available": True,
        "breaker": "closed",
    }
    assert without_redis.json() == shown["narrow"]
    assert http.get("/v1/models/fake/*").json() == shown["fake/*"]
    assert http.get("/v1/models/fake/any").json()["available"]
    assert json.loads(listed.stdout) == list(shown.values())
    assert "narrow\tfake\t1000\t100\tyes\tclosed\t100\t10\t\t500\ttest" in table.stdout


def test_a_request_meets_what_the_catalogue_says(shelf: Shelf) -> None:
    """A pattern's model is called by its own name; what a model has not is refused at once."""
    create = shelf.stack.client().chat.completions.create
    shelf.stack.upstream.script("any/name", Say("Hi"))

    answer = create(model="fake/any/name", messages=HELLO)
    with pytest.raises(openai.BadRequestError) as tools:
        create(model="narrow", messages=HELLO, tools=[TOOL])
    with pytest.raises(openai.BadRequestError) as long:
        create(model="narrow", messages=[{"role": "user", "content": "Hello, you. " * 1_000}])
    with pytest.raises(openai.NotFoundError) as pattern:
        create(model="fake/*", messages=HELLO)

    assert answer.model == "fake/any/name"
    assert answer.choices[0].message.content == "Hi"
    assert (tools.value.code, tools.value.param) == ("unsupported_parameter", "tools")
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "messages")
    assert pattern.value.code == "model_not_found"


def test_parameters_that_a_model_lacks_are_dropped_on_request(shelf: Shelf) -> None:
    """Instead of a refusal; the answer names them, in whatever form it comes."""
    client, http = shelf.stack.client(), shelf.stack.http()
    shelf.stack.upstream.script("lacking", Say("Hi"))
    asked: dict[str, Any] = {"model": "fake/lacking", "messages": HELLO, "seed": 7}
    allowed = {**asked, "drop_unsupported": True}
    create = client.chat.completions.with_raw_response.create

    with pytest.raises(openai.BadRequestError) as refused:
        create(**asked)
    held = create(**asked, presence_penalty=1, extra_body={"drop_unsupported": True})
    with client.chat.completions.create(
        **asked, stream=True, extra_body={"drop_unsupported": True}
    ) as live:
        first, *rest = live
    replay = http.get(f"/v1/chat/completions/{first.id}?stream=true").text
    job = http.get(f"/v1/jobs/{first.id}").json()
    background = http.post("/v1/chat/completions", json={**allowed, "background": True})
    array = http.post("/v1/jobs", json=[allowed, {**allowed, "frequency_penalty": 1}])
    kept = http.post("/v1/chat/completions", json={**allowed, "model": "test"})

    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "seed")
    assert held.headers["x-dropped-parameters"] == "presence_penalty, seed"
    warnings = held.parse().model_dump()["warnings"]
    assert {each["param"] for each in warnings} == {"presence_penalty", "seed"}
    assert [each["param"] for each in first.model_dump()["warnings"]] == ["seed"]
    assert not any("warnings" in each.model_dump() for each in rest)
    assert all(each.choices for each in (first, *rest))
    assert replay.count('"warnings"') == 1
    assert job["warnings"] == first.model_dump()["warnings"]
    assert background.headers["x-dropped-parameters"] == "seed"
    assert array.headers["x-dropped-parameters"] == "frequency_penalty, seed"
    assert "x-dropped-parameters" not in kept.headers
    assert "seed" not in shelf.stack.upstream.calls_of("lacking")[0].body
    assert shelf.stack.upstream.calls_of("test")[-1].body["seed"] == 7


def test_sighup_exchanges_the_catalogue(shelf: Shelf) -> None:
    """What runs goes on, what waits for a model that has left fails, and a bad file is put off."""
    stack, worker, api, _ = shelf
    http, go = stack.http(), threading.Event()
    stack.upstream.script("test", Say("so far"), WaitFor(go), Say(" so good"))
    running = submit(http, model="test")
    eventually(lambda: http.get(f"/v1/jobs/{running}").json()["progress"]["characters"])
    waiting = submit(http, model="old", run_at=int(time.time()) + 4)

    stack.offer("new")
    hang_up(worker, "catalog_reloaded")
    hang_up(api, "catalog_reloaded")
    go.set()

    assert ended(http, running)["status"] == "completed"
    assert ended(http, waiting)["error"]["code"] == "model_unavailable"
    assert ended(http, submit(http, model="new"))["status"] == "completed"
    assert http.post("/v1/jobs", json={"model": "test", "messages": HELLO}).status_code == 404
    eventually(lambda: http.get("/v1/models/new").json()["available"])

    (stack.home / "models.toml").write_text("models = 3")
    hang_up(worker, "catalog_kept")
    hang_up(api, "catalog_kept")

    assert ended(http, submit(http, model="new"))["status"] == "completed"
    assert "models.toml: upstreams: is missing; set it" in api.log.read_text()


def hang_up(process: Process, word: str) -> None:
    """Send SIGHUP and wait for what it leads to."""
    process.send(signal.SIGHUP)
    eventually(lambda: word in process.log.read_text())


def submit(http: httpx.Client, **fields: object) -> str:
    """The id of a new job."""
    response = http.post("/v1/jobs", json={"messages": HELLO, **fields})
    assert response.status_code == 202, response.text
    job_id: str = response.json()["id"]
    return job_id


def ended(http: httpx.Client, job_id: str) -> dict[str, Any]:
    """The job, once it is over."""

    def look() -> dict[str, Any] | None:
        job: dict[str, Any] = http.get(f"/v1/jobs/{job_id}").json()
        return job if job["completed_at"] else None

    return eventually(look, 30)
