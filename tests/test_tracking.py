import contextlib
import re
import shutil
import sqlite3
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from deepcv import receipts, tracking

NAME = "deepcv-toy"
CURVE = [{"epoch": 1.0, "val_accuracy": 0.5, "lr": 0.1}, {"epoch": 2.0, "val_accuracy": 0.75, "lr": 0.01}]

pytestmark = pytest.mark.usefixtures("store")


def run(run_id: str) -> Run:
    return MlflowClient().get_run(run_id)


def curve_of(run_id: str, metric: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in MlflowClient().get_metric_history(run_id, metric)]


def new_run(**tags: str) -> str:
    return tracking.start_run(NAME, "train", {"lr": 0.1, "deep": {"width": 8}}, tags)


def test_a_run_holds_what_was_written(tmp_path: Path) -> None:
    run_id = new_run(colour="red")
    tracking.log_metrics(run_id, {"loss": 1, "accuracy": 0.5}, step=3)
    tracking.log_metrics(run_id, {"loss": 0.25}, step=4)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.txt").write_text("x")
    tracking.log_artifacts(run_id, tmp_path / "files", "evaluation")
    tracking.set_tags(run_id, {"shape": "round"})
    tracking.finish(run_id)
    found = run(run_id)
    assert found.data.params == {"lr": "0.1", "deep.width": "8"}
    assert curve_of(run_id, "loss") == [(3, 1.0), (4, 0.25)]
    assert found.data.metrics == {"loss": 0.25, "accuracy": 0.5}
    assert tracking.last_step(run_id, "loss") == 4
    assert tracking.last_step(run_id, "unknown") == 0
    assert tracking.has_tag(run_id, "colour", "red")
    assert tracking.has_tag(run_id, "shape", "round")
    assert not tracking.has_tag(run_id, "shape", "square")
    assert found.info.status == "FINISHED"
    assert [a.path for a in MlflowClient().list_artifacts(run_id, "evaluation")] == ["evaluation/a.txt"]


def test_keys_that_are_no_names_of_params_are_told_all_the_same() -> None:
    """Such as the patterns of `train.unfreeze`, of which MLflow says that it does not take them."""
    parts = {"net.*conv*": 3, "head": 1}
    run_id = tracking.start_run(NAME, "train", {"unfreeze": parts, "deep": {"er": {"a": 1, "": 2}, "$b": {}}}, {})
    expected = {"unfreeze": str(parts), "deep": "{'er': {'a': 1, '': 2}, '$b': {}}"}
    assert run(run_id).data.params == expected
    assert tracking.flat({"a": {"b": {"c": 1}}, "none": {}}) == {"a.b.c": "1"}


