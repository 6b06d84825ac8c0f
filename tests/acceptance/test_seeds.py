"""The two documents this service implements: their examples word for word, and what they state."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from shared.limits import Limits
from tests.dialects import Bilingual, bilingual
from tests.fakes.issuer import AUDIENCE, NAME, claims
from tests.fakes.upstream import ErrorInBand, Finish, Say, Status, Step, Tool, Usage
from tests.house.repository import ROOT

SEEDS = Path(__file__).parents[1] / "seeds"
AINATIVE = [
    "claude-3-5-sonnet-20241022",
    "claude-3-5-haiku-20241022",
    "claude-3-opus-20240229",
]
ATDAK = ["atdak-gpt-4", "atdak-gpt-4-mini", "atdak-claude-3", "atdak-llama-70b"]
AWAY = "claude-away"
"""A model of which only its failure is asked, which others may remember."""
TOKENS = {
    "SLUICE_JWT_SECRET": "a secret of forty bytes, which is enough",
    "SLUICE_JWT_ISSUER": NAME,
    "SLUICE_JWT_AUDIENCE": AUDIENCE,
}
PUBLIC = "/v1/public/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]
ASKED: dict[str, Any] = {"model": AINATIVE[0], "messages": HELLO}
POEM = "春风又绿江南岸,\n明月何时照我还。"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bilingual]:
    """Every model that the documents name, where it would be: Claude speaks its own dialect."""
    home = tmp_path_factory.mktemp("seeds")
    with bilingual(home, ["gpt-4o", *ATDAK], [*AINATIVE, AWAY], **TOKENS) as opened:
        yield opened


@pytest.fixture(scope="module")
def key(service: Bilingual) -> str:
    """The key of somebody who can pay."""
    return service.rich("seeds").key


@pytest.fixture(scope="module")
def http(service: Bilingual, key: str) -> httpx.Client:
    """A client as AINative's document has it."""
    client = service.stack.http(key)
    client.headers = httpx.Headers({"X-API-Key": key})
    return client


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package `atdak` in it, as pip installs it."""
    folder = tmp_path_factory.mktemp("client")
    shutil.copytree(ROOT / "clients" / "python", folder / "source")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    target = folder / "installed"
    subprocess.run([*pip, *offline, "--target", target, folder / "source"], check=True, timeout=60)
    return target


def example(name: str, **replaced: str) -> str:
    """An example of a document, with another URL and key."""
    text = (SEEDS / name).read_text(encoding="utf-8")
    for there, here in replaced.items():
        assert there in text
        text = text.replace(there, here)
    return text


def run(source: str, **environment: str) -> str:
    """What a program prints; it must end well."""
    done = subprocess.run(
        [sys.executable, "-c", source],
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def ainative(service: Bilingual, key: str, name: str) -> str:
    """An example of AINative's document for this service."""
    there = {"https://api.ainative.studio": service.stack.url, "ak_your_key": key}
    return example(name, **there)


def test_ainatives_request_example_runs(service: Bilingual, key: str) -> None:
    """Held: the answer and the tokens it took."""
    service.anthropic.script(AINATIVE[0], Usage(20, 6), Say("ZeroDB is a vector database."))

    printed = run(ainative(service, key, "ainative_request.py"))

    assert printed == "ZeroDB is a vector database.\nTokens used: 26\n"
    sent = service.anthropic.calls_of(AINATIVE[0])[-1].body
    assert sent["system"] == [{"type": "text", "text": "You are a helpful assistant."}]
    assert (sent["temperature"], sent["max_tokens"]) == (0.7, 1024)


def test_ainatives_stream_example_runs(service: Bilingual, key: str) -> None:
    """It looks into `choices[0]` of every line but the last."""
    service.anthropic.script(AINATIVE[0], Say("1, 2, 3, 4, 5"))

    assert run(ainative(service, key, "ainative_stream.py")) == "1, 2, 3, 4, 5"


