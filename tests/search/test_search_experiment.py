"""Real NNI experiments with trials of a fraction of a second."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import nni_node
import psutil
import pytest

from deepcv.search import manager
from deepcv.search.experiment import TrialResult, _config, run_experiment
from deepcv.search.manager import SearchError

# Two steps towards 1 - (x - 0.6)². Below x = 0.1 it fails; it takes $STEP_S per step.
TRIAL = """
import os, signal, sys, time
from pathlib import Path
from deepcv.search.channel import open_channel
from deepcv.lifetime import Interrupts, die_with_parent, end_at_once, end_by_signal

end_at_once()
die_with_parent(signal.SIGTERM)
channel = open_channel()
x = channel.parameters["x"]
trace = Path(os.environ["TRACE"]) / str(os.getpid())
interrupts = Interrupts()
trace.write_text(os.environ["HOME"])
try:
    interrupts.deliver()
    if x < 0.1:
        sys.exit(f"{x} is too small")
    for step in range(6):
        channel.report_intermediate(step, (1 - (x - 0.6) ** 2) * (step + 1) / 6)
        time.sleep(float(os.environ["STEP_S"]))
except KeyboardInterrupt:
    trace.write_text("stopped")
    end_by_signal()
channel.report_final(1 - (x - 0.6) ** 2)
"""
OWNER = """
import sys
from pathlib import Path
from deepcv.search.experiment import run_experiment

