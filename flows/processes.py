"""Child processes: read their output while they run, and end them with all that they started."""

import codecs
import contextlib
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import psutil

from deepcv.lifetime import lives

_POLL_S = 0.5
_MARK = "DEEPCV_STARTED_BY"
_LINE_END = re.compile(r"\r\n|\n|\r")
_LINE_LIMIT = 64 * 1024  # characters; a longer line is handed on in pieces


class Lines:
    """Cut a stream of bytes into lines, and tell lines that stay (newline) from those overwritten (carriage return)."""

    def __init__(self, on_line: Callable[[str], None], on_progress: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._on_progress = on_progress
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._rest = ""

    def feed(self, data: bytes, *, final: bool = False) -> None:
        """Take the next bytes; `final` hands on what stands without a line end."""
        text = self._rest + self._decode(data, final)
        start = 0
        for end in _LINE_END.finditer(text):
            if end.group() == "\r" and end.end() == len(text) and not final:
                break  # perhaps the first half of "\r\n"
            self._emit(self._on_progress if end.group() == "\r" else self._on_line, text[start : end.start()])
            start = end.end()
        self._rest = text[start:]
        if self._rest and (final or len(self._rest) > _LINE_LIMIT):
            self._emit(self._on_line, self._rest)
            self._rest = ""

    @staticmethod
    def _emit(handler: Callable[[str], None], text: str) -> None:
        if stripped := text.rstrip():
            handler(stripped)


def run(command: Sequence[str] | str, lines: Lines, **popen: Any) -> int:
    """Run a command, feed its stdout and stderr to `lines` as they come, and return its exit status.

    However this function is left (also by KeyboardInterrupt or Prefect's cancellation), the command and what it
    started have ended. It stays in our session and process group: Prefect cancels a run by process group.
    """
    process = subprocess.Popen(  # noqa: S603  # the commands are those of dvc.yaml
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0, **popen
    )
    try:
        assert process.stdout is not None  # noqa: S101  # PIPE was asked for
        descriptor = process.stdout.fileno()
        while True:
            # Ask for the end before the data: what was written before the end is then read before we leave. The end
            # of the pipe alone will not do, a grandchild that lives on may hold it open.
            ended = process.poll() is not None
            ready, _, _ = select.select([descriptor], [], [], 0 if ended else _POLL_S)
            data = os.read(descriptor, 1 << 16) if ready else b""
            if data:
                lines.feed(data)
            elif ready or ended:
                break
        lines.feed(b"", final=True)
        return process.wait()
    finally:
        if process.poll() is None:
            stop([process.pid], patience_s=10)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def leave_nobody_behind(patience_s: float) -> None:
    """Have a watchman process end all that this one starts from now on and that lives when it is gone, however it ended.

    They are known by their environment: Prefect starts a server of its own, and tells nobody. Call it before threads start.
    """
    os.environ[_MARK] = mark = f"{os.getpid()}-{time.time_ns()}"
    reader, writer = os.pipe()  # the kernel closes our end with us
    if os.fork():
        os.close(reader)
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # our parent decides
    os.close(writer)
    os.read(reader, 1)
    left = [process.pid for process in psutil.process_iter() if _environment(process).get(_MARK) == mark]
    stop(left, patience_s=patience_s)
    os._exit(0)


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return dict(process.environ())
    except (psutil.Error, OSError):  # another user's, or gone
        return {}


def stop(pids: Iterable[int], *, patience_s: float) -> None:
    """End processes and all their descendants: SIGTERM, after `patience_s` SIGKILL. Gone ones are ignored.

    Descendants that lead a session come first: those are the flow runs of a Prefect worker, which report their own
    end; a worker that goes first would kill them. Then the given processes, which end their children in order, then
    whatever is still there.
    """
    roots: list[psutil.Process] = []
    below: list[psutil.Process] = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(pid)
            below += root.children(recursive=True)
            roots.append(root)
    for group in ([process for process in below if _leads_session(process)], roots):
        _signal(group, signal.SIGTERM)
        _wait(group, patience_s / 2)
    alive = _wait([*below, *roots], 0)
    _signal(alive, signal.SIGTERM)
    alive = _wait(alive, 1)
    _signal(alive, signal.SIGKILL)
    _wait(alive, 5)


def _leads_session(process: psutil.Process) -> bool:
    try:
        return os.getsid(process.pid) == process.pid
    except ProcessLookupError:
        return False


def _wait(processes: list[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Wait for the end of processes and return those that live on."""
    deadline = time.monotonic() + timeout_s
    while (alive := [process for process in processes if lives(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return alive


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)  # psutil compares start times: a reused pid is never hit


def describe(pid: int) -> str:
    """`pid 123 (python -m deepcv …)`, for messages."""
    try:
        command = " ".join(psutil.Process(pid).cmdline()) or psutil.Process(pid).name()
    except psutil.Error:
        return f"pid {pid}"
    return f"pid {pid} ({command if len(command) <= 120 else command[:117] + '...'})"
