"""Clients of every form that submit jobs, follow them through whatever happens, and keep a record.

A caller never gives up by itself: what was not answered it asks again at the other api, a request
with the same `Idempotency-Key` or, as an SDK does, without any, a stream after the last id it saw.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from shared import ids
from tests.faults.reading import DRAINING, Reading, said
from tests.frames import Framing

COMPLETIONS, JOBS, BATCHES = "/v1/chat/completions", "/v1/jobs", "/v1/batches"
ENDED = {"completed", "failed", "cancelled", "expired"}
PAUSES = (0.1, 3.0)
"""Seconds between two tries, first and longest."""
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=3, sock_read=15)


@dataclass
class Asked:
    """What one job was asked to say; no other job was asked the same."""

    nonce: str
    text: str
    model: str


@dataclass
class Record:
    """What one caller did and saw."""

    form: str
    key: str
    asked: list[Asked]
    job_ids: list[str] = field(default_factory=list)
    """As it was told them, in the order of what it asked."""
    reading: Reading = field(default_factory=Reading)
    answers: dict[str, tuple[str, str]] = field(default_factory=dict)
    """By job, the status it was told and the text it was given."""
    told: list[str] = field(default_factory=list)
    """Codes of failures it was told of."""
    live: bool = False
    """Its request was a plain one: it hangs on its readers."""
    streamed: bool = False
    keyless: bool = False
    """What it sends again can only be told by its content, and by an SDK's word."""
    cancelled: bool = False
    """It asked for the job to be cancelled."""
    deserted: bool = False
    """It left for good."""
    expires_at: int | None = None
    longest_absence: float = 0.0
    """Seconds without a connection."""
    replays: int = 0
    finished: bool = False
    """It got to its end; what it did not get to is what it was still waiting for."""
    wrong: list[str] = field(default_factory=list)

    def accept(self, job_ids: Sequence[str], *, replayed: bool) -> None:
        """Note which jobs the request became."""
        self.replays += replayed
        bare = [ids.bare(job_id) or job_id for job_id in job_ids]
        if self.job_ids and self.job_ids != bare:
            self.wrong.append(f"key {self.key} led to {self.job_ids}, then to {bare}")
        self.job_ids = bare


