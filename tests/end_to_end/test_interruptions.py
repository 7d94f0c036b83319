"""Killed, interrupted, locked out: the next run goes on, nothing half-written counts, no process stays."""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest_end_to_end import STAGES, Project

STEPS_PER_EPOCH = 19  # 1,259 digits in batches of 64


@pytest.fixture(scope="module")
def uninterrupted(made: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project after a training of 12 epochs that nobody disturbed."""
    copy = Project(tmp_path_factory.mktemp("uninterrupted") / "project")
    shutil.copytree(made.root, copy.root)
    copy.set(train__epochs=12)
    assert copy.repro("train") == ["train"]
    return copy


def start(project: Project, *options: str, command: Sequence[str] = ("dvc", "repro")) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*command, *options], cwd=project.root, env=project.environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def kill(dvc: "subprocess.Popen[str]") -> None:
    dvc.kill()
    dvc.wait()  # its shell would: DVC takes a zombie for a process that still holds its locks


def processes_of(project: Project) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.cwd() == str(project.root):
                found.append(process)
    return found


def wait(condition: Callable[[], object], timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def stage_runs(project: Project, stage: str) -> bool:
    return any(f"deepcv.stages.{stage}" in process.cmdline() for process in processes_of(project))


def model_of(project: Project) -> bytes:
    return (project.root / "data/model/model.pt").read_bytes()


def checkpoints(project: Project) -> list[Path]:
    return list(project.root.glob(".deepcv/checkpoints/*/*.pt"))


SAMPLE = ("ingest", "export", "register")  # packed images, a folder of files, a database


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param(stage, marks=[] if stage in SAMPLE else [pytest.mark.acceptance])
        for stage in STAGES
        if stage != "train"
    ],
)
def test_kill_9_in_a_stage_loses_nothing(project: Project, stage: str) -> None:
    lock = project.lock()
    dvc = start(project, "--force", "--single-item", stage)
    wait(lambda: stage_runs(project, stage))
    time.sleep(1.0)  # into its imports or its work
    kill(dvc)
    wait(lambda: not processes_of(project), timeout_s=10)
    project.run("deepcv", "check")  # as `make run` and the flow do: the kill may have hit DVC as it wrote its locks
    project.repro()
    assert project.lock() == lock
    assert not [path for path in (project.root / "data").rglob(".*") if path.name.endswith(".tmp")]


@pytest.mark.parametrize("kept", [0, 0.4])
def test_a_half_written_dvc_lock_costs_no_training(project: Project, kept: float) -> None:
    lock = project.lock()
    (project.root / "dvc.lock").write_text(lock[: int(kept * len(lock))])
    told = project.run("deepcv", "check").stderr
    assert kept or "dvc.lock was half-written" in told  # cut between two stages it is whole, with fewer of them
    assert project.repro() == ["register"]  # all others come out of DVC's run cache
    assert project.lock() == lock


def test_a_half_written_rwlock_does_not_stop_the_next_run(project: Project) -> None:
    (project.root / ".dvc/tmp/rwlock").write_text("")
    assert project.run("dvc", "repro", check=False).returncode != 0  # why it has to be mended
    assert "rwlock was half-written" in project.run("deepcv", "check").stderr
    assert project.repro() == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_training_ends_with_the_same_bits(
    project: Project, uninterrupted: Project, number: signal.Signals
) -> None:
    project.set(train__epochs=12)
    dvc = start(project, "train")
    wait(lambda: len(checkpoints(project)) >= 2)
    if number == signal.SIGINT:
        os.killpg(dvc.pid, number)  # what a terminal's Ctrl-C does
        output, _ = dvc.communicate(timeout=60)
        assert "interrupted; the next `dvc repro` goes on from here" in output
        assert "Traceback" not in output
    else:
        kill(dvc)
    wait(lambda: not processes_of(project), timeout_s=10)
    assert not (project.root / "data/model/model.pt").exists()
    newest = max(int(path.stem.rsplit("_", 1)[-1]) for path in checkpoints(project))
    assert 1 <= newest < 12 * STEPS_PER_EPOCH

    assert project.repro("train") == ["train"]
    assert model_of(project) == model_of(uninterrupted)
    assert project.lock() == uninterrupted.lock()
    # One MLflow run, no epoch doubled.
    with contextlib.closing(sqlite3.connect(project.root / ".deepcv/mlflow/mlflow.db")) as database:
        runs = database.execute(
            "SELECT run_uuid, count(*) FROM metrics WHERE key = 'val_accuracy' GROUP BY run_uuid ORDER BY count(*)"
        ).fetchall()
    assert [count for _, count in runs] == [3, 12]


def iteration_of_newest(project: Project) -> int:
    return max((int(path.stem.rsplit("_", 1)[-1]) for path in checkpoints(project)), default=0)


@pytest.mark.parametrize(
    ("number", "whom", "status"),
    [
        (signal.SIGTERM, "trainer", 143),
        (signal.SIGINT, "trainer", 130),
        (signal.SIGTERM, "group", -signal.SIGTERM),  # DVC dies of it, and the kernel then tells the trainer once more
    ],
)
def test_a_trainer_that_is_told_to_end_keeps_its_work_of_within_the_epoch(
    project: Project, number: signal.Signals, whom: str, status: int
) -> None:
    project.set(train__epochs=2, train__batch_size=2)
    steps = len(np.load(project.root / "data/shards/train_labels.npy")) // 2
    command = [sys.executable, "-m", "deepcv.stages.train"] if whom == "trainer" else ["dvc", "repro", "train"]
    process = start(project, command=command)
    wait(lambda: checkpoints(project))  # of the first epoch; the next that is due by itself is that of the second
    time.sleep(0.3)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=60)
    wait(lambda: not processes_of(project), timeout_s=10)
    assert process.returncode == status
    assert "Traceback" not in output
    assert steps < iteration_of_newest(project) < 2 * steps


def test_a_damaged_checkpoint_is_named_and_the_training_goes_on(project: Project, uninterrupted: Project) -> None:
    project.set(train__epochs=12)
    dvc = start(project, "train")
    wait(lambda: len(checkpoints(project)) >= 2)
    kill(dvc)
    wait(lambda: not processes_of(project), timeout_s=10)
    newest = max(checkpoints(project), key=lambda path: int(path.stem.rsplit("_", 1)[-1]))
    newest.write_bytes(newest.read_bytes()[:1000])
    assert f"checkpoint {newest}" in project.run("dvc", "repro", "train").stderr
    assert model_of(project) == model_of(uninterrupted)
    assert not checkpoints(project)  # a training that ended needs none, and `--force` trains again
    kept = project.root / ".deepcv/ended"
    assert len(list(kept.iterdir())) == 1  # the lock is newer: the next training removes it
    assert "step" in project.run("dvc", "repro", "--force", "--single-item", "train").stderr
    assert model_of(project) == model_of(uninterrupted)


@pytest.mark.acceptance  # two minutes of waiting; tests/stages/test_training_log.py has the same in seconds
def test_a_locked_database_costs_no_training(project: Project) -> None:
    project.set(train__epochs=2)
    with contextlib.closing(
        sqlite3.connect(project.root / ".deepcv/mlflow/mlflow.db", isolation_level=None)
    ) as database:
        database.execute("BEGIN EXCLUSIVE")
        trained = project.run("dvc", "repro", "train")
        assert "training goes on" in trained.stderr
        refused = project.run("dvc", "repro", check=False)
        assert refused.returncode != 0
        assert "register: MLflow does not answer" in refused.stderr
        database.execute("ROLLBACK")
    assert project.repro() == ["register"]
    assert project.repro() == []


def test_a_wrong_value_stops_before_any_stage_and_corrected_runs_nothing(project: Project) -> None:
    params = project.root / "params.yaml"
    good = params.read_text()
    params.write_text(good.replace("  epochs: 3", "  epohcs: 3"))
    result = project.run("deepcv", "check", check=False)
    assert result.returncode == 1
    assert "epohcs" in result.stderr
    assert "epochs" in result.stderr
    assert project.run("dvc", "repro", check=False).returncode != 0
    params.write_text(good)
    assert project.repro() == []
