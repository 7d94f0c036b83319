"""Work on every core, with results in the order in which the work came."""

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TypeVar

from deepcv import lifetime
from deepcv.errors import DeepcvError

Item = TypeVar("Item")
Result = TypeVar("Result")

_ALONE_S = 0.5  # about what a helper takes to start
_QUEUED = 2  # items at or before each helper
_KILLED = (
    "a process that helped was killed, perhaps because memory ran out; free some, or allow fewer cores "
    "(`taskset -c 0 dvc repro`), then run it again"
)
_AHEAD = 16  # items per process whose results wait for an earlier one


def in_order(work: Callable[[Item], Result], items: Iterable[Item], processes: int) -> Iterator[tuple[Item, Result]]:
    """Yield each item with what `work` makes of it, in the items' order, which is read ahead by no more than some items.

    This process works too: alone for the first half second, later whenever its helpers have enough to do. They are new
    processes that import `work`, not forks: OpenCV's threads do not survive one, and Python's lock leaves no second thread
    of one process anything to gain on small images. They end with this process, however it ends. An error of `work` is
    raised in its item's turn; DeepcvError where a helper was killed.
    """
    begun = time.monotonic()
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    pool: ProcessPoolExecutor | None = None
    try:
        for item in items:
            if pool is None and processes > 1 and time.monotonic() - begun > _ALONE_S:
                pool = ProcessPoolExecutor(processes - 1, get_context("spawn"), _begin, (os.getpid(),))
            busy = sum(not future.done() for _, future in waiting)
            helped = pool is not None and busy < _QUEUED * (processes - 1)
            waiting.append((item, pool.submit(work, item) if pool and helped else _done(work, item)))
            while waiting and (waiting[0][1].done() or len(waiting) > _AHEAD * processes):
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    except BrokenProcessPool as error:
        raise DeepcvError(_KILLED) from error
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


@contextmanager
def meanwhile(work: Callable[[], Result], processes: int) -> Iterator[Callable[[], Result]]:
    """Do `work` in a process of its own while the block runs; what is yielded waits for its result.

    With one process, `work` is done when its result is asked for. The new process imports the main module too: that one
    should import inside the block what is slow and of no use to `work`. Errors as with `in_order`.
    """
    if processes == 1:
        yield work
        return
    with ProcessPoolExecutor(1, get_context("spawn"), _begin, (os.getpid(),)) as pool:
        future = pool.submit(work)

        def result() -> Result:
            try:
                return future.result()
            except BrokenProcessPool as error:
                raise DeepcvError(_KILLED) from error

        yield result


def _begin(parent: int) -> None:
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches every process of the terminal; the first one cleans up
    lifetime.die_with_parent(signal.SIGKILL, parent)


def _done(work: Callable[[Item], Result], item: Item) -> Future[Result]:
    future: Future[Result] = Future()
    try:
        future.set_result(work(item))
    except Exception as error:  # not its turn yet
        future.set_exception(error)
    return future
