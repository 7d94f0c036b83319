import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import tiny
import yaml


class Server:
    """`python -m flows.servers COMMAND` in a project, with the lines that it prints."""

    def __init__(self, project: Path, command: str, **environment: str) -> None:
        self.environment = {**tiny.environment(project), **environment}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flows.servers", command],
            cwd=project,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(self.process.stdout)

    def wait_for(self, text: str, timeout_s: float = 120) -> str:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for line in list(self.lines):
                if text in line:
                    return line
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        raise AssertionError(f"no {text!r} in:\n{''.join(self.lines)}")

    def tree(self) -> list[psutil.Process]:
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def end(self, number: signal.Signals, within_s: float = 20) -> int:
        """Send a signal; return the exit status once nothing that belonged to the server is left."""
        tree = self.tree()
        self.process.send_signal(number)
        status = self.process.wait(timeout=within_s)
        _, alive = psutil.wait_procs(tree, timeout=within_s)
        assert alive == []
        return status


@contextmanager
def server(project: Path, command: str, **environment: str) -> Iterator[Server]:
    running = Server(project, command, **environment)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.end(signal.SIGTERM)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def free_ports() -> dict[str, str]:
    return {"DEEPCV_PREFECT_PORT": str(free_port()), "DEEPCV_MLFLOW_PORT": str(free_port())}


@pytest.fixture
def deployable(done: Path) -> Path:
    """A project that is up to date and has the real deployments and flows."""
    shutil.copy(tiny.REPOSITORY / "prefect.yaml", done)
    (done / "flows").symlink_to(tiny.REPOSITORY / "flows")
    return done


def trigger_of(deploy: Server) -> str:
    """The command that a worker prints for a person, once it works."""
    deploy.wait_for("started!")
    return deploy.wait_for("Start a run:").partition("Start a run:")[2].strip()


@pytest.mark.parametrize("variable", ["DEEPCV_PREFECT_PORT", "DEEPCV_MLFLOW_PORT"])
def test_a_taken_port_is_named_before_anything_starts(done: Path, variable: str) -> None:
    ports = free_ports()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(ports[variable])))
        taken.listen()
        ui = Server(done, "ui", **ports)
        assert ui.process.wait(timeout=60) == 1
        line = ui.wait_for("error:", timeout_s=5)
    assert f"port {ports[variable]} is taken by pid {os.getpid()} (" in line
    assert f"free it or set {variable}" in line
    assert not (done / ".deepcv/prefect/prefect.db").exists()


@pytest.mark.parametrize("port", ["x", "0", "65536"])
def test_a_port_that_is_none(done: Path, port: str) -> None:
    ui = Server(done, "ui", DEEPCV_PREFECT_PORT=port)
    assert ui.process.wait(timeout=60) == 1
    assert "DEEPCV_PREFECT_PORT must be a port (1 to 65535)" in ui.wait_for("error:", timeout_s=5)


def test_deploy_asks_for_the_server_first(done: Path) -> None:
    deploy = Server(done, "deploy")
    assert deploy.process.wait(timeout=60) == 1
    assert "make ui" in deploy.wait_for("error:", timeout_s=5)


CHILDREN = """\
import sys, time
from flows.servers import Children, ServersError
children = Children()
try:
    children.start("the sleeper", ["sleep", "60"], {})
    children.start("the runner", ["sh", "-c", "sleep 1; exit 7"], {})
    children.stay()
except ServersError as error:
    print(error)
finally:
    children.stop()
"""


def test_the_end_of_one_child_ends_the_others(done: Path) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", CHILDREN], env=tiny.environment(done), cwd=done, stdout=subprocess.PIPE, text=True
    )
    tree: set[psutil.Process] = set()
    while program.poll() is None:
        tree |= set(psutil.Process(program.pid).children(recursive=True))
        time.sleep(0.1)
    assert program.stdout is not None
    assert program.stdout.read() == "the runner ended with status 7; the others are stopped\n"
    assert len(tree) >= 3  # watchman, sleeper, runner
    assert not [process for process in tree if process.is_running()]


