"""A store that goes away costs a training no point and no time."""

import contextlib
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Timer
from threading import enumerate as enumerate_threads
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Run

from deepcv import tracking
from deepcv.errors import DeepcvError
from deepcv.stages import training_log
from deepcv.stages.training_log import TrainingLog
from deepcv.training.history import EpochRecord, Point

TRAINING = {
    "dataset": "toy",
    "data_digest": "d",
    "network_sha256": "n",
    "params": {"lr": 0.1},
    "hardware": {"device": "cpu"},
}
NAME = "deepcv-toy"
DONE = {tracking.MODEL_TAG: "abc"}


def new_log(key: str = "key") -> TrainingLog:
    return TrainingLog(NAME, key, TRAINING)


def record(epoch: int) -> EpochRecord:
    return EpochRecord(epoch, 1.0, 0.5, 1.0, epoch / 10, 0.1)


def point(step: int) -> Point:
    return Point(step, 1 / step, {"lr": step / 100, "losses.0.weight": 0.5})


def runs(key: str = "key") -> list[Run]:
    wanted = f"tags.`{tracking.TRAINING_TAG}` = '{key}'"
    return list(MlflowClient().search_runs([tracking.open_experiment(NAME)], wanted))


def curve(run: Run, metric: str = "val_accuracy") -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in MlflowClient().get_metric_history(run.info.run_id, metric)]


def check_whole(key: str = "key", epochs: int = 3, steps: int = 0) -> None:
    (run,) = runs(key)
    for name in ("train_loss", "lr", "losses.0.weight"):
        expected = [(step, point(step).metrics()[name]) for step in range(1, steps + 1)]
        assert curve(run, f"step/{name}") == expected
    assert curve(run) == [(epoch, epoch / 10) for epoch in range(1, epochs + 1)]
    assert [step for step, _ in curve(run, "lr")] == list(range(1, epochs + 1))
    assert run.data.params["lr"] == "0.1"
    assert run.data.tags[tracking.MODEL_TAG] == "abc"
    assert run.info.status == "FINISHED"


@contextlib.contextmanager
def locked(store: Path) -> Iterator[Callable[[], None]]:
    """No other connection can even read the database; what is yielded ends that before the block does."""
    file = store / "mlflow" / "mlflow.db"
    with contextlib.closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as database:
        database.execute("BEGIN EXCLUSIVE")
        yield lambda: database.execute("ROLLBACK") and None


@pytest.mark.usefixtures("store")
def test_a_resumed_training_goes_on_in_its_run() -> None:
    first = new_log()
    for epoch in (1, 2):
        first.epoch(record(epoch))
    deadline = time.monotonic() + 30
    while not (found := runs()) or len(curve(found[0])) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    second = new_log()  # the first was killed
    for epoch in (1, 2, 3):  # epochs that were restored are told again
        second.epoch(record(epoch))
    second.end("FINISHED", DONE)
    check_whole()


