"""What follows a failed attempt."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import (
    Fault,
    ServiceError,
    UpstreamCredentials,
    UpstreamDisconnected,
    UpstreamOverloaded,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    WorkerLost,
)
from shared.outcomes import Failed, Retry
from workers.retry import after_failure


def decide(
    error: ServiceError,
    tries: int = 1,
    max_attempts: int = 3,
    spoke: bool = False,
    read_live: bool = False,
    chance: float = 0.5,
) -> Retry | Failed:
    """`after_failure` with the dice in hand; 0.5 is no jitter."""
    return after_failure(
        error,
        tries=tries,
        max_attempts=max_attempts,
        spoke=spoke,
        read_live=read_live,
        chance=lambda: chance,
    )


@pytest.mark.parametrize(
    "error, tries, spoke, read_live, again",
    [
        (UpstreamDisconnected("it hung up"), 1, False, False, True),
        (UpstreamDisconnected("it hung up"), 2, False, False, True),
        (UpstreamDisconnected("it hung up"), 3, False, False, False),
        (UpstreamDisconnected("it hung up"), 4, False, False, False),
        (UpstreamTimeout("silence"), 1, False, True, True),
        (UpstreamTimeout("silence"), 1, True, False, True),
        (UpstreamTimeout("silence"), 1, True, True, False),
        (UpstreamOverloaded("busy"), 1, False, True, True),
        (UpstreamRateLimited("slow down"), 2, True, False, True),
        (WorkerLost("it died"), 1, False, False, True),
        (UpstreamRejected("no such tool"), 1, False, False, False),
        (UpstreamCredentials("not our key"), 1, False, False, False),
        (ServiceError("our own fault"), 1, False, False, False),
    ],
)
def test_a_failure_is_tried_again_only_where_it_helps_and_nobody_has_seen_text(
    error: ServiceError, tries: int, spoke: bool, read_live: bool, again: bool
) -> None:
    """Retryable, attempts left, and no live reader who has seen text."""
    decision = decide(error, tries, spoke=spoke, read_live=read_live)

    assert isinstance(decision, Retry if again else Failed)
    assert decision.fault == Fault.of(error)


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