def listening(processes: list[psutil.Process]) -> set[str]:
    connections = [connection for process in processes for connection in process.net_connections("inet")]
    return {connection.laddr.ip for connection in connections if connection.status == psutil.CONN_LISTEN}


def flow_run_states(api: str) -> Counter[str]:
    request = urllib.request.Request(f"{api}/flow_runs/filter", b"{}", {"content-type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=10) as reply:  # noqa: S310
        return Counter(run["state_name"] for run in json.load(reply))


@pytest.mark.timeout(300)
def test_from_servers_to_a_triggered_run_and_back_to_nothing(deployable: Path) -> None:
    """One story, because a start takes most of a minute: ui, deploy, a run, Ctrl-C in a second run, kill -9 of ui."""
    done = deployable
    (done / "source.txt").write_text("two\n")
    ports = free_ports()
    with server(done, "ui", **ports) as ui:
        ui.wait_for(f"Prefect  http://127.0.0.1:{ports['DEEPCV_PREFECT_PORT']}")
        ui.wait_for(f"MLflow   http://127.0.0.1:{ports['DEEPCV_MLFLOW_PORT']}")
        assert listening(ui.tree()) == {"127.0.0.1"}

        with server(done, "deploy") as deploy:
            trigger = trigger_of(deploy)
            elsewhere = f"env -u PREFECT_HOME {trigger} --watch"  # a terminal knows nothing of our home
            watched = tiny.command(done, "sh", "-c", elsewhere, timeout_s=90)
            assert "finished successfully" in watched
            assert (done / "data/raw/rows.txt").read_text() == "TWO"
            assert "up to date" in tiny.command(done, "dvc", "repro")

            (done / "fit.py").write_text("import time\nprint('asleep')\ntime.sleep(60)\n")
            tiny.command(done, "sh", "-c", trigger)
            deploy.wait_for("- asleep")
            assert any("fit.py" in process.cmdline() for process in deploy.tree())
            assert deploy.end(signal.SIGINT) == 130

        api = trigger.partition("=")[2].partition(" ")[0]
        states = flow_run_states(api)
        assert states["Completed"] == 1
        assert states["Crashed"] == 1
        assert "Running" not in states
        assert ui.end(signal.SIGKILL) == -signal.SIGKILL
    assert not (done.parent / "home/.prefect").exists()
    assert (done / ".deepcv/prefect/prefect.db").exists()


@pytest.mark.acceptance
@pytest.mark.timeout(900)
def test_a_run_whose_server_was_killed_does_not_block_the_next(deployable: Path) -> None:
    done = deployable
    (done / "fit.py").write_text("import time\nprint('asleep')\ntime.sleep(900)\n")
    ports = free_ports()
    with server(done, "ui", **ports) as ui:
        ui.wait_for("Prefect  http")
        with server(done, "deploy") as deploy:
            trigger = trigger_of(deploy)
            tiny.command(done, "sh", "-c", trigger)
            deploy.wait_for("- asleep")
            ui.end(signal.SIGKILL)
    (done / "fit.py").write_text(tiny.SCRIPTS["fit.py"])
    with server(done, "ui", **ports) as ui:
        ui.wait_for("Prefect  http")
        with server(done, "deploy") as deploy:
            deploy.wait_for("started!")
            watched = tiny.command(done, "sh", "-c", f"{trigger} --watch", timeout_s=500)  # 5 minutes at most
            assert "finished successfully" in watched


def test_deployments_name_no_path_and_one_pool() -> None:
    document = yaml.safe_load((tiny.REPOSITORY / "prefect.yaml").read_text())
    assert document["pull"] == [
        {"prefect.deployments.steps.set_working_directory": {"directory": "{{ $DEEPCV_PROJECT }}"}}
    ]
    for deployment in document["deployments"]:
        path, _, name = deployment["entrypoint"].partition(":")
        assert f"def {name}(" in (tiny.REPOSITORY / path).read_text()
        assert deployment["work_pool"]["name"] == "deepcv"
        assert all(schedule["timezone"] == "UTC" for schedule in deployment["schedules"])
        assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
