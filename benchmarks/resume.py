"""kill -9 at random moments of a training: of the trainer, of `dvc repro`, of the Prefect flow; the same command again ends it.

    python -m benchmarks.resume [--quick]

20 kills (`--quick`: 3), each in a copy of the checkout of its own. `value` is how many of them ended with the bytes of
data/model/model.pt that an undisturbed training gives, each epoch once in its MLflow run, and no process left behind.

A kill may also come after the run was closed and before DVC has recorded the stage (`killed_after_training`): there is one run
then too.
"""

import argparse
import contextlib
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from benchmarks.checkouts import checkout, environment
from benchmarks.result import emit
from deepcv.lifetime import lives
from deepcv.params.edit import set_values

_COMMANDS = {
    "trainer": [[sys.executable, "-m", "deepcv.stages.train"]],
    "dvc": [
        ["deepcv", "check"],
        ["dvc", "repro", "train"],
    ],  # as `make run`: check mends what a killed DVC left half-written
    "flow": [[sys.executable, "-m", "flows.pipeline", "--targets", "train"]],
}
# About 1 s per epoch on a core, and several checkpoints within each.
_PARAMS = {"train.epochs": 6, "train.batch_size": 4, "train.checkpoint_minutes": 0.004}
_EPOCHS = _PARAMS["train.epochs"]
_MARK = "DEEPCV_BENCHMARK_MARK"  # tells our processes from others
_ENDED_S = 15.0
_SEED = 0


@dataclass(frozen=True)
class Kill:
    """What came of one."""

    victim: str
    moment_s: float
    same_bytes: bool
    runs: list[tuple[str, int, int]]  # status, points of val_accuracy, different steps among them
    left_behind: list[str]
    within_epoch: bool  # the newest checkpoint at the kill was of within an epoch
    after_training: bool

    def is_clean(self) -> bool:
        """Whether nothing is lost, doubled or left."""
        return self.same_bytes and not self.left_behind and self.runs == [("FINISHED", _EPOCHS, _EPOCHS)]


def surroundings(project: Path) -> dict[str, str]:
    """Environment of everything that runs in a project."""
    foreign = ("DVC_", "DEEPCV_", "PREFECT_", "MLFLOW_")
    kept = {key: value for key, value in environment(project).items() if not key.startswith(foreign)}
    return kept | {"DVC_NO_ANALYTICS": "true", "DO_NOT_TRACK": "1", _MARK: str(project)}


def run(project: Path, command: list[str]) -> None:
    """Run a command to its end; its output only shows where it fails."""
    result = subprocess.run(
        command, cwd=project, env=surroundings(project), text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    if result.returncode:
        sys.exit(f"{command} in {project} ended with status {result.returncode}:\n{result.stdout[-4000:]}")


def processes(project: Path) -> list[psutil.Process]:
    """All that live and were started for this project, directly or not."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if lives(process) and process.environ().get(_MARK) == str(project):
                found.append(process)
    return found


def copy(base: Path, folder: Path) -> Path:
    """A project of its own, with prepared data and no training."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder)
    return folder


def training_runs(project: Path) -> list[tuple[str, int, int]]:
    """Of each MLflow run: status, number of points of val_accuracy, number of different steps among them."""
    query = (
        "SELECT status, count(step), count(DISTINCT step) FROM runs LEFT JOIN metrics "
        "ON metrics.run_uuid = runs.run_uuid AND metrics.key = 'val_accuracy' GROUP BY runs.run_uuid"
    )
    with contextlib.closing(sqlite3.connect(project / ".deepcv/mlflow/mlflow.db")) as database:
        return database.execute(query).fetchall()


def newest_checkpoint(project: Path) -> int:
    """Its iteration, 0 where there is none."""
    files = project.glob(".deepcv/checkpoints/*/*.pt")
    return max((int(file.stem.rpartition("_")[2]) for file in files), default=0)


def disturbed(project: Path, victim: str, moment_s: float, model: bytes, epoch_length: int) -> Kill | None:
    """Kill the victim `moment_s` after its start and run it again; None where it had ended before."""
    command = _COMMANDS[victim][-1]
    process = subprocess.Popen(
        command, cwd=project, env=surroundings(project), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(moment_s)
        return None
    process.send_signal(signal.SIGKILL)
    process.wait()  # its shell would
    within_epoch = newest_checkpoint(project) % epoch_length > 0
    deadline = time.monotonic() + _ENDED_S
    while (left := processes(project)) and time.monotonic() < deadline:
        time.sleep(0.1)
    left_behind = [" ".join(one.cmdline()) for one in left]
    after_training = any(status == "FINISHED" for status, _, _ in training_runs(project))
    for again in _COMMANDS[victim]:
        run(project, again)
    left_behind += [" ".join(one.cmdline()) for one in processes(project)]
    same = (project / "data/model/model.pt").read_bytes() == model
    return Kill(victim, moment_s, same, training_runs(project), left_behind, within_epoch, after_training)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 kills instead of 20")
    wanted = 3 if parser.parse_args().quick else 20
    draw = random.Random(_SEED)  # noqa: S311 - no secret
    kills: list[Kill] = []
    with tempfile.TemporaryDirectory() as name:
        base, project = Path(name) / "base", Path(name) / "project"
        checkout(base)
        set_values(base / "params.yaml", dict(_PARAMS))
        run(base, ["dvc", "repro", "preprocess"])
        run(base, [sys.executable, "-m", "flows.pipeline", "--targets", "preprocess"])  # sets Prefect's database up
        run(base, [sys.executable, "-c", "from deepcv import tracking; tracking.connect()"])
        duration_s, models = {}, set()
        for victim, commands in _COMMANDS.items():
            copy(base, project)
            start = time.monotonic()
            run(project, commands[-1])
            duration_s[victim] = time.monotonic() - start
            models.add((project / "data/model/model.pt").read_bytes())
        (model,) = models  # the same, whoever starts it
        epoch_length = len(np.load(project / "data/shards/train_labels.npy")) // int(_PARAMS["train.batch_size"])
        while len(kills) < wanted:
            victim = list(_COMMANDS)[len(kills) % len(_COMMANDS)]
            moment_s = draw.uniform(0, duration_s[victim])
            kill = disturbed(copy(base, project), victim, moment_s, model, epoch_length)
            if kill is not None:
                kills.append(kill)
                print(len(kills), kill, "clean" if kill.is_clean() else "NOT CLEAN", flush=True)
    clean = sum(kill.is_clean() for kill in kills)
    emit(
        "resume", value=clean, baseline=None,
        target="every kill: the same bytes, one run, no step doubled, no process left",
        holds=clean == len(kills), one_run=sum(len(kill.runs) == 1 for kill in kills),
        n=len(kills), same_bytes=sum(kill.same_bytes for kill in kills),
        kills={victim: sum(kill.victim == victim for kill in kills) for victim in _COMMANDS},
        killed_after_training=sum(kill.after_training for kill in kills),
        checkpoint_within_epoch=sum(kill.within_epoch for kill in kills),
        uninterrupted_s={victim: round(seconds, 1) for victim, seconds in duration_s.items()},
    )  # fmt: skip


if __name__ == "__main__":
    main()
