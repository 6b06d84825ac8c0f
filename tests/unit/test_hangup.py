"""SIGHUP: the catalogue anew, unless the terminal is gone."""

import os
import pty
import signal
import sys

PROGRAM = """
import signal
from shared.hangup import on_hangup
on_hangup(lambda: print("reload", flush=True))
print("ready", flush=True)
while True:
    signal.pause()
"""


def read_until(terminal: int, word: bytes) -> None:
    """Read what a program prints until it has said the word."""
    said = b""
    while word not in said:
        said += os.read(terminal, 1_000)


def test_a_closed_terminal_stops_what_was_started_in_it() -> None:
    """While it is open, the signal means what it means to a service."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", PROGRAM])
    read_until(terminal, b"ready")

    os.kill(pid, signal.SIGHUP)
    read_until(terminal, b"reload")
    os.close(terminal)

    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
