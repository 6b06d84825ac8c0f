"""Rows for tests, made by the domain's own functions: accounts, workers, jobs in any status."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import Any, TypeVar

import orjson
from sqlmodel import Session

from shared import accounts, clock, db, deadlines, hints, ids, jobs, leases, sources
from shared.catalog import Catalog
from shared.chat import Transcript
from shared.errors import Fault
from shared.jobs import Submission
from shared.leases import Claim
from shared.lifecycle import JobStatus, Lane
from shared.outcomes import Cancelled, Completed, Failed, Outcome, Said
from shared.tables import Job

FAULT = Fault(502, "upstream_error", "upstream_error", "The model fell over.", retryable=True)
SAID = Said(
    response=b'{"choices":[]}', log=b'{"a":1}\n{"a":2}', first_seq=3, deltas=2, characters=9,
    usage={"total_tokens": 5}, first_delta_at=1_700_000_000_000, model="test", upstream_status=200,
)  # fmt: skip
BODY = b'{"messages":[]}'
R = TypeVar("R")
HOUR = 3_600_000
"""Milliseconds."""


class Sessions:
    """One database, and a transaction of it each time it is called; any thread may."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = db.connect(url)

    @contextmanager
    def __call__(self) -> Iterator[Session]:
        """A transaction that commits at the end."""
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    def at_once(self, *works: Callable[[Session], R]) -> list[R]:
        """Each in a thread and a transaction of its own, let go together; their results."""
        ready = Barrier(len(works))

        def run(work: Callable[[Session], R]) -> R:
            with self() as session:
                if not self.is_sqlite:
                    session.connection()
                    ready.wait(10)
                return work(session)

        with ThreadPoolExecutor(len(works)) as threads:
            return list(threads.map(run, works))

    @property
    def is_sqlite(self) -> bool:
        """Whether writers follow one another."""
        return self.engine.dialect.name == "sqlite"

    def close(self) -> None:
        """Let go of the database."""
        self.engine.dispose()


def submission(session: Session, /, *, account: str = "ours", **fields: Any) -> Submission:
    """A request of the account of that name, ready to submit."""
    account_id = accounts.ensure(session, account).id
    return Submission(**{
        "account_id": account_id, "request_id": "req_1", "model": "test", "body": BODY, **fields
    })  # fmt: skip


def submitted(session: Session, /, **fields: Any) -> Job:
    """A queued job."""
    return jobs.submit(session, submission(session, **fields))


def worker(session: Session, /, *models: str) -> str:
    """A live worker."""
    return leases.register(session, pid=1, slots=1, models=models)


def waiting(session: Session, /, lane: str = Lane.INTERACTIVE, most: int = 10) -> list[str]:
    """The jobs of a lane that wait for their turn, the oldest first."""
    found = sources.waiting(session, Lane(lane), most)
    ours = sources.next_of(session, Lane(lane), {source: source.waiting for source in found})
    return sorted(ours)[:most]


def taken(session: Session, /, job_id: str, by: str) -> Claim | None:
    """A job whose turn came, in the hands of that worker; None if it may not start."""
    hints.mark(session, [job_id], after_ms=HOUR)
    return leases.claim(session, job_id, by)


def abandon(session: Session, /, limit: int) -> list[Job]:
    """Give up what nobody reads, as the leader does when it hears nobody."""
    return deadlines.abandoned(session, deadlines.lapsing(session, 0, limit))


def no_models() -> Catalog:
    """A catalogue that knows none of the models that rows name."""
    return Catalog(upstreams={}, models={})


def claimed(session: Session, /, *, by: str | None = None, **fields: Any) -> Claim:
    """A job in the hands of a worker."""
    job = submitted(session, **fields)
    claim = leases.claim(session, job.id, by or worker(session))
    assert claim is not None
    return claim


def job_in(session: Session, /, status: JobStatus, **fields: Any) -> Job:
    """A job that came to this status by the ordinary way."""
    match status:
        case JobStatus.QUEUED:
            return submitted(session, **fields)
        case JobStatus.IN_PROGRESS:
            return claimed(session, **fields).job
        case JobStatus.EXPIRED:
            job = submitted(session, **fields, expires_at=clock.now() - 1)
            assert job in deadlines.expire(session, 1_000)
            return job
    claim = claimed(session, **fields)
    said = spoken(claim.job)
    outcomes: dict[JobStatus, Outcome] = {
        JobStatus.COMPLETED: Completed(said),
        JobStatus.FAILED: Failed(FAULT, said),
        JobStatus.CANCELLED: Cancelled(said),
    }
    ended = leases.settle(session, claim.lease, outcomes[status])
    assert ended is not None
    return ended


def ran_for(session: Session, /, milliseconds: int, **fields: Any) -> Job:
    """A job that completed just now, so long after it was started."""
    claim = claimed(session, **fields)
    claim.job.started_at = clock.now() - milliseconds
    session.flush()
    ended = leases.settle(session, claim.lease, Completed(spoken(claim.job)))
    assert ended is not None
    return ended


def spoken(job: Job, *words: str) -> Said:
    """What a model may say in an attempt at this job: log, result and counts tell the same."""
    deltas: list[dict[str, Any]] = [{"content": word} for word in words or ("Hi ", "there.")]
    chunks: list[dict[str, Any]] = [
        {"index": 0, "delta": delta, "finish_reason": None} for delta in deltas
    ]
    chunks[-1]["finish_reason"] = "stop"
    transcript = Transcript()
    for chunk in chunks:
        transcript.add([chunk])
    response = transcript.completion(id=ids.COMPLETION + job.id, created=1, model=job.model)
    return Said(
        response=orjson.dumps(response),
        log=b"\n".join(orjson.dumps({"choices": [chunk]}) for chunk in chunks),
        deltas=len(chunks),
        characters=transcript.characters,
        usage={"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5},
        model="test",
    )


def ended_at(session: Session, /, moment: int, **fields: Any) -> Job:
    """A job that was cancelled at that moment."""
    job = submitted(session, **fields)
    return jobs.move(session, job.id, JobStatus.CANCELLED, completed_at=moment)
