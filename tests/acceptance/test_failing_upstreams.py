"""Whatever an upstream does, callers see what the tables say: held, streamed, in the background."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pytest
from sqlmodel import Session

from shared import accounts, db, ledger
from shared.prices import NANO
from tests.conftest import migrated, parts
from tests.fakes.anthropic import ScriptedAnthropic
from tests.fakes.upstream import (
    End,
    ErrorInBand,
    Headers,
    Reset,
    Say,
    Stall,
    Status,
    Step,
    Usage,
    Wait,
)
from tests.stack import Stack

Form = Literal["held", "streamed", "background"]
FORMS: tuple[Form, ...] = ("held", "streamed", "background")
DIALECTS = ("openai", "anthropic")
UPSTREAM = """
[upstreams.anthropic]
dialect = "anthropic"
base_url = "{url}"

[upstreams.openai]
dialect = "openai"
base_url = "{openai}"
"""
MODEL = """
[models."{name}"]
upstream = "{upstream}"
context_window = 8192
max_output_tokens = 1000
input_price = {input}
output_price = {output}
fallbacks = {fallbacks}
"""
GRANTED = 100_000
PRICE = 0.2
"""Credits for 100 tokens of input at 1,000 a million and 50 of output at 2,000."""
SETTINGS = {
    "SLUICE_MAX_ATTEMPTS": "1",
    "SLUICE_FIRST_BYTE_TIMEOUT": "5",
    "SLUICE_SILENCE_TIMEOUT": "5",
}
MIDWAY = Say("Half a")
ERROR = ErrorInBand({"type": "overloaded_error", "message": "Overloaded"})


@dataclass(frozen=True)
class Failure:
    """What an upstream does, and what that is to a caller who has no other model."""

    steps: tuple[Step, ...]
    status: int
    code: str
    answered: int | None
    """The upstream's own status, as the attempt shows it."""

    @property
    def midway(self) -> bool:
        """Whether a reader has seen text by then."""
        return MIDWAY in self.steps


FAILURES: Mapping[str, Failure] = {
    "429": Failure(
        (Status(429, headers={"Retry-After": "30"}),), 503, "upstream_rate_limited", 429
    ),
    "529": Failure((Status(529),), 503, "upstream_overloaded", 529),
    "500": Failure((Status(500),), 502, "upstream_error", 500),
    "401": Failure((Status(401),), 503, "upstream_credentials", 401),
    "reset": Failure((Headers(), Reset()), 502, "upstream_disconnected", None),
    "slow": Failure((Wait(60),), 504, "upstream_timeout", None),
    "empty": Failure((Headers(), End()), 502, "upstream_disconnected", 200),
    "error": Failure((ERROR,), 503, "upstream_overloaded", 200),
    "reset-midway": Failure((MIDWAY, Reset()), 502, "upstream_disconnected", 200),
    "silent-midway": Failure((MIDWAY, Stall()), 504, "upstream_timeout", 200),
    "cut-midway": Failure((MIDWAY, End()), 502, "upstream_disconnected", 200),
    "error-midway": Failure((MIDWAY, ERROR), 503, "upstream_overloaded", 200),
}


@dataclass(frozen=True)
class Case:
    """One request; every one has a model, and so a breaker, of its own."""

    chain: str
    dialect: str
    failure: str
    form: Form

    @property
    def model(self) -> str:
        """Its name."""
        return f"{self.chain}-{self.dialect}-{self.failure}-{self.form}"


def cases(chain: str, form: Form) -> list[Case]:
    """Every failure in every dialect."""
    return [Case(chain, dialect, failure, form) for dialect in DIALECTS for failure in FAILURES]


@dataclass(frozen=True)
class Heard:
    """What the caller got."""

    text: str
    job: dict[str, Any]
    status: int | None = None
    """Of an error that came instead of an answer; in a stream or a job it has none."""
    code: str | None = None
    used: str | None = None
    """The header that names the model that answered."""