def test_ainatives_balance_example_tells_what_is_left(service: Bilingual) -> None:
    """A thousand credits less what two answers took; the document's `import` stands further up."""
    payer = service.rich("balance", credits=1_000).key
    service.anthropic.script(AINATIVE[0], Usage(200_000, 150_000), Say("Dear."))
    source = "import requests\n" + ainative(service, payer, "ainative_balance.py")
    before = run(source)

    run(ainative(service, payer, "ainative_request.py"))

    assert (before, run(source)) == ("Remaining: 1000.0\n", "Remaining: 999.5\n")


def test_atdaks_client_example_runs(service: Bilingual, key: str, installed: Path) -> None:
    """With the client of `clients/python`; the last chunk has no content, which prints `None`."""
    service.openai.script("atdak-gpt-4", Say(POEM))
    there = {"ATDAK_BASE_URL": f"{service.stack.url}/v1", "ATDAK_API_KEY": key}

    printed = run(example("atdak_client.py"), PYTHONPATH=str(installed), **there)

    assert printed == f"{POEM}\n{POEM}None"


def test_the_client_sends_no_key_anywhere_by_itself(installed: Path) -> None:
    """Without a URL it says which variable to set."""
    source = "from atdak import AtdakClient\ntry:\n    AtdakClient(api_key='k')\n"
    source += "except Exception as error:\n    print(type(error).__name__, error)\n"

    printed = run(source, PYTHONPATH=str(installed), ATDAK_BASE_URL="")

    assert printed.startswith("OpenAIError Set ATDAK_BASE_URL")


def test_atdaks_request_example_is_answered_as_shown(service: Bilingual, key: str) -> None:
    """Every field of the document's answer, of the same kind; more may stand beside them."""
    service.openai.script("atdak-gpt-4", Usage(15, 12), Say("你好!有什么可以帮助你的吗?"))

    answer = service.stack.http(key).post(
        "/v1/chat/completions",
        content=example("atdak_request.json").encode(),
        headers={"content-type": "application/json"},
    )

    shown = answer.json()
    message = {"role": "assistant", "content": "你好!有什么可以帮助你的吗?"}
    usage = {"prompt_tokens": 15, "completion_tokens": 12, "total_tokens": 27}
    [choice] = shown["choices"]
    assert shown["id"].startswith("chatcmpl-")
    assert (shown["object"], shown["model"]) == ("chat.completion", "atdak-gpt-4")
    assert type(shown["created"]) is int
    assert (choice["index"], choice["finish_reason"]) == (0, "stop")
    assert message.items() <= choice["message"].items()
    assert usage.items() <= shown["usage"].items()
    sent = service.openai.calls_of("atdak-gpt-4")[-1].body
    assert (sent["temperature"], sent["max_tokens"]) == (0.7, 2048)


def test_atdaks_curl_example_streams_as_shown(service: Bilingual, key: str) -> None:
    """The command's own bytes: frames with an id and a delta each, then `[DONE]`."""
    service.openai.script("atdak-gpt-4", Say(pieces=["你", "好"]))
    there = {"https://api.atdak.com": service.stack.url, "YOUR_API_KEY": key}
    command = example("atdak_stream.sh", **there).replace("\\\n", " ")
    curl, url, *options = shlex.split(command)
    given = list(zip(options[::2], options[1::2], strict=True))
    headers = dict(value.split(": ") for flag, value in given if flag == "-H")
    [body] = [value for flag, value in given if flag == "-d"]

    answer = httpx.post(url, content=body.encode(), headers=headers)

    frames = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    chunks = [json.loads(frame) for frame in frames[:-1]]
    assert (curl, frames[-1]) == ("curl", "[DONE]")
    assert {chunk["id"] for chunk in chunks} == {f"chatcmpl-{answer.headers['x-job-id'][4:]}"}
    said = [chunk["choices"][0]["delta"].get("content") for chunk in chunks]
    assert [piece for piece in said if piece] == ["你", "好"]


