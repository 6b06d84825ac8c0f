"""What follows a failed attempt: the same model after a pause, the next one at once, or the end."""

import random
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final

from shared.errors import (
    ContextLengthExceeded,
    Fault,
    ModelUnavailable,
    ServiceError,
    UpstreamCredentials,
    UpstreamRejected,
)
from shared.outcomes import Failed, Retry
from shared.tables import Attempt
from workers.targets import Target

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 30.0
LONGEST_ASKED_PAUSE: Final = timedelta(seconds=60)
"""No upstream makes a job wait longer than this, whatever its Retry-After says."""
SHORT_PAUSE: Final = timedelta(seconds=5)
"""An upstream that asks for no more is waited for, even where there is another model."""
JITTER: Final = 0.2
DOUBLINGS: Final = 16


def after_failure(
    error: ServiceError,
    *,
    tries: int,
    max_attempts: int,
    committed: bool,
    targets: Sequence[Target],
    called: int = 0,
    chance: Callable[[], float] = random.random,
) -> Retry | Failed:
    """Decide after the `tries`-th attempt that counts; `chance` gives numbers from 0 to 1.

    `committed`: a reader who watches live has seen text and cannot unsee it. Then nothing follows.
    `targets` are the models whose turn it was or comes next, `called` the index of the one that
    failed; those before it were passed over because their breakers were open.
    """
    if committed:
        return Failed(Fault.of(error))
    following = _following(error, targets, called) if targets else None
    if following is None and called > 0 and isinstance(error, UpstreamRejected):
        # Not the caller's fault: the model that was asked for might take this, and will be back.
        first = targets[0].model.name
        error = ModelUnavailable(f"{first!r} fails just now, and no other model can take this.")
    fault = Fault.of(error)
    if error.retryable and tries < max_attempts:
        pause = _pause(error, tries, chance())
        if following is None or (error.retry_after or timedelta()) <= SHORT_PAUSE:
            return Retry(fault, after=pause)
    if following is None:
        return Failed(fault)
    return Retry(fault, after=timedelta(), target=following.place)


def _following(error: ServiceError, targets: Sequence[Target], called: int) -> Target | None:
    """The next model that may do better."""
    rest, failing = targets[called + 1 :], targets[called]
    if error.code == ContextLengthExceeded.code:
        window = failing.model.context_window
        return next((each for each in rest if each.model.context_window > window), None)
    if not _another_may_do_better(error, failing):
        return None
    return next(iter(rest), None)


def _another_may_do_better(error: ServiceError, failing: Target) -> bool:
    """A request that the model asked for refuses is wrong; one that a fallback refuses may not be.

    An upstream that answers 404 does not know the model: our catalogue is wrong, not the request.
    """
    if isinstance(error, UpstreamRejected):
        return failing.place > 0 or error.upstream_status == 404
    return error.retryable or isinstance(error, UpstreamCredentials)


def _pause(error: ServiceError, tries: int, chance: float) -> timedelta:
    if error.retry_after is not None:
        return min(max(error.retry_after, timedelta(0)), LONGEST_ASKED_PAUSE)
    pause = FIRST_PAUSE * 2 ** min(tries - 1, DOUBLINGS)
    spread = 1 + JITTER * (2 * chance - 1)
    return timedelta(seconds=min(pause * spread, LONGEST_PAUSE))


def in_all(failed: Failed, tries: Sequence[Attempt], *, rejected: bool) -> Fault:
    """What a job that has fallen back in vain fails with: its last failure, and a list of all.

    Where the last model only `rejected` what it was not asked for, the failure that led away from
    the first one counts. `tries` are the attempts' rows, this one's not yet completed.
    """
    fault = failed.fault
    told = [_told(each.model, each.upstream_status, each.error) for each in tries[:-1]]
    said = failed.said
    told.append({"model": said.model, "status": said.upstream_status, "code": fault.code})
    left = next((each.error for each in tries if each.outcome == "fell_back"), None)
    if rejected and left is not None:
        fault = Fault(**left)
    return fault.with_details(attempts=told)


def _told(model: str | None, status: int | None, error: dict[str, Any] | None) -> dict[str, Any]:
    return {"model": model, "status": status, "code": error["code"] if error else None}
