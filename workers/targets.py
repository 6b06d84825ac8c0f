"""Which model an attempt calls: the job's own, or the first fallback that is not failing."""

import time
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import starmap
from typing import Any, Final, NamedTuple

from redis.asyncio import Redis

from shared import breakers, features
from shared.catalog import Catalog, Model
from shared.errors import (
    ModelNotFound,
    ModelUnavailable,
    UpstreamCredentials,
    UpstreamError,
    UpstreamRateLimited,
    UpstreamRejected,
    WorkerLost,
)
from shared.tables import Job

FRESH: Final = 2.0
"""Seconds for which what a breaker said is taken to be so still."""
ELSEWHERE_AFTER: Final = timedelta(seconds=2)
"""When a job comes again whose model this worker does not know."""
REMEMBERED: Final = 1_000
"""Models past which those that were not called lately are forgotten."""
WITHOUT_CREDENTIALS: Final = timedelta(seconds=60)
"""How long an upstream that refuses our key is left alone."""


class Target(NamedTuple):
    """A model that may answer a job, and its place in the job's chain; 0 is what was asked for."""

    place: int
    model: Model


def chain(catalog: Catalog, job: Job, request: Mapping[str, Any]) -> list[Target]:
    """The models that may answer a job: those whose prices it was accepted at, or, of a free one,
    those that the catalogue has for it now.

    What has left the catalogue is left out. Raises `ModelUnavailable` when all have: another
    worker may have read another catalogue.
    """
    found: list[Target] = []
    with suppress(ModelNotFound):
        if job.prices is None:
            models = catalog.chain(job.model, features.used(request))
            found += starmap(Target, enumerate(models))
    for place, name in enumerate(job.prices or ()):
        with suppress(ModelNotFound):
            found.append(Target(place, catalog.find(name)))
    if not found:
        raise ModelUnavailable(
            f"The catalogue of this worker has no model that {job.model!r} was accepted for.",
            retry_after=ELSEWHERE_AFTER,
        )
    return found


def at_hand(targets: Sequence[Target], turn: int, upstreams: Container[str]) -> list[Target]:
    """Those whose turn it is, or comes next, and whose upstream can be called from here."""
    return [
        target for target in targets if target.place >= turn and target.model.upstream in upstreams
    ]


class Breakers:
    """What this process knows of the breakers of all models; the rest it asks Redis.

    While all goes well a model costs a question and a report every other second: calls that were
    answered are counted here, and told with the next report, or with the next failure at once.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._known: dict[str, tuple[breakers.Answer, float]] = {}
        self._answered: dict[str, int] = {}
        """Calls that went well, of which nobody has been told yet."""
        self._telling: set[str] = set()
        """Models of which a call that went well is being told: others that do can wait."""

    async def first(self, targets: Sequence[Target]) -> int:
        """The index of the first that may be called; the last may always be."""
        for index, target in enumerate(targets[:-1]):
            if await self._lets_through(target.model.name):
                return index
        return len(targets) - 1

    async def _lets_through(self, name: str) -> bool:
        known = self._fresh(name) or await breakers.ask(self._redis, name)
        if not known.lets_through:
            self._keep(name, known, min(FRESH, known.good_for.total_seconds()))
        elif known.clean:
            self._keep(name, known, FRESH)
        return known.lets_through

    async def heard(self, name: str, error: BaseException | None, *, age: timedelta) -> None:
        """A call that began so long ago was answered, or failed; what is no sign is passed over."""
        verdict = judge(error)
        if verdict is None:
            return
        known = self._fresh(name)
        answered = self._answered.pop(name, 0) + (not verdict.failed)
        clean = name in self._telling or (known is not None and known.clean)
        if clean and not verdict.failed:
            self._answered[name] = answered
            return
        self._known.pop(name, None)
        failed, pause = verdict
        telling = set() if failed else {name}
        self._telling |= telling
        try:
            clean = await breakers.report(
                self._redis, name, answered=answered, failed=failed, age=age, pause=pause
            )
        finally:
            self._telling -= telling
        if clean:
            self._keep(name, breakers.CLEAN, FRESH)

    def _fresh(self, name: str) -> breakers.Answer | None:
        known, until = self._known.get(name, (None, 0.0))
        return known if time.monotonic() < until else None

    def _keep(self, name: str, known: breakers.Answer, seconds: float) -> None:
        if len(self._known) > REMEMBERED:  # of a pattern, callers name any number of models
            self._known = {each: it for each, it in self._known.items() if self._fresh(each)}
            self._answered = {each: n for each, n in self._answered.items() if each in self._known}
        if self._fresh(name) is None:
            self._known[name] = known, time.monotonic() + seconds


class Verdict(NamedTuple):
    """What the end of a call says about its upstream."""

    failed: bool
    pause: timedelta = timedelta()
    """For how long nobody should call it."""


def judge(error: BaseException | None) -> Verdict | None:
    """What an attempt's failure, or its success, says about its upstream; None: nothing.

    An upstream that finds fault with a request is well; our own refusal to send one says nothing.
    """
    match error:
        case None:
            return Verdict(failed=False)
        case UpstreamRejected(upstream_status=status):
            return None if status is None else Verdict(failed=False)
        case UpstreamCredentials():
            return Verdict(failed=True, pause=WITHOUT_CREDENTIALS)
        case UpstreamRateLimited(retry_after=timedelta() as pause):
            return Verdict(failed=True, pause=pause)
        case WorkerLost():
            return None
        case UpstreamError():
            return Verdict(failed=True)
        case _:
            return None
