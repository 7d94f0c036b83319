"""The stage `train` as a whole, on a toy project: what it leaves beside its model."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import toys
from mlflow import MlflowClient
from mlflow.entities import Run
from test_tensorboard import shown

from deepcv import home, tracking
from deepcv.errors import DeepcvError
from deepcv.files import sha256
from deepcv.images import decode
from deepcv.stages import train
from deepcv.stages.training_log import TrainingLog
from deepcv.training.history import EpochRecord
from deepcv.training.setup import set_up


def runs() -> list[Run]:
    return list(MlflowClient().search_runs([tracking.open_experiment("deepcv-toy")]))


@pytest.mark.usefixtures("project")
def test_the_preview_is_in_the_run_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(*_: object) -> None:
        raise DeepcvError("the first step")

    monkeypatch.setattr(torch.optim.AdamW, "step", end)
    with pytest.raises(DeepcvError, match="the first step"):
        train.main()
    (run,) = runs()
    paths = [tracking.artifact_file(run.info.run_id, f"preview/{name}.png") for name in ("batch", "schedules")]
    assert all(decode(path.read_bytes(), 3).std() > 1 for path in paths)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("values", "words"),
    [
        ("optimizer: torch/SparseAdam", "torch/SparseAdam cannot train a network"),
        ("optimizer_options: {betass: [0.9, 0.99]}", "no such option; the closest is 'betas'"),
        ("lr_scales: {steem: 0.1}", "no part 'steem'"),
    ],
)
def test_an_optimizer_that_does_not_fit_opens_no_run(values: str, words: str) -> None:
    tracking.open_experiment("deepcv-toy")  # else the client is that of the test before
    params = Path("params.yaml")
    params.write_text(params.read_text().replace("epochs: 3", f"epochs: 3, {values}"))
    with pytest.raises(DeepcvError, match=words):
        train.main()
    assert runs() == []


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


@pytest.mark.acceptance  # three processes import torch and MLflow: 46 s on a busy machine
def test_two_processes_are_one_run_and_one_model(project: Path, tmp_path: Path) -> None:
    """As DVC starts the stage: it launches two, of which the first logs and writes."""
    Path("dvc.yaml").write_text("stages:\n  train: {cmd: '', params: [train], deps: [data/shards]}\n")
    toys.network(tmp_path, toys.NETWORK.replace("  - {id: drop, op: dropout, p: 0.3}\n", ""))  # each would draw its own
    params = Path("params.yaml")
    single = train.main()
    assert single is not None
    alone = pd.read_csv(train.MODEL / "history.csv")
    shutil.rmtree(train.MODEL)
    params.write_text(params.read_text().replace("batch_size", "processes: 2, batch_size"))
    done = subprocess.run(
        [sys.executable, "-m", "deepcv.stages.train"], capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "PYTHONPATH": str(toys.REPOSITORY), "GLOO_SOCKET_IFNAME": "lo", "DEEPCV_HOME": str(project)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = (run for run in runs() if run.data.params["hardware.processes"] == "2")
    assert run.info.status == "FINISHED"
    assert run.data.tags[tracking.MODEL_TAG] == sha256(train.MODEL / "model.pt")
    for tag, values in pd.read_csv(train.MODEL / "history.csv").items():
        points = MlflowClient().get_metric_history(run.info.run_id, tag)
        if tag != "epoch":
            assert [(point.step, point.value) for point in points] == list(enumerate(values, start=1))
        assert list(values) == pytest.approx(list(alone[tag]), rel=1e-3)
    assert len(runs()) == 2
    assert len(list((project / "checkpoints").iterdir())) == 1  # that of the single one, which was not told to finish


def test_without_matplotlib_there_is_one_picture_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards, drawn = toys.shards(tmp_path / "shards"), tmp_path / "drawn"
    loader = set_up(toys.network(tmp_path), shards, toys.CONFIG).loader
    drawn.mkdir()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    train.draw_preview(loader, toys.CONFIG, shards, drawn)
    assert [path.name for path in drawn.iterdir()] == ["batch.png"]
    monkeypatch.undo()
    train.draw_preview(loader, toys.CONFIG, shards, drawn)
    assert sorted(path.name for path in drawn.iterdir()) == ["batch.png", "schedules.png"]
