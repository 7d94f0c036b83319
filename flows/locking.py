"""DVC's repository lock, with patience: DVC itself gives up after 3 s."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dvc.exceptions import DvcException
from dvc.lock import LockBase, LockError

from flows.processes import describe

RETRY_S = 1.0
_PID = re.compile(r"\bpid (\d+)", re.IGNORECASE)  # as DVC and our own `describe` name a process
T = TypeVar("T")


class LockTimeoutError(DvcException):
    """Another process held the lock for longer than the flow waits."""


class Patience:
    """Wait for DVC's locks: `timeout_s` for each wait, and one message through `say` for each process that we wait for.

    A process that holds the repository's lock and a stage's as well is named once.
    """

    def __init__(self, timeout_s: float, say: Callable[[str], None]) -> None:
        self._timeout_s = timeout_s
        self._say = say
        self._told: set[str] = set()

    def keep_trying(
        self,
        attempt: Callable[[], T],
        who: Callable[[LockError], str],
        pause: Callable[[float], None] = time.sleep,
    ) -> T:
        """Return what `attempt` returns, calling it again while it raises DVC's LockError; LockTimeoutError at the end.

        `who` turns the error into a clause that says who holds what.
        """
        started = time.monotonic()
        while True:
            try:
                return attempt()
            except LockError as error:
                waited_s = time.monotonic() - started
                if waited_s >= self._timeout_s:
                    raise LockTimeoutError(f"gave up after {waited_s:.0f} s: {who(error)}") from error
                clause = who(error)
                holders = set(_PID.findall(clause)) or {clause}
                if not holders <= self._told:
                    self._say(f"{clause}; waiting for it, up to {self._timeout_s:g} s")
                    self._told |= holders
                pause(RETRY_S)


class PatientLock(LockBase):
    """A DVC lock that waits for its holder instead of failing after 3 s; takes the place of `Repo.lock`."""

    def __init__(self, lock: LockBase, patience: Patience) -> None:
        super().__init__(lock.lockfile)
        self._lock = lock
        self._patience = patience

    def lock(self) -> None:
        """Take the lock; LockTimeoutError at the end of the patience."""
        self._patience.keep_trying(self._lock.lock, lambda _: f"the DVC repository is locked by {self._holder()}")

    def unlock(self) -> None:
        """Give the lock back."""
        self._lock.unlock()

    @property
    def is_locked(self) -> bool:
        """Whether this object holds the lock."""
        return bool(self._lock.is_locked)

    def __enter__(self) -> None:
        self.lock()

    def __exit__(self, *_: object) -> None:
        self.unlock()

    def _holder(self) -> str:
        """DVC's lock file holds its owner's pid (the hard-link variant a path that ends otherwise)."""
        try:
            return describe(int(Path(self.lockfile).read_text(encoding="utf-8").split()[0]))
        except (OSError, ValueError, IndexError):
            return "another DVC process"