class Caller:
    """One client: it talks to one api until that fails it, then to the next."""

    def __init__(
        self, session: aiohttp.ClientSession, urls: Sequence[str], record: Record, seed: str
    ) -> None:
        self.record = record
        self.chance = random.Random(seed)
        self._session = session
        self._urls = urls
        self._turn = self.chance.randrange(len(urls))
        self._away_since: float | None = None
        self._submissions = 0

    @asynccontextmanager
    async def ask(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, **request: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One try, at the api whose turn it is."""
        url = self._urls[self._turn % len(self._urls)] + path
        if method == "POST":
            headers = {**self._known_by(), **(headers or {})}
        async with self._session.request(
            method, url, headers=headers, timeout=TIMEOUT, **request
        ) as response:
            yield response

    async def insist(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, **request: Any
    ) -> tuple[int, Any, Any]:
        """Status, headers and JSON of an answer that is not a passing refusal."""
        async for _ in self._tries():
            try:
                async with self.ask(method, path, headers, **request) as response:
                    body = await self._body(response)
            except (aiohttp.ClientError, OSError, TimeoutError):
                self._depart()
                continue
            if not _passing(response.status, body):
                self._arrive()
                return response.status, response.headers, body
        raise AssertionError("tries do not end")

    async def post(
        self, path: str, body: Any, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any, Any]:
        """Submit, as often as it takes; the jobs it became are in the record."""
        status, answered, found = await self.insist("POST", path, headers, json=body)
        if status >= 400 and "job_id" not in found["error"]:
            self.record.wrong.append(f"refused with {status}: {found}")
            raise Refused
        listed = found["data"] if isinstance(body, list) else None
        job_ids = [job["id"] for job in listed] if listed else [answered["x-job-id"]]
        self.record.accept(job_ids, replayed="idempotency-replayed" in answered)
        return status, answered, found

    async def stream(self, path: str, *, body: Any = None, leave_after: int | None = None) -> None:
        """Read to the end, or leave after so many pieces of text."""
        self._depart()  # a job may wait for its reader while a request for it waits for an answer
        async for _ in self._tries():
            try:
                if await self._read_on(path, body, leave_after):
                    return
            except (aiohttp.ClientError, OSError, TimeoutError):
                pass
            self._depart()

    async def wait_for(self, job_id: str) -> None:
        """Poll a job until it has ended, and keep what it came to."""
        while True:
            status, _, body = await self.insist(
                "GET", f"{COMPLETIONS}/{ids.COMPLETION}{job_id}", {"Prefer": "wait=5"}
            )
            if status != 200:
                self.record.wrong.append(f"a look at {job_id} found {status}: {body}")
                return
            if body["status"] in ENDED:
                self.record.answers[job_id] = (body["status"], said(body))
                return

    async def results_of(self, batch_id: str) -> list[Any]:
        """The lines of a batch as they end, at one api and the other, until it has ended."""
        lines: list[Any] = []
        async for _ in self._tries():
            path = f"{BATCHES}/{batch_id}/results?after={len(lines)}"
            try:
                async with self.ask("GET", path) as response:
                    text = await response.text()
            except (aiohttp.ClientError, OSError, TimeoutError):
                continue
            if response.status == 200:
                lines += map(orjson.loads, text.splitlines())
                if response.headers["x-incomplete"] == "false":
                    break
        return lines

    async def stay_away(self, seconds: float) -> None:
        """Have no connection for so long, and then come to the other api."""
        self._depart()
        self._turn += 1
        await asyncio.sleep(seconds)

    def twin(self) -> "Caller":
        """The same caller at the other api."""
        twin = Caller(self._session, self._urls, self.record, self.record.key)
        twin._turn = self._turn + 1
        return twin

    async def _read_on(self, path: str, body: Any, leave_after: int | None) -> bool:
        """Whether this connection brought the end, or the moment to leave."""
        reading = self.record.reading
        async with self._opened(path, body) as response:
            if response.status == 204:  # it had everything
                return True
            if response.status != 200:
                return await self._refused(response)
            self._arrive()
            replayed = "idempotency-replayed" in response.headers
            self.record.accept([response.headers["x-job-id"]], replayed=replayed)
            framing, reading.over = Framing(), False
            async for piece in response.content.iter_any():
                for frame in framing.feed(piece):
                    reading.take(frame)
                if reading.over:
                    return reading.ended is not None
                if leave_after is not None and len(reading.pieces) >= leave_after:
                    return True
        if path == COMPLETIONS:  # there an SDK would take it for the end
            reading.wrong.append(f"the stream ended without a word after {reading.seq}")
        return False

    def _opened(self, path: str, body: Any) -> Any:
        reading, record = self.record.reading, self.record
        if not record.job_ids:
            return self.ask("POST", path, json=body)
        where = {} if reading.seq is None else {"Last-Event-ID": str(reading.seq)}
        if path == COMPLETIONS:
            path = f"{COMPLETIONS}/{ids.COMPLETION}{record.job_ids[0]}?stream=true"
            if where and self.chance.random() < 0.5:
                path, where = f"{path}&starting_after={reading.seq}", {}
        return self.ask("GET", path, where)

    def _known_by(self) -> dict[str, str]:
        """What tells that a submission came before."""
        if not self.record.keyless:
            return {"Idempotency-Key": self.record.key}
        self._submissions += 1
        return {"x-stainless-retry-count": str(self._submissions - 1)}

    async def _refused(self, response: aiohttp.ClientResponse) -> bool:
        body = await self._body(response)
        error = body.get("error", {})
        if "job_id" in error and error["code"] != DRAINING:
            self._arrive()
            self.record.accept([error["job_id"]], replayed=False)
            self.record.reading.take_error(error["code"])
            return self.record.reading.ended is not None
        if _passing(response.status, body):
            return False
        self.record.wrong.append(f"a stream was refused with {response.status}: {body}")
        raise Refused

    async def _body(self, response: aiohttp.ClientResponse) -> Any:
        """What an answer says; one that is not JSON is wrong, and as good as none."""
        text = await response.read()
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            self.record.wrong.append(f"answered {response.status} with {text[:200]!r}")
            raise aiohttp.ClientPayloadError from None

    async def _tries(self) -> AsyncIterator[None]:
        pause, longest = PAUSES
        while True:
            yield
            self._turn += 1
            await asyncio.sleep(pause * self.chance.uniform(0.5, 1.5))
            pause = min(pause * 2, longest)

    def _depart(self) -> None:
        if self._away_since is None:
            self._away_since = time.monotonic()

    def _arrive(self) -> None:
        if self._away_since is not None:
            away = time.monotonic() - self._away_since
            self.record.longest_absence = max(self.record.longest_absence, away)
            self._away_since = None


class Refused(Exception):
    """An answer that no second try would change; it is in the record."""


def _passing(status: int, body: Any) -> bool:
    """Whether a refusal says "not now" or "not here"; any other that names a job tells its end."""
    error = body.get("error", {}) if isinstance(body, dict) else {}
    if status not in (409, 429, 502, 503, 504):
        return False
    return "job_id" not in error or error["code"] == DRAINING


def body_for(record: Record, number: int = 0, **more: Any) -> dict[str, Any]:
    """The request for one of a record's texts."""
    asked = record.asked[number]
    return {"model": asked.model, "messages": [{"role": "user", "content": asked.text}], **more}