@pytest.mark.parametrize("model", ["gpt-4o", *AINATIVE, *ATDAK])
def test_every_model_of_the_documents_answers(
    service: Bilingual, http: httpx.Client, model: str
) -> None:
    """Under the name that the document gives it."""
    upstream = service.anthropic if model in AINATIVE else service.openai
    upstream.script(model, Say("Here."))

    answer = http.post(PUBLIC, json={**ASKED, "model": model}).json()

    assert (answer["model"], answer["choices"][0]["message"]["content"]) == (model, "Here.")


@pytest.mark.parametrize("model", ["gpt-4o", AINATIVE[0]])
def test_the_system_string_comes_before_all_messages(
    service: Bilingual, http: httpx.Client, model: str
) -> None:
    """As a system message would; the upstream hears of no field `system` of ours."""
    said = [{"role": "system", "content": "Be kind."}, *HELLO]

    answer = http.post(PUBLIC, json={"model": model, "system": "Be brief.", "messages": said})

    assert answer.status_code == 200
    if model == "gpt-4o":
        sent = service.openai.calls_of(model)[-1].body
        assert sent["messages"] == [{"role": "system", "content": "Be brief."}, *said]
        assert "system" not in sent
    else:
        system = service.anthropic.calls_of(model)[-1].body["system"]
        assert [block["text"] for block in system] == ["Be brief.", "Be kind."]


def test_the_public_dialect_has_defaults_of_its_own(service: Bilingual, http: httpx.Client) -> None:
    """0.7 and 1,024 tokens there; `/v1/chat/completions` leaves both to the upstream."""
    sent = []
    for path in (PUBLIC, "/v1/chat/completions"):
        assert http.post(path, json={**ASKED, "model": "gpt-4o"}).status_code == 200
        body = service.openai.calls_of("gpt-4o")[-1].body
        sent.append((body.get("temperature"), body.get("max_tokens")))

    assert sent == [(0.7, 1024), (None, None)]


def test_the_public_dialect_streams_waits_and_replays_like_the_other(
    service: Bilingual, http: httpx.Client
) -> None:
    """In the background it is polled; a key belongs to one path."""
    service.openai.script("gpt-4o", Say("Once."))
    body = {**ASKED, "model": "gpt-4o"}
    again = {"Idempotency-Key": "the same"}

    accepted = http.post(PUBLIC, json={**body, "background": True})
    polled = http.get(accepted.headers["location"], headers={"Prefer": "wait=30"})
    first, second = (http.post(PUBLIC, json=body, headers=again) for _ in range(2))
    other = http.post("/v1/chat/completions", json=body, headers=again)

    assert (accepted.status_code, polled.json()["status"]) == (202, "completed")
    assert second.headers["idempotency-replayed"] == "true"
    assert second.json() == first.json()
    assert "idempotency-replayed" not in other.headers
    assert other.json()["id"] != first.json()["id"]


@pytest.mark.parametrize(
    "asked, usage_frames", [({}, 0), ({"stream_options": {"include_usage": True}}, 1)]
)
@pytest.mark.parametrize(
    "model, said",
    [
        ("gpt-4o", [Say("Hi"), Tool("f", '{"a": 1}'), Finish("tool_calls")]),
        (AINATIVE[0], [Say("Hi"), Tool("f", '{"a": 1}'), Finish("tool_calls")]),
    ],
)
def test_every_frame_has_a_choice_but_the_usage_that_was_asked_for(
    service: Bilingual,
    http: httpx.Client,
    model: str,
    said: list[Step],
    asked: dict[str, Any],
    usage_frames: int,
) -> None:
    """Both documents look into `choices[0].delta` without a question."""
    upstream = service.anthropic if model in AINATIVE else service.openai
    upstream.script(model, *said)

    text = http.post(PUBLIC, json={**ASKED, "model": model, "stream": True, **asked}).text

    frames = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    chunks = [json.loads(frame) for frame in frames if frame != "[DONE]"]
    without = [chunk for chunk in chunks if not chunk["choices"]]
    assert len(without) == usage_frames
    assert all("delta" in chunk["choices"][0] for chunk in chunks if chunk not in without)


