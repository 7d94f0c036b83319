"""Processes that end when they are told to and never outlive the one that started them."""

import ctypes
import os
import signal
import sys
import time
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, Self

if TYPE_CHECKING:
    import psutil

_PR_SET_PDEATHSIG = 1
_CLEAN_UP_S = 8
ECHO_S = 1.0  # after which a signal is a new one: the kernel tells of each thread of our parent that ends


class Interrupts:
    """SIGINT and SIGTERM as KeyboardInterrupt, once, with 8 s left to clean up; held back until `deliver` is called."""

    def __init__(self) -> None:
        self._held = True
        self._asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def deliver(self) -> None:
        """Raise KeyboardInterrupt if a signal has come already, and from now on when one comes."""
        self._held = False
        if self._asked:
            self._interrupt()

    def _handle(self, _signum: int, _frame: FrameType | None) -> None:
        self._asked = True
        if not self._held:
            self._interrupt()

    def _interrupt(self) -> NoReturn:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        signal.alarm(_CLEAN_UP_S)
        raise KeyboardInterrupt


class Grace:
    """Inside `with`, the first SIGINT or SIGTERM is only noted in `asked`; `grace_s` later, or when another comes, it acts.

    So the work can be brought to a state worth keeping before `obey` ends it as the signal would have. One that comes within
    a second of the first is no other: who ends a process group ends our parent too, and then the kernel tells us again.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._asked_s = 0.0
        self._before: dict[int, Any] = {}
        self.asked: int | None = None

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._restore()

    def obey(self) -> None:
        """Let the signal that was noted act."""
        if self.asked is not None:
            self._act(self.asked)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.asked is None:
            self.asked, self._asked_s = number, time.monotonic()
            signal.signal(signal.SIGALRM, lambda *_: self._act(number))
            signal.setitimer(signal.ITIMER_REAL, self._grace_s)
        elif time.monotonic() - self._asked_s > ECHO_S:
            self._act(number)

    def _act(self, number: int) -> None:
        self._restore()
        signal.raise_signal(number)

    def _restore(self) -> None:
        """Give the signals back, once: what handled the one that acted may have changed its handler."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def end_at_once() -> None:
    """Let SIGINT, as SIGTERM does, end this process without a word: there is nothing to clean up yet."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def end_by_signal() -> NoReturn:
    """End this process now, as an unhandled SIGINT would: NNI counts a trial as stopped only then."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.raise_signal(signal.SIGINT)
    raise AssertionError("SIGINT did not end the process")


def die_with_parent(number: signal.Signals, parent: int | None = None) -> None:
    """Have the kernel send this process a signal when the one that started it ends, however that ended (Linux).

    Who knows the id of that `parent` gives it: it may have ended before this is called, while this process began.
    """
    if sys.platform == "linux":
        parent = os.getppid() if parent is None else parent
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:  # it ended before the request took effect
            signal.raise_signal(number)


def lives(process: "psutil.Process") -> bool:
    """Whether a process runs; one that nobody has reaped yet has ended.

    In a container whose first process reaps nothing, dead processes stay listed as zombies.
    """
    import psutil  # here: every stage imports this module, and none asks this

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
