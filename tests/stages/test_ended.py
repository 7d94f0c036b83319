"""Between the end of a training and DVC's record of it."""

import shutil
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from test_train import runs
from toys import recorded

from deepcv import home
from deepcv.errors import DeepcvError
from deepcv.stages import ended, train
from deepcv.stages.training_log import TrainingLog


def train_to_its_end() -> None:
    if finish := train.main():
        finish()


def outputs() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in train.MODEL.iterdir()}


@pytest.mark.usefixtures("store")
def test_what_ended_is_kept_until_the_lock_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, state = tmp_path / "model", home.state_dir() / "ended"
    folder.mkdir()
    (folder / "model.pt").write_bytes(b"one")
    assert not ended.is_unrecorded("one")
    ended.sweep()
    ended.keep("one", folder)
    assert ended.is_unrecorded("one")
    assert not ended.is_unrecorded("other")
    (folder / "model.pt").write_bytes(b"half of someth")
    (folder / "other").write_bytes(b"")
    ended.restore("one", folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"model.pt": b"one"}
    assert ended.is_unrecorded("one")  # a kill may come once more
    recorded()
    assert not ended.is_unrecorded("one")
    ended.keep("two", folder)
    with monkeypatch.context() as patch:  # another experiment of the project, in a copy of it
        (tmp_path / "copy").mkdir()
        patch.chdir(tmp_path / "copy")
        assert not ended.is_unrecorded("two")
        recorded()
        ended.keep("three", folder)
        ended.sweep()
        assert ended.is_unrecorded("three")
    ended.sweep()
    assert sorted(path.name for path in state.iterdir()) == ["three", "two"]
    assert ended.is_unrecorded("two")
    shutil.rmtree(tmp_path / "copy")
    recorded()  # the same text: `dvc repro --force`
    ended.sweep()
    assert list(state.iterdir()) == []


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("note", [b"", b"[]", b'{"path": 3}', b"\xff"])
def test_a_note_that_says_nothing_is_none(note: bytes, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    ended.keep("key", tmp_path / "model")
    (found,) = tmp_path.rglob("lock.json")
    found.write_bytes(note)
    assert not ended.is_unrecorded("key")
    ended.sweep()
    assert not found.exists()


def test_a_training_that_nobody_recorded_is_not_trained_again(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded()
    train_to_its_end()
    whole = outputs()
    (run,) = runs()
    for path in train.MODEL.iterdir():  # as DVC does before it runs a stage
        path.unlink()
    train.MODEL.rmdir()
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", None)
        train_to_its_end()
    assert outputs() == whole
    assert "had ended before, and DVC has recorded nothing since" in capsys.readouterr().err
    assert [one.info.run_id for one in runs()] == [run.info.run_id]
    recorded()
    train_to_its_end()  # `dvc repro --force`
    assert outputs() == whole
    assert len(runs()) == 2
    assert not list((project / "checkpoints").iterdir())


@pytest.mark.parametrize("cut", ["end", "keep", "remove"])
def test_wherever_its_end_is_cut_off_there_is_one_run(cut: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*place: object) -> None:
        for log in place:
            if isinstance(log, TrainingLog):  # its thread ends with a process that is killed, and would go on here
                log._writes.put(None)
                log._thread.join()
        raise DeepcvError("killed")

    train_to_its_end()
    whole = outputs()
    recorded()
    MlflowClient().delete_run(runs()[0].info.run_id)
    place = {"end": (TrainingLog, "end"), "keep": (ended, "keep"), "remove": (train.archive, "remove")}[cut]
    with monkeypatch.context() as patch:
        patch.setattr(*place, killed)
        finish = train.main()
        assert finish is not None
        with pytest.raises(DeepcvError, match="killed"):
            finish()
    assert len(list((project / "checkpoints").iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", None)
        train_to_its_end()
    assert outputs() == whole
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert [point.step for point in MlflowClient().get_metric_history(run.info.run_id, "val_loss")] == [1, 2, 3]
    assert not list((project / "checkpoints").iterdir())
