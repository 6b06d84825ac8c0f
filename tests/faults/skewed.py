"""A `sluice` command whose wall clock is off: `python -m tests.faults.skewed worker 3600`.

Not libfaketime: it is no wheel, and it would move the clock of SQLite as well, which is part of the
process and stands for the one clock that every process shares.
"""

import sys
import time

if __name__ == "__main__":
    seconds = float(sys.argv.pop())
    true_time, true_time_ns = time.time, time.time_ns
    time.time = lambda: true_time() + seconds
    time.time_ns = lambda: true_time_ns() + round(seconds * 1e9)

    from cli.main import app  # only now: it must find no other clock

    app()
