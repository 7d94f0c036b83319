"""`make ui` and `make deploy`: the servers of a project, in the foreground, on this machine's loopback address only.

    python -m flows.servers ui       Prefect's server and MLflow's
    python -m flows.servers deploy   register the deployments of prefect.yaml and work on their runs

Ctrl-C, SIGTERM or the end of one server ends them all. A watchman process does so if this one is killed (kill -9).
"""

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from deepcv.home import project_dir, quiet_environment, state_dir
from flows.addresses import (
    HOST,
    PortError,
    answers,
    forget_servers,
    mlflow_port,
    prefect_api,
    prefect_port,
    record_servers,
    running_server,
)
from flows.processes import describe, stop

POOL = "deepcv"
START_TIMEOUT_S = 180.0
STOP_PATIENCE_S = 8.0


class ServersError(Exception):
    """Something keeps the servers from running; the message is complete."""


class Stopped(BaseException):
    """SIGTERM arrived."""


class Children:
    """Processes that live no longer than this one."""

    def __init__(self) -> None:
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        reader, self._writer = os.pipe()
        self._watchman = os.fork()
        if self._watchman == 0:
            os.close(self._writer)
            _watch(reader)
        os.close(reader)

    def start(self, name: str, command: Sequence[str], environment: dict[str, str], **popen: Any) -> None:
        """Start a process that `poll` then watches."""
        # A group of its own: a terminal's Ctrl-C reaches us alone, and we end the children in order.
        process = subprocess.Popen(  # noqa: S603  # commands of this module
            command, cwd=project_dir(), env=environment, stdin=subprocess.DEVNULL, process_group=0, **popen
        )
        self._processes[name] = process
        os.write(self._writer, f"{process.pid}\n".encode())

    def run(self, name: str, command: Sequence[str], environment: dict[str, str]) -> None:
        """Run a command to its end; ServersError with its output if it fails."""
        self.start(name, command, environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        process = self._processes[name]
        output, _ = process.communicate()
        del self._processes[name]
        if process.returncode != 0:
            raise ServersError(f"{name} failed with status {process.returncode}:\n{output.decode(errors='replace')}")

    def poll(self) -> None:
        """Raise ServersError if one of them has ended."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise ServersError(f"{name} ended with status {process.returncode}; the others are stopped")

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until the condition holds; ServersError after the time-out, or when a process ends."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not condition():
            self.poll()
            if time.monotonic() > deadline:
                raise ServersError(f"{what} did not answer within {START_TIMEOUT_S:.0f} s")
            time.sleep(0.3)

    def stay(self) -> None:
        """Return never: raises ServersError when a process ends, or what a signal raises."""
        while True:
            self.poll()
            time.sleep(0.5)

    def stop(self) -> None:
        """End all of them, then the watchman."""
        stop([process.pid for process in self._processes.values()], patience_s=STOP_PATIENCE_S)
        for process in self._processes.values():
            process.wait()
        os.close(self._writer)
        os.waitpid(self._watchman, 0)


def _watch(reader: int) -> None:
    """Be the watchman: read the pids of the children until our parent is gone, then end those that are left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent decides
    with os.fdopen(reader) as pids:
        children = [int(line) for line in pids]
    stop(children, patience_s=STOP_PATIENCE_S)
    os._exit(0)


@contextmanager
def _children() -> Iterator[Children]:
    """Run `Children` until the block ends; SIGTERM and SIGHUP end it too."""

    def handler(_number: int, _frame: FrameType | None) -> None:
        raise Stopped

    children = Children()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` makes its jobs ignore it
    try:
        yield children
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # an impatient second Ctrl-C must not leave half of them behind
        children.stop()


def _check_port(port: int, variable: str) -> None:
    """Raise ServersError that says who has the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            owner = _owner(port)
            by = f"by {describe(owner)}" if owner else f"({error.strerror})"
            raise ServersError(f"port {port} is taken {by}; free it or set {variable}") from error


def _owner(port: int) -> int | None:
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
            return connection.pid
    return None


def _environment(api: str) -> dict[str, str]:
    """Environment of the children: no telemetry, state inside the project, our Python first."""
    return {
        **os.environ,
        **quiet_environment(),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PREFECT_API_URL": api,
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        # A run that was killed (kill -9) keeps its place in the queue for so long; Prefect's default is 5 minutes.
        "PREFECT_SERVER_CONCURRENCY_INITIAL_DEPLOYMENT_LEASE_DURATION": "60",
        # On disk: a place that a killed server kept in memory stays taken for ever; so it is free after 5 minutes.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "DEEPCV_PROJECT": str(project_dir()),  # prefect.yaml's pull step
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # five more processes for a feature that is not used here
        "PYTHONUNBUFFERED": "1",
    }


def _module(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", name, *arguments]


def ui() -> None:
    """Run the Prefect server and the MLflow server until told to stop."""
    prefect, mlflow = prefect_port(), mlflow_port()
    _check_port(prefect, "DEEPCV_PREFECT_PORT")
    _check_port(mlflow, "DEEPCV_MLFLOW_PORT")
    environment = _environment(prefect_api(prefect))
    folder = state_dir() / "mlflow"
    with _children() as children:
        children.start("the Prefect server", _module("prefect", "server", "start", "--port", str(prefect)), environment)
        # The first use sets the database up for 9 s: in a process of its own, this one needs no MLflow.
        set_up = [sys.executable, "-c", "from deepcv.tracking import connect; connect()"]
        children.run("the set-up of MLflow's database", set_up, environment)
        artifacts = str(folder / "artifacts")
        store = ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--default-artifact-root", artifacts]
        address = ["--host", HOST, "--port", str(mlflow), "--workers", "1", "--artifacts-destination", artifacts]
        children.start("the MLflow server", _module("mlflow", "server", *store, *address), environment)
        children.wait_for(lambda: answers(f"{prefect_api(prefect)}/health"), "the Prefect server")
        children.wait_for(lambda: answers(f"http://{HOST}:{mlflow}/health"), "the MLflow server")
        record_servers(prefect, mlflow)
        try:
            _say(f"\nPrefect  http://{HOST}:{prefect}\nMLflow   http://{HOST}:{mlflow}\nCtrl-C stops both.\n")
            children.stay()
        finally:
            forget_servers()


def deploy() -> None:
    """Register the deployments of prefect.yaml and run a process worker until told to stop."""
    api = running_server()
    if api is None:
        raise ServersError("this project's Prefect server does not run: start it with `make ui` in another terminal")
    environment = _environment(api)
    with _children() as children:
        create = _module("prefect", "--no-prompt", "work-pool", "create", POOL, "--type", "process", "--overwrite")
        children.run("the creation of the work pool", create, environment)
        register = _module("prefect", "--no-prompt", "deploy", "--all")
        children.run("the registration of the deployments", register, environment)
        worker = _module("prefect", "worker", "start", "--pool", POOL, "--type", "process")
        children.start("the worker", worker, environment)
        # Whatever terminal this is pasted into: nothing goes to ~/.prefect, and none of it through a proxy.
        home = f"PREFECT_HOME={shlex.quote(environment['PREFECT_HOME'])}"
        prefect_command = f"{shlex.quote(sys.executable)} -m prefect deployment run pipeline/pipeline"
        trigger = f"PREFECT_API_URL={api} {home} no_proxy={HOST} {prefect_command}"
        _say(f"\nStart a run:  {trigger}\nCtrl-C stops the worker.\n")
        children.stay()


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  # a command line prints


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m flows.servers", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "command", choices=("ui", "deploy"),
        help="ui: Prefect's server and MLflow's; deploy, while ui runs in another terminal: register the deployments of "
        "prefect.yaml and work on their runs. Example: DEEPCV_MLFLOW_PORT=5001 python -m flows.servers ui",
    )  # fmt: skip
    command = {"ui": ui, "deploy": deploy}[parser.parse_args(arguments).command]
    try:
        command()
    except (ServersError, PortError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        return 130
    except Stopped:
        return 143
    return 0


if __name__ == "__main__":
    sys.exit(main())
