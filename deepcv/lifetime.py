"""Processes that end when they are told to and never outlive the one that started them."""

import ctypes
import os
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import psutil

_PR_SET_PDEATHSIG = 1
_CLEAN_UP_S = 8


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


def end_at_once() -> None:
    """Let SIGINT, as SIGTERM does, end this process without a word: there is nothing to clean up yet."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def end_by_signal() -> NoReturn:
    """End this process now, as an unhandled SIGINT would: NNI counts a trial as stopped only then."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.raise_signal(signal.SIGINT)
    raise AssertionError("SIGINT did not end the process")


def die_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when the one that started it ends, however that ended (Linux)."""
    if sys.platform == "linux":
        parent = os.getppid()
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