@pytest.mark.usefixtures("store")
def test_a_resumed_training_doubles_and_loses_no_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than MLflow takes at once; the first process is killed with points that the store has not, after others that it has."""
    calls: list[int] = []
    write = tracking.log_points
    monkeypatch.setattr(tracking, "log_points", lambda *given: calls.append(len(given[1])) or write(*given))
    first = new_log()
    for step in range(1, 401):
        first.point(point(step))
    first.epoch(record(1))
    first.run_id()  # as a process that is asked to end has to know it
    for step in range(401, 410):
        first.point(point(step))
    assert calls == [400]
    second = new_log()
    for step in range(1, 451):
        second.point(point(step))
    for epoch in (1, 2, 3):
        second.epoch(record(epoch))
    second.end("FINISHED", DONE)
    check_whole(steps=450)
    assert calls == [400, 50]


@pytest.mark.usefixtures("store")
def test_points_are_written_while_the_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_log, "_GATHER_S", 0.0)
    log = new_log()
    log.point(point(1))
    deadline = time.monotonic() + 30
    while not (found := runs()) or not curve(found[0], "step/train_loss"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    log.end("FAILED")


@pytest.mark.usefixtures("store")
def test_what_is_noted_becomes_tags() -> None:
    log = new_log()
    log.note({"pieces": 4, "images_per_s.loader": 12345.678})
    log.end("FINISHED", DONE)
    (run,) = runs()
    assert (run.data.tags["deepcv.pieces"], run.data.tags["deepcv.images_per_s.loader"]) == ("4", "12345.7")


@pytest.mark.usefixtures("store")
def test_a_run_that_was_opened_and_no_more_gets_its_params() -> None:
    tracking.start_run(NAME, "train", {}, {tracking.TRAINING_TAG: "key"})
    log = new_log()
    for epoch in (1, 2, 3):
        log.epoch(record(epoch))
    log.end("FINISHED", DONE)
    check_whole()


def test_a_locked_database_holds_nobody_up_and_gets_every_point(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with locked(store) as unlock:
        start = time.monotonic()
        log = new_log()
        for epoch in (1, 2, 3):
            log.epoch(record(epoch))
        assert time.monotonic() - start < 0.5
        told_s = time.time()
        timer = Timer(3, unlock)
        timer.start()
        log.end("FINISHED", DONE)
        timer.join()
    check_whole()
    times_s = [point.timestamp / 1000 for point in MlflowClient().get_metric_history(runs()[0].info.run_id, "lr")]
    assert max(times_s) <= told_s  # a point is of when its epoch ended, not of when it could be written
    assert "`register`" not in capsys.readouterr().err


def test_a_store_that_stays_away_is_left_to_register(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_log, "_PATIENCE_S", 3.0)
    monkeypatch.setattr(training_log, "_PAUSE_S", 0.2)
    (store / "mlflow" / "mlflow.db").write_bytes(b"no database" * 99)
    log = new_log()
    for epoch in (1, 2):
        log.epoch(record(epoch))
    start = time.monotonic()
    log.end("FINISHED", DONE)
    assert time.monotonic() - start < 5
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train:")]
    assert len(said) == 2  # not one per try
    assert "training goes on, its curve is written when it does" in said[0]
    assert "`register` will log this training again" in said[1]


def test_who_needs_the_run_waits_for_the_store(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_log, "_PATIENCE_S", 0.5)
    key = uuid.uuid4().hex  # not that of a test whose thread still waits
    with locked(store):
        log = new_log(key)
        log.epoch(record(1))
        with pytest.raises(
            DeepcvError, match=r"MLflow does not answer.* checkpoints cannot be copied .* stay where they"
        ):
            log.run_id()
    monkeypatch.setattr(training_log, "_PATIENCE_S", 60.0)
    run_id = log.run_id()
    assert [(run.info.run_id, curve(run)) for run in runs(key)] == [(run_id, [(1, 0.1)])]


CALLS = ("find_run", "start_run", "log_params", "last_step", "log_metrics", "log_points", "set_tags", "finish")


@pytest.mark.usefixtures("store")
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    outcomes=st.lists(st.sampled_from(["done", "done", "refused", "answer lost", "undone"]), min_size=20, max_size=30)
)
def test_whatever_fails_each_point_is_written_once(outcomes: list[str]) -> None:
    """Each call of the store does what is asked, or does not, or does and its answer is lost; after that list all is well.

    Or points are written and undone by an outage that begins in that moment, which the next call meets.
    """
    left = iter(outcomes)
    away = False

    def faulty(call: Callable[..., Any], is_points: bool) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **more: Any) -> Any:
            nonlocal away
            outcome = "refused" if away else next(left, "done")
            away = outcome == "undone" and is_points
            if away:
                return None
            outcome = "done" if outcome == "undone" else outcome
            answer = None if outcome == "refused" else call(*arguments, **more)
            if outcome != "done":
                raise tracking.TrackingError(outcome)
            return answer

        return wrapped

    key = uuid.uuid4().hex
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_log, "_PAUSE_S", 0.0)
        patch.setattr(training_log, "_GATHER_S", 0.0)
        for name in CALLS:
            patch.setattr(tracking, name, faulty(getattr(tracking, name), name in ("log_metrics", "log_points")))
        log = new_log(key)
        for epoch in (1, 2, 3):
            log.point(point(epoch))
            log.epoch(record(epoch))
        log.end("FINISHED", DONE)
    check_whole(key, steps=3)


@pytest.mark.usefixtures("store")
def test_pictures_become_artifacts_of_the_run_and_leave_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    key = uuid.uuid4().hex
    log = new_log(key)
    log.pictures(lambda folder: (folder / "batch.png").write_bytes(b"a picture") and None)
    log.end("FINISHED", DONE)
    (run,) = runs(key)
    (found,) = MlflowClient().list_artifacts(run.info.run_id, "preview")
    assert found.path == "preview/batch.png"
    assert not list(tmp_path.glob("deepcv-preview-*"))


def watched(key: str, count: int) -> list[int]:
    """Steps of the CPU's utilisation in the run, once there are so many."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (found := runs(key)) and len(points := curve(found[0], "system/cpu_utilization_percentage")) >= count:
            return [step for step, _ in points]
        time.sleep(0.1)
    raise AssertionError(f"no {count} points")


def test_the_machine_is_watched_until_the_run_ends(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    others = set(enumerate_threads())  # of logs that tests before this one never ended
    new_log()  # of a process that was killed, but for its thread
    before = watched("key", 2)
    log = new_log()
    log.epoch(record(1))
    steps = watched("key", len(before) + 4)
    assert max(steps) > max(before)
    with locked(store) as unlock:
        log.epoch(record(2))
        log.epoch(record(3))
        timer = Timer(2, unlock)
        timer.start()
        log.end("FINISHED", DONE)
        timer.join()
    check_whole()
    assert runs()[0].data.metrics["system/system_memory_usage_megabytes"] > 0
    deadline = time.monotonic() + 150  # MLflow tries again for minutes to write what met the lock
    while any(one.name == "SystemMetricsMonitor" for one in set(enumerate_threads()) - others):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("value", ["false", "perhaps"])
def test_without_system_metrics_the_curve_is_whole(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", value)
    log = new_log()
    for epoch in (1, 2, 3):
        log.epoch(record(epoch))
    time.sleep(0.5)
    log.end("FINISHED", DONE)
    check_whole()
    assert not any(name.startswith("system/") for name in runs()[0].data.metrics)
    assert ("no system metrics: " in capsys.readouterr().err) == (value == "perhaps")
