"""The stage `train` as a whole, on a toy project: what it leaves beside its model."""

import re
import signal
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import toys
from mlflow import MlflowClient
from test_tensorboard import shown

from deepcv import home, tracking
from deepcv.errors import DeepcvError
from deepcv.images import decode
from deepcv.stages import train
from deepcv.stages.training_log import TrainingLog
from deepcv.training.fit import set_up
from deepcv.training.history import EpochRecord


@pytest.fixture
def project(store: Path, tmp_path: Path) -> Path:
    """A project whose stage `train` takes a moment: its folder of state."""
    toys.write_shards(train.SHARDS)
    toys.network(tmp_path)
    toys.no_weights(tmp_path)
    Path("versions.yaml").write_text('torch: "1"\n')
    Path("params.yaml").write_text("train: {network: network.yaml, epochs: 3, batch_size: 8, device: cpu}\n")
    return store


@pytest.mark.usefixtures("project")
def test_the_preview_is_in_the_run_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(*_: object) -> None:
        raise DeepcvError("the first step")

    monkeypatch.setattr(torch.optim.AdamW, "step", end)
    with pytest.raises(DeepcvError, match="the first step"):
        train.main()
    (run,) = MlflowClient().search_runs([tracking.open_experiment("deepcv-toy")])
    paths = [tracking.artifact_file(run.info.run_id, f"preview/{name}.png") for name in ("batch", "schedules")]
    assert all(decode(path.read_bytes(), 3).std() > 1 for path in paths)


@pytest.mark.usefixtures("project")
def test_tensorboard_has_each_epoch_of_a_resumed_training_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = TrainingLog.epoch

    def interrupt(log: TrainingLog, record: EpochRecord) -> None:
        told(log, record)
        if record.epoch == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLog, "epoch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train.main()
    finish = train.main()
    assert finish is not None
    finish()
    (folder,) = (home.state_dir() / "tensorboard").iterdir()
    assert re.fullmatch(r"toy-[0-9a-f]{16}", folder.name)
    assert len(list(folder.iterdir())) == 2
    curve = pd.read_csv(train.MODEL / "history.csv")
    for tag, points in shown(folder).items():
        assert [step for step, _ in points] == [1, 2, 3]
        assert [value for _, value in points] == pytest.approx(list(curve[tag]))
    assert "TensorBoard" not in capsys.readouterr().err


def test_without_matplotlib_there_is_one_picture_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards, drawn = toys.shards(tmp_path / "shards"), tmp_path / "drawn"
    loader = set_up(toys.network(tmp_path), shards, toys.CONFIG).loader
    drawn.mkdir()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    train.draw_preview(loader, toys.CONFIG, shards.classes, drawn)
    assert [path.name for path in drawn.iterdir()] == ["batch.png"]
    monkeypatch.undo()
    train.draw_preview(loader, toys.CONFIG, shards.classes, drawn)
    assert sorted(path.name for path in drawn.iterdir()) == ["batch.png", "schedules.png"]
