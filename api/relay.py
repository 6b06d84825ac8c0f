"""A job's entries as frames: OpenAI's chunks, or the named events of the native view."""

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

from api import sse
from api.following import FROM_START, Follower
from api.front import Front
from api.hub import Bell
from api.wire.objects import fault, job_object
from shared import jobs, streams
from shared.errors import Draining, Fault, Unavailable
from shared.lifecycle import JobStatus
from shared.streams import DELTAS, END, RETRYING, Entry
from shared.tables import Job

RESTARTED: Final = Fault(
    503,
    "stream_restarted",
    "server_error",
    "The worker was lost and the job began anew: read the stream again from the start.",
    retryable=True,
)
DRAINING: Final = Fault.of(Draining("This server is about to stop; the job goes on. Ask again."))


async def chunks(front: Front, job: Job, *, after: int, bell: Bell | None) -> AsyncGenerator[bytes]:
    """The `chat.completion.chunk`s after a number, then `[DONE]`.

    Yields nothing (`b""`) now and then while it waits. `bell`: it has listened to the job since
    before it was committed; None: that was submitted earlier.
    Raises `StreamFailed` when the job did not complete, or began anew after this reader had seen
    text, or when this process is about to stop.
    """
    frames = sse.ChunkFrames(job)
    follower = Follower(front.tx, front.hub, job, after=after, since=bell)
    shown = after > 0
    quiet = min(2.0, front.settings.heartbeat.total_seconds())
    with front.attendance.reading(job, anew=bell is None) as presence:
        async for entries in follower.entries(quiet):
            out = []
            for entry in entries if shown else streams.newest(entries):
                if entry.kind == DELTAS:
                    shown = True
                    out.append(frames.chunks(entry.first_seq, entry.deltas))
                elif entry.kind == RETRYING and shown:
                    yield b"".join(out)
                    # What was shown cannot be unsaid, and the new text would not follow on it.
                    raise sse.StreamFailed(RESTARTED, job, entry.seq)
                elif entry.kind == END:
                    presence.over = True
                    fields = entry.fields
                    if fields["status"] != JobStatus.COMPLETED:
                        yield b"".join(out)
                        raise sse.StreamFailed(fault(fields["status"], fields), job, entry.seq)
                    out.append(_done(frames, job, entry.seq, fields["usage"]))
            yield b"".join(out)
            if front.draining and not presence.over:
                raise sse.StreamFailed(DRAINING, job)


def _done(frames: sse.ChunkFrames, job: Job, seq: int, usage: Mapping[str, Any] | None) -> bytes:
    if job.include_usage and usage:
        return frames.usage(seq, usage) + sse.DONE
    # Numbered, so that a browser that reconnects can be told to stay away.
    return b"id: %d\n%b" % (seq, sse.DONE)


async def events(front: Front, job: Job, *, after: int) -> AsyncGenerator[bytes]:
    """The native events after a number; the last carries the final job object.

    They break off when this process is about to stop.
    """
    follower = Follower(front.tx, front.hub, job, after=after)
    quiet = min(2.0, front.settings.heartbeat.total_seconds())
    with front.attendance.reading(job, anew=True) as presence:
        begun = after != FROM_START
        if not begun:
            yield sse.RETRY + sse.event_frame("job.queued", {"job": job_object(job)})
        async for entries in follower.entries(quiet):
            out = []
            for entry in entries:
                if entry.kind == DELTAS:
                    out += _delta_events(entry)
                elif entry.kind == END:
                    presence.over = True
                    try:
                        out.append(await _final_events(front, follower, entry))
                    except Unavailable:  # it comes back for the end, as an EventSource does
                        yield b"".join(out)
                        return
                else:
                    again = begun and entry.kind == RETRYING
                    begun, name = True, "job.retrying" if again else "job.started"
                    out.append(sse.event_frame(name, entry.fields, entry.seq))
            yield b"".join(out)
            if front.draining:
                return  # an EventSource comes back by itself, with the last id it saw


def _delta_events(entry: Entry) -> list[bytes]:
    return [
        b"id: %d\nevent: job.delta\ndata: %b\n\n" % (seq, delta)
        for seq, delta in enumerate(entry.deltas, entry.first_seq)
    ]


async def _final_events(front: Front, follower: Follower, entry: Entry) -> bytes:
    job = await front.tx.read(jobs.find, follower.job.account_id, follower.job.id)
    usage = b"" if job.usage is None else sse.event_frame("job.usage", job.usage)
    return usage + sse.event_frame(f"job.{job.status}", {"job": job_object(job)}, entry.seq)
