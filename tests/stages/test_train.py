"""The stage `train` as a whole, on a toy project: what it leaves beside its model."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
import toys
from mlflow import MlflowClient
from mlflow.entities import Run
from test_tensorboard import shown

from deepcv import home, lineage, tracking
from deepcv.errors import DeepcvError
from deepcv.files import sha256
from deepcv.images import decode
from deepcv.nn import classifier
from deepcv.nn.classifier import Classifier
from deepcv.nn.spec import SpecError, load
from deepcv.stages import train
from deepcv.stages.training_log import TrainingLog
from deepcv.training.checkpoints import CheckpointError
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
def test_the_run_stays_open_where_its_checkpoints_cannot_be_taken_over_now(monkeypatch: pytest.MonkeyPatch) -> None:
    tracking.open_experiment("deepcv-toy")  # else the client is that of the test before

    def fails(*_: object) -> int:
        raise CheckpointError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr("deepcv.training.checkpoints.restore_latest", fails)
        with pytest.raises(CheckpointError, match="no memory"):
            train.main()
    while not runs():  # which a thread of its own opens
        time.sleep(0.05)
    assert [run.info.status for run in runs()] == ["RUNNING"]
    finish = train.main()
    assert finish is not None
    finish()
    assert [run.info.status for run in runs()] == ["FINISHED"]


@pytest.mark.usefixtures("project")
def test_false_colours_are_refused_before_anything_is_trained() -> None:
    """As `dvc exp run -S` may ask for them, which checks no params."""
    path = train.SHARDS / "dataset.json"
    path.write_text(path.read_text().replace('"resize"', '"colour": "hsv", "resize"'))
    Path("params.yaml").write_text("train: {network: network.yaml, augmentation: {policy: augmix}}\n")
    with pytest.raises(
        DeepcvError, match=r"^train\.augmentation: augmix would make false colours of the hsv of preproc"
    ):
        train.main()
    assert not train.MODEL.exists()


@pytest.mark.usefixtures("project")
def test_the_choices_of_the_params_are_trained_and_logged(tmp_path: Path) -> None:
    path, params = tmp_path / "network.yaml", Path("params.yaml")
    path.write_text(toys.CHOICES)
    params.write_text(params.read_text().replace("batch_size", "network_choices: {mix.0: wide}, batch_size"))
    with pytest.raises(SpecError, match=r"'mix\.1': the choice is open; set pick .* say it in train\.network_choices"):
        train.main()
    assert not tracking.connect().get_experiment_by_name("deepcv-toy")  # a misfit opens no run
    params.write_text(params.read_text().replace("mix.0: wide", "mix.0: wide, mix.1: small"))
    finish = train.main()
    assert finish is not None
    finish()
    (run,) = runs()
    spec = load(path, {}, {"mix.0": "wide", "mix.1": "small"})
    assert run.data.params["network_sha256"] == spec.sha256()
    assert run.data.params["network_choices.mix.0"] == "wide"
    model, _ = classifier.load(train.MODEL / "model.pt")
    assert model.network.get_submodule("mix.0.wide.conv").kernel_size == (3, 3)
    assert model.network.get_submodule("mix.1.small.conv").kernel_size == (1, 1)


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
def test_the_curves_of_a_resumed_training_have_each_epoch_and_point_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told, logs = TrainingLog.epoch, list[TrainingLog]()

    def interrupt(log: TrainingLog, record: EpochRecord) -> None:
        told(log, record)
        if record.epoch == 2:
            logs.append(log)
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLog, "epoch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train.main()
    logs[0].run_id()  # the thread of an ended process writes no more; this one lives on
    finish = train.main()
    assert finish is not None
    finish()
    (folder,) = (home.state_dir() / "tensorboard").iterdir()
    assert re.fullmatch(r"toy-[0-9a-f]{16}", folder.name)
    assert len(list(folder.iterdir())) == 2
    curve, steps = pd.read_csv(train.MODEL / "history.csv"), pd.read_csv(train.MODEL / "steps.csv")
    assert list(steps.columns) == ["step", "train_loss", "lr"]
    (run,) = runs()
    for tag, points in shown(folder).items():
        own, numbers = (steps, steps["step"]) if tag.startswith("step/") else (curve, [1, 2, 3])
        expected = list(zip(numbers, own[tag.removeprefix("step/")], strict=True))
        assert points == [(step, pytest.approx(value)) for step, value in expected]
        logged = MlflowClient().get_metric_history(run.info.run_id, tag)
        assert [(point.step, point.value) for point in logged] == expected
    assert json.loads((train.MODEL / "training.json").read_text()).keys() == {
        "dataset", "data_digest", "network_sha256", "params", "hardware",
    }  # fmt: skip
    assert "TensorBoard" not in capsys.readouterr().err


@pytest.mark.usefixtures("project")
def test_the_run_says_how_the_training_went(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Classifier.forward

    def confined(model: Classifier, images_nchw: torch.Tensor) -> dict[str, torch.Tensor]:
        if model.training and len(images_nchw) > 4:
            raise torch.OutOfMemoryError("tried to allocate more than there is")
        return forward(model, images_nchw)

    monkeypatch.setattr(Classifier, "forward", confined)
    finish = train.main()
    assert finish is not None
    finish()
    (run,) = runs()
    pieces = json.loads((train.MODEL / "training.json").read_text())["pieces"]
    assert pieces > 1
    assert run.data.tags["deepcv.pieces"] == str(pieces)
    for name in ("loader", "network", "together"):
        assert float(run.data.tags[f"deepcv.images_per_s.{name}"]) > 0


@pytest.mark.usefixtures("project")
def test_a_run_that_was_lost_is_written_again_with_its_points() -> None:
    finish = train.main()
    assert finish is not None
    finish()
    (first,) = runs()
    MlflowClient().set_tag(first.info.run_id, tracking.MODEL_TAG, "of another model")
    again = lineage.run_of(train.MODEL)
    assert again != first.info.run_id
    for name in ("val_loss", "step/train_loss", "step/lr"):
        points = [
            [(point.step, point.value) for point in MlflowClient().get_metric_history(run_id, name)]
            for run_id in (first.info.run_id, again)
        ]
        assert points[0] == points[1] != []


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
    assert len(list(project.glob("checkpoints/*/"))) == 1  # that of the single one, which was not told to finish


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
