"""What follows a failed attempt."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.catalog import Model
from shared.errors import (
    Fault,
    InternalError,
    ModelNotFound,
    ModelUnavailable,
    ServiceError,
    UpstreamCredentials,
    UpstreamDisconnected,
    UpstreamOverloaded,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    WorkerLost,
)
from shared.outcomes import Failed, Retry, Said
from shared.tables import Attempt
from workers.retry import after_failure, in_all
from workers.targets import Target, Verdict, judge


def model(name: str, window: int = 8192) -> Model:
    """A model of the catalogue."""
    return Model(name=name, upstream="u", context_window=window, max_output_tokens=10, free=True)


ALONE = [Target(0, model("a"))]
CHAIN = [Target(0, model("a")), Target(1, model("b", 4096)), Target(2, model("c", 100_000))]
BUSY = UpstreamOverloaded("busy")
NO = UpstreamRejected("no such tool")
CREDENTIALS = UpstreamCredentials("not our key")
TOO_LONG = UpstreamRejected("too long", code="context_length_exceeded")
UNKNOWN = UpstreamRejected("no such model")
UNKNOWN.upstream_status = 404


def slow_down(seconds: float | None = None) -> ServiceError:
    """A 429, with this Retry-After."""
    pause = None if seconds is None else timedelta(seconds=seconds)
    return UpstreamRateLimited("slow down", retry_after=pause)


def decide(
    error: ServiceError,
    tries: int = 1,
    max_attempts: int = 3,
    committed: bool = False,
    chance: float = 0.5,
    targets: Sequence[Target] = ALONE,
    called: int = 0,
) -> Retry | Failed:
    """`after_failure` with the dice in hand; 0.5 is no jitter."""
    return after_failure(
        error,
        tries=tries,
        max_attempts=max_attempts,
        committed=committed,
        targets=targets,
        called=called,
        chance=lambda: chance,
    )


@pytest.mark.parametrize(
    "error, tries, committed, again",
    [
        (UpstreamDisconnected("it hung up"), 1, False, True),
        (UpstreamDisconnected("it hung up"), 2, False, True),
        (UpstreamDisconnected("it hung up"), 3, False, False),
        (UpstreamDisconnected("it hung up"), 4, False, False),
        (UpstreamTimeout("silence"), 1, False, True),
        (UpstreamTimeout("silence"), 1, True, False),
        (BUSY, 1, False, True),
        (slow_down(), 2, False, True),
        (slow_down(600), 2, False, True),
        (WorkerLost("it died"), 1, False, True),
        (NO, 1, False, False),
        (UNKNOWN, 1, False, False),
        (TOO_LONG, 1, False, False),
        (CREDENTIALS, 1, False, False),
        (ServiceError("our own fault"), 1, False, False),
    ],
)
def test_a_failure_is_tried_again_only_where_it_helps_and_nobody_has_seen_text(
    error: ServiceError, tries: int, committed: bool, again: bool
) -> None:
    """Retryable, attempts left, and no live reader who has seen text."""
    decision = decide(error, tries, committed=committed)

    assert isinstance(decision, Retry if again else Failed)
    assert decision.fault == Fault.of(error)


AGAIN, FAIL = "again", "fail"


@pytest.mark.parametrize(
    "error, called, tries, then",
    [
        (BUSY, 0, 1, AGAIN),
        (BUSY, 0, 3, 1),
        (BUSY, 1, 3, 2),
        (BUSY, 2, 2, AGAIN),
        (BUSY, 2, 3, FAIL),
        (slow_down(), 0, 1, AGAIN),
        (slow_down(5), 0, 1, AGAIN),
        (slow_down(5), 0, 3, 1),
        (slow_down(6), 0, 1, 1),
        (slow_down(6), 2, 1, AGAIN),
        (CREDENTIALS, 0, 1, 1),
        (CREDENTIALS, 2, 1, FAIL),
        (NO, 0, 1, FAIL),
        (NO, 1, 1, 2),
        (UNKNOWN, 0, 1, 1),
        (TOO_LONG, 0, 1, 2),
        (TOO_LONG, 1, 1, 2),
        (ModelNotFound("gone"), 0, 1, FAIL),
        (InternalError("ours"), 0, 1, FAIL),
    ],
)
def test_the_next_model_is_tried_where_it_may_do_better(
    error: ServiceError, called: int, tries: int, then: str | int
) -> None:
    """At once, and only when the same one is not worth another try or another wait."""
    decision = decide(error, tries, targets=CHAIN[called:])

    match decision:
        case Retry(target=None):
            assert then == AGAIN
        case Retry(target=place, after=after):
            assert (place, after) == (then, timedelta())
        case Failed():
            assert then == FAIL


def test_text_that_was_read_is_followed_by_nothing() -> None:
    """Not by another model either."""
    assert isinstance(decide(BUSY, committed=True, targets=CHAIN), Failed)


@pytest.mark.parametrize("tries, kind", [(1, Retry), (3, Failed)])
def test_a_model_that_was_passed_over_is_waited_for_when_no_other_can(
    tries: int, kind: type[Retry | Failed]
) -> None:
    """What a fallback refuses is no fault of the caller, who asked another model."""
    decision = decide(NO, tries, targets=CHAIN[:2], called=1)

    assert isinstance(decision, kind)
    assert (decision.fault.status, decision.fault.code) == (503, "model_unavailable")
    assert not isinstance(decision, Retry) or decision.target is None


def test_without_any_model_at_hand_another_worker_may_have_one() -> None:
    """It is tried again, and not passed on."""
    decision = decide(ModelUnavailable("no key"), targets=[])

    assert isinstance(decision, Retry)
    assert decision.target is None


def tried(number: int, name: str, outcome: str | None, error: ServiceError | None) -> Attempt:
    """An attempt's row."""
    status = getattr(error, "upstream_status", None)
    return Attempt(
        job_id="j", number=number, worker_id="w", model=name, outcome=outcome,
        upstream_status=status, error=asdict(Fault.of(error)) if error else None,
    )  # fmt: skip