def test_a_broken_stream_does_not_pass_for_an_answer(service: Bilingual, key: str) -> None:
    """AINative's loop raises on the error's line, so nobody takes half an answer for a whole."""
    service.anthropic.script(AINATIVE[0], Say("1, 2"), ErrorInBand())

    with pytest.raises(AssertionError, match="KeyError: 'choices'"):
        run(ainative(service, key, "ainative_stream.py"))


def refused(answer: httpx.Response) -> tuple[int, str, str | None]:
    """What a client goes by."""
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


@pytest.mark.parametrize(
    "wrong, param",
    [
        ({"temperature": 1.5}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"system": ["Be brief."]}, "system"),
        ({"messages": None}, "messages"),
        ({"model": None}, "model"),
        ({"stream": "yes"}, "stream"),
    ],
)
def test_the_public_dialect_names_what_is_wrong(
    http: httpx.Client, wrong: dict[str, Any], param: str
) -> None:
    """Its temperature ends at 1."""
    assert refused(http.post(PUBLIC, json={**ASKED, **wrong})) == (
        400,
        "invalid_request_error",
        param,
    )


def test_a_token_is_as_good_as_a_key(service: Bilingual) -> None:
    """`Authorization: Bearer <jwt>`, for the account that it names."""
    payer = service.rich("bearer")
    token = jwt.encode(claims(payer.account_id), TOKENS["SLUICE_JWT_SECRET"], "HS256")
    service.anthropic.script(AINATIVE[0], Say("Welcome."))

    with service.stack.http(token) as http:
        answer = http.post(PUBLIC, json=ASKED)
        balance = http.get("/api/v1/public/credits/balance").json()

    assert answer.json()["choices"][0]["message"]["content"] == "Welcome."
    assert balance["remaining_credits"] < 1_000


@pytest.mark.parametrize("wrong", [{}, {"X-API-Key": "ak_nobody"}, {"X-API-Key": "sk-other"}])
def test_a_wrong_key_is_401(service: Bilingual, wrong: dict[str, str]) -> None:
    """Before anything else is looked at."""
    answer = httpx.post(service.stack.url + PUBLIC, json=ASKED, headers=wrong)

    assert refused(answer) == (401, "invalid_api_key", None)


def test_no_credits_is_402(service: Bilingual) -> None:
    """Top up: nothing was queued."""
    poor = {"X-API-Key": service.stack.mint("poor")}

    answer = httpx.post(service.stack.url + PUBLIC, json=ASKED, headers=poor)

    assert answer.status_code == 402
    assert answer.json()["error"]["code"] == "insufficient_credits"
    assert httpx.get(f"{service.stack.url}/v1/jobs", headers=poor).json()["data"] == []


def test_too_many_requests_are_429(service: Bilingual) -> None:
    """Back off: how long is in the headers."""
    key = service.rich("hasty", limits=Limits(requests_per_minute=1)).key
    with service.stack.http(key) as http:
        first, second = (http.post(PUBLIC, json=ASKED) for _ in range(2))

    assert first.status_code == 200
    assert refused(second) == (429, "rate_limit_exceeded", None)
    assert 1 <= int(second.headers["retry-after"]) <= 60


def test_a_model_that_cannot_be_had_is_503(service: Bilingual, http: httpx.Client) -> None:
    """Here because the upstream does not take our key; that is never the caller's 401."""
    service.anthropic.script(AWAY, Status(401))

    answer = http.post(PUBLIC, json={**ASKED, "model": AWAY})

    assert refused(answer) == (503, "upstream_credentials", None)