def test_artifacts_lie_in_the_state_folder(store: Path, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.txt").write_text("x")
    run_id = new_run()
    tracking.log_artifacts(run_id, tmp_path / "files", "evaluation")
    assert (store / "mlflow" / "artifacts" / NAME / run_id / "artifacts" / "evaluation" / "a.txt").exists()


def test_runs_are_found_by_tag_and_status() -> None:
    old, new = new_run(key="1"), new_run(key="1")
    tracking.finish(new)
    assert tracking.find_run(NAME, "key", "1", status="RUNNING") == old
    assert tracking.find_run(NAME, "key", "1", status="FINISHED") == new
    assert tracking.find_run(NAME, "key", "1") in (old, new)
    assert tracking.find_run(NAME, "key", "2") is None
    assert tracking.find_run("deepcv-other", "key", "1") is None


def test_trials_nest_under_their_search() -> None:
    search = tracking.start_search_run(NAME, {"trials": 2})
    trial = tracking.start_trial_run(NAME, search, {"lr": 0.1})
    assert run(trial).data.tags["mlflow.parentRunId"] == search


def test_the_run_of_a_model_is_found_or_written_again() -> None:
    trained = new_run()
    tracking.set_tags(trained, {tracking.MODEL_TAG: "abc"})
    assert tracking.run_of_model(NAME, "abc", {}, []) == trained
    restored = tracking.run_of_model(NAME, "def", {"lr": 0.1, "hardware": {"threads": 1}}, CURVE)
    assert restored != trained
    assert run(restored).data.params == {"lr": "0.1", "hardware.threads": "1"}
    assert curve_of(restored, "val_accuracy") == [(1, 0.5), (2, 0.75)]
    assert curve_of(restored, "lr") == [(1, 0.1), (2, 0.01)]
    assert "epoch" not in run(restored).data.metrics
    assert run(restored).info.status == "FINISHED"
    assert tracking.run_of_model(NAME, "def", {}, []) == restored


@pytest.mark.parametrize("folder", ["moved", "with a space and ü"])
def test_a_moved_state_folder_is_mended(
    folder: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a b", folder):  # from there, to here and its artifacts are read, then a run is written
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / "files" / "a.txt").write_text("x")
        run_id = new_run()
        tracking.log_artifacts(run_id, tmp_path / "files", "evaluation")
        moved = tmp_path / name / "state"
        moved.parent.mkdir()
        shutil.move(store, moved)
        monkeypatch.setenv("DEEPCV_HOME", str(moved))
        tracking.connect()
        assert [a.path for a in MlflowClient().list_artifacts(run_id)] == ["evaluation"]
        assert Path(MlflowClient().download_artifacts(run_id, "evaluation/a.txt")).read_text() == "x"
        store = moved


def test_a_database_that_is_gone_takes_the_receipt_along(store: Path) -> None:
    receipt = receipts.project_dir() / receipts.RECEIPT
    receipt.parent.mkdir(parents=True, exist_ok=True)
    receipt.write_text("{}")
    tracking.connect()
    receipts.drop_orphan()
    assert receipt.exists()
    (store / "mlflow" / "mlflow.db").unlink()
    receipts.drop_orphan()
    assert not receipt.exists()


def test_a_damaged_database_is_one_short_error(store: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_id = new_run()
    (store / "mlflow" / "mlflow.db").write_bytes(b"no database" * 99)
    with pytest.raises(tracking.TrackingError) as raised:
        tracking.log_metrics(run_id, {"loss": 1.0})
    assert tracking.reason(raised.value) == "(sqlite3.DatabaseError) file is not a database"
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("state", ["locked", "damaged"])
def test_a_database_that_cannot_be_opened_is_said_soon(
    state: str, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_BUSY_S", 0.5)
    file = store / "mlflow" / "mlflow.db"
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
        if state == "locked":
            other.execute("BEGIN EXCLUSIVE")
        else:
            file.write_bytes(b"no database" * 99)
        start = time.monotonic()
        with pytest.raises(tracking.TrackingError, match=f"{file} cannot be opened: .*(locked|not a database)"):
            tracking.connect()
        assert time.monotonic() - start < 3


def test_paths_that_cannot_be_mended_are_a_tracking_error(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking.connect()
    (store / "mlflow" / "location.txt").write_text("/elsewhere")
    monkeypatch.setattr(tracking, "_PATH_COLUMNS", (("no_such_table", "x"),))
    with pytest.raises(tracking.TrackingError, match="cannot be mended"):
        tracking.connect()


def test_a_metric_of_a_column_of_any_name_is_written() -> None:
    run_id = new_run()
    names = ["test_numbers.größe/2 (µm).r2", "test_tags.a//b:..c.macro_f1", f"test_numbers.{'x' * 300}.mae"]
    tracking.log_metrics(run_id, dict(zip(names, (0.5, 0.25, 3.0), strict=True)))
    found = run(run_id).data.metrics
    assert found == {tracking.metric_name(name): value for name, value in zip(names, (0.5, 0.25, 3.0), strict=True)}
    assert tracking.metric_name(names[0]).startswith("test_numbers.größe_2 _µm_.r2_")
    assert re.fullmatch(r"test_numbers\.x+\.mae_[0-9a-f]{6}", tracking.metric_name(names[2]))
    assert tracking.metric_name("val_accuracy") == "val_accuracy"


def test_metrics_whose_names_differ_in_what_mlflow_does_not_take_stay_two() -> None:
    run_id = new_run()
    longer = [f"{'x' * 150}{middle}{'y' * 150}" for middle in "ab"]
    names = ["val_numbers.weight (g).r2", "val_numbers.weight [g].r2", "val_numbers.weight _g_.r2", *longer]
    tracking.log_metrics(run_id, {name: number for number, name in enumerate(names)})
    found = run(run_id).data.metrics
    assert len(found) == 5
    assert [found[tracking.metric_name(name)] for name in names] == [0, 1, 2, 3, 4]
    assert found[names[2]] == 2