@pytest.mark.parametrize("rejected, code", [(True, "upstream_overloaded"), (False, "gone")])
def test_a_chain_that_failed_names_every_failure(rejected: bool, code: str) -> None:
    """What a fallback cannot do was not asked of it: then the first model's failure counts."""
    rows = [
        tried(1, "a", "retry", UNKNOWN),
        tried(2, "a", "fell_back", BUSY),
        tried(3, "b", None, None),
    ]
    last = Failed(Fault(502, "gone", "t", "Gone."), Said(model="b", upstream_status=502))

    fault = in_all(last, rows, rejected=rejected)

    assert fault.code == code
    assert fault.body()["attempts"] == [
        {"model": "a", "status": 404, "code": "upstream_rejected"},
        {"model": "a", "status": None, "code": "upstream_overloaded"},
        {"model": "b", "status": 502, "code": "gone"},
    ]


@pytest.mark.parametrize(
    "error, failed, pause",
    [
        (None, False, 0),
        (UNKNOWN, False, 0),
        (BUSY, True, 0),
        (UpstreamTimeout("silence"), True, 0),
        (UpstreamDisconnected("it hung up"), True, 0),
        (slow_down(), True, 0),
        (slow_down(7), True, 7),
        (CREDENTIALS, True, 60),
    ],
)
def test_a_breaker_hears_of_what_the_upstream_did(
    error: ServiceError | None, failed: bool, pause: int
) -> None:
    """A request that was refused was answered; a pause that is asked for is given."""
    assert judge(error) == Verdict(failed, timedelta(seconds=pause))


@pytest.mark.parametrize("error", [NO, WorkerLost("x"), InternalError("x"), ValueError("x")])
def test_a_breaker_hears_nothing_of_what_was_not_the_upstreams(error: Exception) -> None:
    """What was not even sent, our own bugs, and workers that died."""
    assert judge(error) is None


@pytest.mark.parametrize(
    "tries, chance, seconds",
    [(1, 0.5, 0.5), (2, 0.5, 1.0), (3, 0.5, 2.0), (1, 0.0, 0.4), (1, 1.0, 0.6), (9, 1.0, 30.0)],
)
def test_each_pause_is_twice_the_last_give_or_take_a_fifth(
    tries: int, chance: float, seconds: float
) -> None:
    """Half a second, doubled, jittered, never over half a minute."""
    decision = decide(UpstreamTimeout("silence"), tries, max_attempts=10, chance=chance)

    assert isinstance(decision, Retry)
    assert decision.after.total_seconds() == pytest.approx(seconds)


@pytest.mark.parametrize("asked, given", [(7, 7), (0, 0), (600, 60), (-5, 0)])
def test_an_upstream_that_names_a_pause_gets_it(asked: int, given: int) -> None:
    """Its word counts instead of ours, up to a minute."""
    error = UpstreamRateLimited("slow down", retry_after=timedelta(seconds=asked))

    decision = decide(error)

    assert isinstance(decision, Retry)
    assert decision.after == timedelta(seconds=given)


@given(st.integers(1, 10**6), st.floats(0, 1))
def test_no_number_of_attempts_breaks_the_arithmetic(tries: int, chance: float) -> None:
    """A pause is always between nothing and half a minute."""
    decision = decide(UpstreamTimeout("silence"), tries, max_attempts=10**9, chance=chance)

    assert isinstance(decision, Retry)
    assert timedelta(0) < decision.after <= timedelta(seconds=30)