run_experiment(
    {"x": {"_type": "uniform", "_value": [0.5, 0.7]}}, trials=50, concurrency=2, seed=0,
    trial_command=[sys.executable, "trial.py"], folder=Path.cwd() / "a folder",
)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the trial program, and a home of its own."""
    (tmp_path / "trial.py").write_text(TRIAL)
    (tmp_path / "owner.py").write_text(OWNER)
    for name in ("trace", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TRACE", str(tmp_path / "trace"))
    monkeypatch.setenv("STEP_S", "0.05")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # a proxy must not come between
    return tmp_path


def started_by(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ends(processes: list[psutil.Process], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while any(map(lives, processes)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def dispatcher_of(pid: int) -> psutil.Process:
    return next(process for process in started_by(pid) if "--exp_params" in " ".join(process.cmdline()))


def test_an_experiment_ends_by_itself_listens_on_loopback_only_and_leaves_nothing(place: Path) -> None:
    seen: dict[int, psutil.Process] = {}
    addresses: set[str] = set()
    ended: list[TrialResult] = []
    others = started_by(os.getpid())  # servers of other tests

    def look(result: TrialResult) -> None:
        ended.append(result)
        for process in set(started_by(os.getpid())).difference(others):
            seen[process.pid] = process
            with suppress(psutil.NoSuchProcess):  # a trial may end while it is looked at
                addresses.update(c.laddr.ip for c in process.net_connections() if c.status == psutil.CONN_LISTEN)

    results = run_experiment(
        {"x": {"_type": "uniform", "_value": [0.0, 1.0]}},
        trials=8,
        concurrency=2,
        seed=0,
        trial_command=[sys.executable, "trial.py"],
        folder=place / "a folder",  # with a space
        on_progress=look,
    )
    assert addresses == {"127.0.0.1"}
    assert ends(list(seen.values()), 1)
    assert [result.number for result in results] == list(range(8))
    assert sorted(ended, key=lambda result: result.number) == results
    assert {result.status for result in results} == {"succeeded", "early_stopped", "failed"}
    for result in results:
        x = result.parameters["x"]
        if result.status == "succeeded":
            assert result.final == 1 - (x - 0.6) ** 2
            assert len(result.intermediate) == 6
        elif result.status == "early_stopped":
            assert 1 <= len(result.intermediate) <= 6
        else:
            assert result.final is None
            assert f"{x} is too small" in result.log.read_text()
    traces = [path.read_text() for path in (place / "trace").iterdir()]
    stopped = [result for result in results if result.status == "early_stopped" and result.final is None]
    assert traces.count("stopped") == len(stopped)  # a stopped trial was given the time to clean up
    assert traces.count(str(place / "home")) == len(results) - len(stopped)  # trials have the user's home
    assert not list((place / "home").iterdir())


def test_an_exhausted_space_ends_the_experiment(place: Path) -> None:
    results = run_experiment(
        {"x": {"_type": "choice", "_value": [0.5, 0.55]}},
        trials=5,
        concurrency=1,
        seed=0,
        trial_command=[sys.executable, "trial.py"],
        folder=place / "experiment",
    )
    assert sorted(result.parameters["x"] for result in results) == [0.5, 0.55]


def test_a_dead_dispatcher_ends_the_experiment(place: Path) -> None:
    seen: list[psutil.Process] = []
    others = started_by(os.getpid())  # servers of other tests

    def kill(_result: TrialResult) -> None:
        seen.extend(set(started_by(os.getpid())).difference(others))
        dispatcher_of(os.getpid()).kill()

    with pytest.raises(SearchError, match="dispatcher"):
        run_experiment(
            {"x": {"_type": "uniform", "_value": [0.5, 0.7]}},
            trials=50,
            concurrency=1,
            seed=0,
            trial_command=[sys.executable, "trial.py"],
            folder=place / "experiment",
            on_progress=kill,
        )
    assert ends(seen, 1)


@pytest.fixture
def owner(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the middle of an experiment: its two trials are running, and would for a minute."""
    monkeypatch.setenv("STEP_S", "10")
    process = subprocess.Popen([sys.executable, "owner.py"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list((place / "trace").iterdir())) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    yield process
    process.kill()
    process.wait()


def trials_cleaned_up(place: Path) -> bool:
    return [path.read_text() for path in (place / "trace").iterdir()] == ["stopped", "stopped"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_owner_ends_everything(place: Path, owner: subprocess.Popen[bytes], number: int) -> None:
    processes = started_by(owner.pid)
    assert len(processes) >= 4  # manager, dispatcher, two trials
    owner.send_signal(number)
    assert ends(processes, 15)
    status = owner.wait(15)
    assert status == (143 if number == signal.SIGTERM else -number)
    assert trials_cleaned_up(place)
    assert not list((place / "home").iterdir())


def test_a_killed_manager_takes_all_along(place: Path, owner: subprocess.Popen[bytes]) -> None:
    """Also with the owner gone, when nobody is left to clean up."""
    processes = started_by(owner.pid)
    root = next(process for process in processes if process.ppid() == owner.pid)
    owner.kill()
    root.kill()
    assert ends(processes, 15)
    assert trials_cleaned_up(place)


def test_the_managers_patch_binds_loopback_and_gives_the_tuner_time() -> None:
    program = """
    const tuner = setTimeout(() => 'Tuner did not connect in 10 seconds', 10000);
    const other = setTimeout(() => 0, 10000);
    const limits = [tuner._idleTimeout, other._idleTimeout];
    clearTimeout(tuner); clearTimeout(other);
    const addresses = [];
    const starts = [(s, f) => s.listen(0, f), (s, f) => s.listen(0, '0.0.0.0', f), (s, f) => s.listen({ port: 0 }, f)];
    for (const start of starts) {
      const server = require('net').createServer();
      start(server, () => {
        addresses.push(server.address().address);
        server.close();
        if (addresses.length === starts.length) console.log(JSON.stringify([limits, addresses]));
      });
    }
    """
    node = Path(nni_node.__path__[0]) / "node"
    hook = Path(manager.__file__).with_name("loopback.js")
    environment = {**os.environ, "DEEPCV_SEARCH_OWNER_PID": str(os.getpid())}
    done = subprocess.run([node, "--require", hook, "-e", program], env=environment, capture_output=True, check=True)
    assert json.loads(done.stdout) == [[120_000, 10_000], ["127.0.0.1"] * 3]


def test_the_configuration_is_what_nnis_own_class_would_send(place: Path) -> None:
    ours = _config({"x": {"_type": "choice", "_value": [1]}}, 8, 2, 3, ["a", "b c"], place, 4)
    program = f"""
import json
from nni.experiment.config import AlgorithmConfig, CustomAlgorithmConfig, ExperimentConfig
config = ExperimentConfig("local")
config.search_space = {{"x": {{"_type": "choice", "_value": [1]}}}}
config.trial_command = {ours["trialCommand"]!r}
config.trial_code_directory = {ours["trialCodeDirectory"]!r}
config.trial_concurrency, config.max_trial_number = 2, 8
config.experiment_working_directory = {str(place)!r}
config.tuner = CustomAlgorithmConfig(
    class_name="deepcv.search.nni.TolerantTpe",
    code_directory={ours["tuner"]["codeDirectory"]!r},
    class_args={{"seed": 3, "dispatched": True}},
)
config.assessor = AlgorithmConfig(name="Medianstop", class_args={{"optimize_mode": "maximize", "start_step": 4}})
print(json.dumps(config.canonical_copy().json()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == ours