@pytest.fixture(scope="module", params=["postgresql"])
def service(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """A running service in which everything fails but `backup`."""
    home: Path = tmp_path_factory.mktemp("service")
    with (
        migrated(request, home) as url,
        parts(home, url) as opened,
        ScriptedAnthropic() as claude,
    ):
        upstream = opened.upstream
        text = UPSTREAM.format(url=claude.base_url, openai=upstream.base_url)
        dear = {"input": 5000.0, "output": 9000.0}
        for chain, fallbacks in (("alone", "[]"), ("chain", '["backup"]')):
            for case in (case for form in FORMS for case in cases(chain, form)):
                text += MODEL.format(
                    name=case.model, upstream=case.dialect, fallbacks=fallbacks, **dear
                )
                for server in (upstream, claude):
                    server.script(case.model, *FAILURES[case.failure].steps)
        cheap = {"input": 1000.0, "output": 2000.0, "fallbacks": "[]"}
        text += MODEL.format(name="backup", upstream="openai", **cheap)
        upstream.script("backup", Wait(0.1), Say("Here I am"), Usage(100, 50))
        opened.catalogue(text)
        opened.environment |= SETTINGS
        yield opened.up()


@pytest.fixture(scope="module")
def http(service: Stack) -> httpx.Client:
    """The native API; its account has plenty of credits."""
    engine = db.connect(service.database_url)
    with Session(engine) as session, session.begin():
        account = accounts.ensure(session, "ours")
        ledger.grant(session, account.id, GRANTED * NANO, note="test")
    engine.dispose()
    return service.http()


def ended(http: httpx.Client, job_id: str) -> dict[str, Any]:
    """A job, once it has ended."""
    http.get(f"/v1/chat/completions/{job_id}", headers={"prefer": "wait=50"})
    job: dict[str, Any] = http.get(f"/v1/jobs/{job_id}").json()
    assert job["completed_at"], job
    return job


def ask(client: openai.OpenAI, http: httpx.Client, case: Case) -> Heard:
    """Ask in the case's form, and wait for the end."""
    asked: dict[str, Any] = {
        "model": case.model,
        "messages": [{"role": "user", "content": "Talk"}],
        "stream": case.form == "streamed",
        "extra_body": {"background": True} if case.form == "background" else None,
    }
    text, used = "", None

    def heard(job_id: str, error: openai.APIError | None = None) -> Heard:
        job = ended(http, job_id)
        status = getattr(error, "status_code", None)
        return Heard(text, job, status, error.code if error else None, used)

    try:
        raw = client.chat.completions.with_raw_response.create(**asked)
    except openai.APIStatusError as error:
        return heard(error.response.headers["x-job-id"], error)
    job_id, used = raw.headers["x-job-id"], raw.headers.get("x-model-used")
    answer: Any = raw.parse()
    if case.form == "held":
        text = answer.choices[0].message.content
    elif case.form == "streamed":
        try:
            for chunk in answer:
                assert chunk.model == case.model
                text += chunk.choices[0].delta.content or ""
        except openai.APIError as error:
            return heard(job_id, error)
    else:
        ended(http, job_id)
        kept = client.chat.completions.retrieve(answer.id)
        text = kept.choices[0].message.content or "" if kept.choices else ""
    return heard(job_id)


def ask_all(service: Stack, http: httpx.Client, chain: str, form: Form) -> list[tuple[Case, Heard]]:
    """All of a form's cases at once."""
    todo, client = cases(chain, form), service.client()
    with ThreadPoolExecutor(len(todo)) as threads:
        return list(zip(todo, threads.map(partial(ask, client, http), todo), strict=True))


def attempts(http: httpx.Client, job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every try at a job."""
    tries: list[dict[str, Any]] = http.get(f"/v1/jobs/{job['id']}/attempts").json()["data"]
    return tries


@pytest.mark.parametrize("form", FORMS)
def test_a_failure_is_told_as_what_it_is_and_costs_nothing(
    service: Stack, http: httpx.Client, form: Form
) -> None:
    """The same code in the answer, in the stream and in the job; what was said stays readable."""
    for case, heard in ask_all(service, http, "alone", form):
        failure = FAILURES[case.failure]
        about = f"{case}: {heard}"
        error = heard.job["error"]
        assert (heard.job["status"], error["code"]) == ("failed", failure.code), about
        assert heard.job["cost"]["credits"] == 0, about
        if form != "background":
            assert heard.code == failure.code, about
        if form == "held":
            assert heard.status == failure.status, about
        if form == "streamed":
            # What fails within a second still gets a status of its own.
            assert heard.status in (None, failure.status), about
            assert heard.text == ("Half a" if failure.midway else ""), about
            assert not failure.midway or heard.status is None, about
        [only] = attempts(http, heard.job)
        assert (only["model"], only["outcome"]) == (case.model, "failed"), about
        assert only["upstream_status"] == failure.answered, about
        assert only["error"]["code"] == failure.code, about
        assert (only["first_delta_ms"] is not None) == failure.midway, about


@pytest.mark.parametrize("form", FORMS)
def test_a_fallback_answers_at_its_own_price_unless_text_was_read(
    service: Stack, http: httpx.Client, form: Form
) -> None:
    """Callers see the model they asked for, and can see who answered."""
    for case, heard in ask_all(service, http, "chain", form):
        failure = FAILURES[case.failure]
        about = f"{case}: {heard}"
        if form == "streamed" and failure.midway:
            assert (heard.text, heard.code) == ("Half a", failure.code), about
            assert heard.job["cost"]["credits"] == 0, about
            continue
        assert (heard.text, heard.code) == ("Here I am", None), about
        assert (heard.job["model"], heard.job["served_model"]) == (case.model, "backup"), about
        assert heard.job["cost"] == {"credits": PRICE, "estimated": False}, about
        assert heard.used == ("backup" if form == "held" else None), about
        first, second = attempts(http, heard.job)
        assert (first["model"], first["outcome"]) == (case.model, "fell_back"), about
        assert (first["upstream_status"], first["error"]["code"]) == (
            failure.answered,
            failure.code,
        ), about
        assert (second["model"], second["outcome"], second["upstream_status"]) == (
            "backup",
            "completed",
            200,
        ), about
        assert second["usage"]["total_tokens"] == 150, about


def test_in_the_end_the_books_are_in_order(service: Stack, http: httpx.Client) -> None:
    """Nothing is held, and what was charged is what the jobs say they cost."""
    spent, after = 0.0, None
    while True:
        query: dict[str, Any] = {"limit": 100} | ({"after": after} if after else {})
        page = http.get("/v1/jobs", params=query).json()
        spent += sum(job["cost"]["credits"] for job in page["data"])
        after = page["last_id"]
        if not page["has_more"]:
            break
    balance = http.get("/v1/credits/balance").json()

    assert balance["held_credits"] == 0
    assert balance["remaining_credits"] == pytest.approx(GRANTED - spent)


def test_a_model_that_asked_for_a_pause_is_left_alone(service: Stack, http: httpx.Client) -> None:
    """Its fallback answers at the first attempt."""
    case = Case("chain", "openai", "429", "held")
    client = service.client()
    ask(client, http, case)
    heard = ask(client, http, case)

    [only] = attempts(http, heard.job)
    assert (heard.text, only["model"]) == ("Here I am", "backup")
