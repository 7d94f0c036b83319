"""NNI's node manager as a child process that listens on loopback alone and never outlives its owner."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import nni_node  # type: ignore[import-untyped]  # the folder of NNI's bundled node program, nothing more
import psutil

from deepcv.errors import DeepcvError
from deepcv.home import no_proxy_environment
from deepcv.lifetime import lives
from deepcv.search.channel import request

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 10.0
_PORT_TRIES = 3
# NNI starts the dispatcher as `python -m nni --exp_params …`.
_DISPATCHER_MARK = "--exp_params"


class SearchError(DeepcvError):
    """A search did not end well."""


@dataclass(frozen=True)
class Manager:
    """A running node manager: `process` leads the group of all that it starts, `folder` holds its files."""

    process: subprocess.Popen[bytes]
    port: int
    folder: Path

    def get(self, path: str) -> Any:
        """Return the answer of NNI's REST interface."""
        return request("GET", f"http://127.0.0.1:{self.port}/api/v1/nni{path}")

    def post(self, path: str, body: object, timeout_s: float) -> Any:
        """Post `body` as JSON and return the answer."""
        return request("POST", f"http://127.0.0.1:{self.port}/api/v1/nni{path}", body, timeout_s)

    @property
    def logs(self) -> Path:
        """The folder of NNI's own logs."""
        return self.folder / "nni" / "log"

    @property
    def trials_folder(self) -> Path:
        """Where each trial has a folder, named by its id."""
        return self.folder / "nni" / "environments" / "local-env" / "trials"

    def check_alive(self) -> None:
        """Raise SearchError if the manager or its dispatcher has ended: NNI itself would report RUNNING for ever."""
        if self.process.poll() is not None:
            raise SearchError(
                f"NNI's manager ended with status {self.process.returncode}\n{_tail(_output(self.folder))}"
            )
        if not any(_is_dispatcher(child) for child in psutil.Process(self.process.pid).children(recursive=True)):
            log = self.logs / "dispatcher.log"
            raise SearchError(
                f"NNI's dispatcher (the tuner) ended\n{_tail(log if log.exists() else _output(self.folder))}"
            )


@contextmanager
def running(folder: Path, environment: Mapping[str, str]) -> Iterator[Manager]:
    """Start a node manager whose files lie in `folder`; whatever ends the block also ends all that NNI started.

    `environment` is added to the environment of the dispatcher and of the trials. In the main thread, SIGTERM becomes
    SystemExit while the block runs; a kill of this process is noticed by the manager, which then stops by itself.
    """
    manager: Manager | None = None
    with sigterm_exits():
        process: subprocess.Popen[bytes] | None = None
        try:
            for attempt in range(_PORT_TRIES):
                port = _free_port()
                process = _start(folder, port, environment)
                manager = Manager(process, port, folder)
                if _wait_ready(manager):
                    break
                # Another program may have taken the port in between.
                if attempt == _PORT_TRIES - 1:
                    raise SearchError(f"NNI's manager did not start\n{_tail(_output(folder))}")
            assert manager is not None  # noqa: S101 - for mypy; the loop runs at least once
            yield manager
        finally:
            if process is not None:
                stop(process)


def _start(folder: Path, port: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    home = folder / "home"
    manifest = home / "nni-experiments" / ".experiment"
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text('{"nni": {}}', encoding="utf-8")  # NNI complains about an experiment that is not listed
    program = Path(nni_node.__path__[0])
    python = Path(sys.executable)
    command = [
        str(program / "node"),
        *("--require", str(Path(__file__).with_name("loopback.js"))),
        str(program / "main.js"),
        *("--port", str(port)),
        *("--experiment-id", "nni"),
        *("--action", "create"),
        *("--mode", "local"),
        *("--experiments-directory", str(folder)),
        *("--log-level", "info"),
        # NNI puts this into a shell line without quotes: a name found on PATH, never a path with a space in it.
        *("--python-interpreter", python.name),
    ]
    node_environment = {
        **os.environ,
        **environment,
        "HOME": str(home),
        "PATH": os.pathsep.join([str(python.parent), os.environ.get("PATH", os.defpath)]),
        **no_proxy_environment(),
        "DEEPCV_SEARCH_OWNER_PID": str(os.getpid()),
    }
    with _output(folder).open("ab") as output:
        return subprocess.Popen(  # noqa: S603 - NNI's own program
            command,
            cwd=program,
            env=node_environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,  # a terminal's Ctrl-C reaches this process alone, which then stops the others in order
        )


def _wait_ready(manager: Manager) -> bool:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while manager.process.poll() is None:
        with suppress(OSError, ValueError):  # not listening yet; while it initialises, the answer is not JSON
            manager.get("/check-status")
            return True
        if time.monotonic() > deadline:
            raise SearchError(
                f"NNI's manager did not answer within {_START_TIMEOUT_S:.0f} s\n{_tail(_output(manager.folder))}"
            )
        time.sleep(0.1)
    return False


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the whole group that `process` leads: politely within 10 s, so that it can clean up, then by force."""
    with _signals_wait():
        left: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            left = psutil.Process(process.pid).children(recursive=True)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_TIMEOUT_S)
        while (left := [child for child in left if lives(child)]) and time.monotonic() < deadline:
            time.sleep(0.05)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for straggler in left:  # one that has left the group
            with suppress(psutil.NoSuchProcess):
                straggler.kill()
        process.wait()


@contextmanager
def sigterm_exits() -> Iterator[None]:
    """Make SIGTERM raise SystemExit in the main thread, so that `finally` blocks run; elsewhere this does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(signum: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Ignore a second, impatient Ctrl-C or SIGTERM while the processes are being ended (12 s at most)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_dispatcher(process: psutil.Process) -> bool:
    try:
        return lives(process) and _DISPATCHER_MARK in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _output(folder: Path) -> Path:
    return folder / "manager.log"


def _tail(log: Path, lines: int = 5) -> str:
    if not log.is_file():
        return f"({log} was not written)"
    return "\n".join([f"{log} ends with:", *log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]])
