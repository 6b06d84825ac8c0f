"""What a running attempt keeps of what its model says."""

import tracemalloc
from typing import Any, cast

from shared.jobs import Lease
from shared.leases import Claim
from shared.tables import Job
from workers.publisher import Publisher, Unread
from workers.running import Running
from workers.upstreams.protocol import Delta, line

WORDS = 500


def test_a_word_that_is_kept_takes_about_its_own_size() -> None:
    """Answers of a thousand jobs are in a worker's memory, word by word, until they end."""
    job = Job(account_id="acct_1", request_id="req_1", model="test")
    running = Running(Claim(Lease(job.id, 1, "wkr_1"), job, b"{}"))
    running.log = Unread(cast(Publisher, None), job.id, 1)
    tracemalloc.start()
    try:
        for number in range(WORDS):
            choices: list[dict[str, Any]] = [{"index": 0, "delta": {"content": f"{number} "}}]
            running.hear([Delta(choices, [line({"choices": choices})])])
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(running.log.lines) == WORDS
    assert kept / WORDS < 512
