"""The jobs in this process's hands: those it claims, those it runs, those it has yet to settle."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from shared.leases import Held
from workers.running import Running, Why


class Hands:
    """Knows them all, so that nothing the row says we hold is ever forgotten."""

    def __init__(self) -> None:
        self.running: dict[str, Running] = {}
        """The attempts under way, by job, from the claim's answer on."""
        self.empty = asyncio.Event()
        self.empty.set()
        self._taken: set[str] = set()
        self._unknown: list[Held] = []

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._taken

    def __len__(self) -> int:
        return len(self._taken)

    @contextmanager
    def holding(self, job_id: str) -> Iterator[None]:
        """This job is ours, from before it is claimed until the context ends."""
        self._taken.add(job_id)
        self.empty.clear()
        try:
            yield
        finally:
            self.running.pop(job_id, None)
            self._taken.remove(job_id)
            if not self._taken:
                self.empty.set()

    def cancel(self, job_id: str) -> None:
        """Stop a job's upstream call, if it runs here."""
        if job_id in self.running:
            self.running[job_id].stop("cancelled")

    def stop_all(self, why: Why) -> None:
        """Stop every upstream call of the process."""
        for running in self.running.values():
            running.stop(why)

    def unfenced(self) -> list[str]:
        """Jobs that count on us; those of a lease we gave up only wait to be settled."""
        return [job_id for job_id, running in self.running.items() if running.why != "fenced"]

    def compare(self, held: Sequence[Held]) -> None:
        """Take note of what the rows said we hold: stop what should stop."""
        self._unknown = [one for one in held if one.job_id not in self]
        for one in held:
            if one.stop:
                self.cancel(one.job_id)

    def unknown(self) -> list[Held]:
        """What the rows said we hold, and nobody here knew of, then or now.

        The answer to its claim was lost, or whoever had it is gone. What was only claimed or
        settled while the rows were read is not among them, or is no longer ours by its row.
        """
        return [one for one in self._unknown if one.job_id not in self]
