"""The processes of `sluice up`: honcho's manager, made orderly on the way out and free of orphans.

`up` starts one watcher per child (a fork, honcho's way), and each watcher starts the child itself.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import honcho.manager
from honcho.process import Popen, Process

from shared.hangup import has_terminal

SIGNALS: Final = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
PR_SET_PDEATHSIG: Final = 1
KILL_WAIT: Final = 15
"""Seconds after the first child ended until the rest is killed; a worker drains for five."""
ECHO: Final = 1.0
"""Seconds in which a second signal is taken for the first one."""
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class Child(Process):  # type: ignore[misc]  # honcho has no types
    """A child that dies with its watcher, as the watcher dies with `up`, even by kill -9."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._parent = os.getpid()

    def run(self, events: Any = None, ignore_signals: bool = False) -> None:
        """In the watcher: start the child, relay its lines, tell how it ended."""
        _die_with(self._parent)
        self._child_ctor = partial(Popen, shell=False, preexec_fn=partial(_set_up, os.getpid()))
        super().run(events, ignore_signals)


class Children(honcho.manager.Manager):  # type: ignore[misc]
    """Runs all children until one ends or somebody says stop; the `ground` outlives the others.

    SIGHUP is passed on to those that `reload` by it, in their order, unless it says that the
    terminal is gone.
    """

    def __init__(
        self, *, ground: Collection[str], reload: Sequence[str], beside: Callable[[], None]
    ) -> None:
        super().__init__()
        self._process_ctor = Child
        self._ground = ground
        self._reload = reload
        self._had_terminal = has_terminal()
        self._beside = beside
        self._terminating = False
        self.fallen: list[str] = []
        """The children that ended by themselves, and so ended everything."""

    def add(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Have `loop` start this command; its lines are shown behind its name."""
        self.add_process(name, list(command), env=dict(environment))

    def loop(self) -> None:
        """Start the children, call `beside` in a thread, and return when all have ended."""
        honcho.manager.KILL_WAIT = KILL_WAIT
        # Signals are waited for in a thread: a handler could interrupt the loop in mid-print, and
        # honcho's cannot cope with one that comes before every child has started.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        super().loop()

    def terminate(self) -> None:
        """Ask all children to stop, and the ground once the others are gone."""
        if self._terminating:
            return
        self._terminating = True
        self.fallen = [name for name, child in self._processes.items() if "returncode" in child]
        threading.Thread(target=self._stop_in_order, daemon=True).start()

    def exit_code(self, name: str) -> int | None:
        """What a child ended with, negative for a signal; None while it runs."""
        code: int | None = self._processes[name].get("returncode")
        return code

    def _start(self) -> None:
        super()._start()
        # Threads only now, so that no watcher is forked from a process that has any.
        for work in (self._wait_for_signals, self._beside):
            threading.Thread(target=work, daemon=True).start()

    def _wait_for_signals(self) -> None:
        while (received := signal.sigwait(SIGNALS)) == signal.SIGHUP and not self._left_alone():
            self._pass_on(received)
        self.returncode = 128 + received
        while not self._all_started():
            time.sleep(0.05)
        self.terminate()
        # Whoever asks again is in a hurry, unless it is the same Ctrl-C, sent to process and group.
        hurried_from = time.monotonic() + ECHO
        while time.monotonic() < hurried_from:
            signal.sigwait(SIGNALS)
        self.kill()

    def _left_alone(self) -> bool:
        """Whether the terminal that this was started in is gone."""
        return self._had_terminal and not has_terminal()

    def _pass_on(self, number: int) -> None:
        for child in map(self._processes.__getitem__, self._reload):
            if "pid" in child and "returncode" not in child:
                with suppress(ProcessLookupError):
                    os.kill(child["pid"], number)

    def _stop_in_order(self) -> None:
        children = self._processes.items()
        ground = [child for name, child in children if name in self._ground]
        others = [child for name, child in children if name not in self._ground]
        for floor in (others, ground):
            for child in floor:
                if "returncode" not in child:
                    self._procmgr.terminate(child["pid"])
            for child in floor:
                child["process"].join()


def _set_up(parent: int) -> None:
    """Between fork and exec: undo what the child would inherit, and tie it to its watcher."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    _die_with(parent)


def _die_with(parent: int) -> None:
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we could ask
            os._exit(1)
