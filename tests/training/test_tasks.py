"""Trainings that learn labels or numbers instead of classes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from torch.nn import functional as F

from deepcv.data.augmentation import Recipe, mixing
from deepcv.data.augmentation.recipe import Mix
from deepcv.data.loaders import Views
from deepcv.data.shards import Dataset, open_shards
from deepcv.errors import DeepcvError
from deepcv.evaluation import label_metrics, metrics
from deepcv.evaluation.inference import logits_of
from deepcv.images import ImageRecipe
from deepcv.nn import classifier
from deepcv.serving import onnx_export
from deepcv.serving.predictor import ExportInfo, Predictor
from deepcv.task import Task
from deepcv.training.config import ProgressiveResize, TrainConfig
from deepcv.training.engine import RunningMetrics
from deepcv.training.fit import Fitted, fit
from deepcv.training.history import EpochRecord
from deepcv.training.hyperparameters import Settings
from deepcv.training.losses import Term
from deepcv.training.setup import objective_of, set_up

NETWORK = """\
nodes:
  - {id: flat, op: flatten}
  - {id: hidden, op: linear, features: 16, activation: relu}
  - {id: head, op: linear, features: $classes}
outputs: {logits: head}
"""
CONFIG = toys.config(epochs=25, lr=0.02, shift=0, label_smoothing=0.0)
TASKS = {"labels": Task("tags.bright"), "numbers": Task("numbers")}


@pytest.fixture(scope="module", params=TASKS)
def shards(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_shards(toys.write_task_shards(tmp_path_factory.mktemp("shards"), TASKS[request.param]))


@pytest.fixture(scope="module")
def fitted(shards: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return fit(toys.network(tmp_path_factory.mktemp("network"), NETWORK), shards, CONFIG)


def answers(model: torch.nn.Module, shards: Dataset) -> np.ndarray:
    return logits_of(model, shards.test.images_nhwc, batch_size=5, device=torch.device("cpu"))


def test_what_is_bright_is_learned(shards: Dataset, fitted: Fitted) -> None:
    logits, truth = answers(fitted.classifier, shards), np.array(shards.test.labels)
    assert metrics.score(shards.task, logits, truth) > 0.95
    assert fitted.history[-1].val_accuracy > 0.95
    assert fitted.history[-1].train_accuracy > 0.9
    if shards.task.kind == "multi_label":
        scores = label_metrics.per_label(metrics.sigmoid(logits), truth, shards.classes)
        assert label_metrics.mean_average_precision(scores) == 1.0
    else:
        assert np.abs(logits - truth).mean() < 100  # in the numbers' own units, 1000 to 3550


def test_the_model_file_and_the_export_answer_as_the_model_does(
    shards: Dataset, fitted: Fitted, tmp_path: Path
) -> None:
    spec = toys.network(tmp_path, NETWORK)
    classifier.save(tmp_path / "model.pt", fitted.classifier, spec.canonical(), fitted.info)
    model, info = classifier.load(tmp_path / "model.pt")
    expected = answers(fitted.classifier, shards)
    assert info == fitted.info
    assert info.task == shards.task
    assert np.array_equal(answers(model, shards), expected)
    exported = ExportInfo("toy", info.classes, ImageRecipe(8, 8, 1), "m", info.task)
    onnx_export.export(model, exported, tmp_path / "model.onnx")
    assert onnx_export.check(model, tmp_path / "model.onnx", np.array(shards.test.images_nhwc), 1e-5) <= 1e-5
    predictor = Predictor(tmp_path / "model.onnx")
    assert predictor.info == exported
    found = predictor.answers(np.array(shards.test.images_nhwc))
    wanted = expected if shards.task.kind == "regression" else metrics.sigmoid(expected)
    assert np.allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_numbers_have_the_statistics_of_the_train_images(tmp_path: Path) -> None:
    shards = open_shards(toys.write_task_shards(tmp_path, TASKS["numbers"]))
    truth = np.array(shards.train.labels, np.float64)
    assert np.allclose(shards.task.mean, truth.mean(axis=0))
    assert np.allclose(shards.task.std, truth.std(axis=0))
    loader = set_up(toys.network(tmp_path, NETWORK), shards, CONFIG).loader
    assert np.allclose(loader.targets.numpy().mean(axis=0), 0, atol=1e-6)
    assert np.allclose(loader.targets.numpy().std(axis=0), 1, atol=1e-6)


def test_an_epochs_score_is_that_of_its_answers(shards: Dataset) -> None:
    random = np.random.default_rng(0)
    logits, targets = random.normal(size=(12, 2)).astype(np.float32), (random.random((12, 2)) < 0.5).astype(np.float32)
    running = RunningMetrics(torch.device("cpu"), task=shards.task)
    for part in (slice(0, 5), slice(5, 12)):
        running.add(torch.tensor(0.5), torch.tensor(logits[part]), torch.tensor(targets[part]))
    loss, score = running.read()
    assert loss == 0.5
    expected = (
        ((logits >= 0) == (targets == 1)).mean()
        if shards.task.kind == "multi_label"
        else 1 - ((logits - targets) ** 2).mean()
    )
    assert score == pytest.approx(expected)


@pytest.mark.parametrize(("name", "term", "expected"), [
    ("labels", None, F.binary_cross_entropy_with_logits), ("labels", Term("bce"), F.binary_cross_entropy_with_logits),
    ("numbers", None, F.mse_loss), ("numbers", Term("l1"), F.l1_loss),
])  # fmt: skip
def test_the_loss_is_the_tasks(name: str, term: Term | None, expected: Any, tmp_path: Path) -> None:
    shards = open_shards(toys.write_task_shards(tmp_path, TASKS[name]))
    config = replace(CONFIG, epochs=1, batch_size=48, lr=1e-12, losses=(term,) if term else ())
    setup = set_up(toys.network(tmp_path, NETWORK), shards, config)
    batch = next(iter(setup.loader))
    with torch.no_grad():
        loss = expected(setup.classifier(batch.images_nchw)["logits"], batch.targets).item()
    assert fit(toys.network(tmp_path, NETWORK), shards, config).history[0].train_loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(("changes", "message"), [
    ({"losses": (Term("cross_entropy"),)}, "learns from targets of kind class or soft; 'label' is"),
    ({"balance": 0.5}, "train.balance is for classes, and preprocess.target is"),
])  # fmt: skip
def test_what_is_for_classes_alone_is_refused(
    changes: dict[str, Any], message: str, shards: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(DeepcvError, match=message):
        fit(toys.network(tmp_path, NETWORK), shards, replace(CONFIG, **changes))


def test_mixed_images_have_what_lies_between_their_targets(shards: Dataset, tmp_path: Path) -> None:
    own, other, share = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.5]]), torch.tensor([0.25])
    assert torch.allclose(mixing.soft_targets(own, other, share, 2), torch.tensor([[0.25, 0.375]]))
    mixed = replace(CONFIG, epochs=2, augmentation=Recipe(mixup=Mix(1.0, 1.0)))
    assert np.isfinite(fit(toys.network(tmp_path, NETWORK), shards, mixed).history[-1].val_loss)


def test_a_resumed_training_ends_with_the_same_bits(shards: Dataset, fitted: Fitted, tmp_path: Path) -> None:
    def stop(record: Any) -> None:
        if record.epoch == 3:
            raise KeyboardInterrupt

    network = toys.network(tmp_path, NETWORK)
    with pytest.raises(KeyboardInterrupt):
        fit(network, shards, CONFIG, checkpoints=tmp_path / "c", on_epoch=stop)
    assert toys.same(fit(network, shards, CONFIG, checkpoints=tmp_path / "c"), fitted)


@pytest.mark.parametrize(
    ("task", "score"), [(Task(), "accuracy"), (TASKS["labels"], "accuracy"), (TASKS["numbers"], "r2")]
)
def test_an_epochs_metrics_are_its_values_without_its_number(task: Task, score: str) -> None:
    record = EpochRecord(7, 0.5, 0.75, 0.625, 0.25, 0.1)
    metrics = {"train_loss": 0.5, f"train_{score}": 0.75, "val_loss": 0.625, f"val_{score}": 0.25, "lr": 0.1}
    assert record.metrics(task) == metrics
    assert record.named(task) == {"epoch": 7, **metrics}
    several = replace(record, further={"tags.x.accuracy": 0.5, "numbers.age.r2": -0.25})
    assert several.metrics(task) == {**metrics, "val_tags.x.accuracy": 0.5, "val_numbers.age.r2": -0.25}


AUTOENCODER = """\
nodes:
  - {id: encoded, op: conv, channels: 8, stride: 2}
  - {id: pool, op: global_avg_pool}
  - {id: head, op: linear, features: $classes}
  - {id: up, op: upsample, from: encoded, factor: 2}
  - {id: picture, op: conv, channels: CHANNELS, norm: none, activation: none}
outputs: {logits: head, picture: picture}
"""


def picture_config(**changes: object) -> TrainConfig:
    terms = (Term("cross_entropy"), Term("mse", "picture", target="images", weight=2.0))
    return toys.config(losses=terms, lr=0.02, **changes)


def test_an_output_learns_the_images_that_the_network_sees(tmp_path: Path) -> None:
    shards = open_shards(toys.write_shards(tmp_path / "shards", channels=3))
    network = toys.network(tmp_path, AUTOENCODER.replace("CHANNELS", "3"))
    setup = set_up(network, shards, picture_config())
    images = torch.from_numpy(shards.test.images_nhwc.copy()).permute(0, 3, 1, 2)

    def error(model: classifier.Classifier) -> float:
        with torch.inference_mode():
            return float((model.eval()(images)["picture"] - model.normalise(images)).square().mean())

    fitted = fit(network, shards, picture_config(epochs=20))
    assert error(fitted.classifier) < 0.3 * error(setup.classifier)
    assert fitted.history[-1].val_accuracy > 0.9


def test_the_loss_of_images_is_that_of_the_first_view(tmp_path: Path) -> None:
    shards = open_shards(toys.write_shards(tmp_path / "shards", channels=3))
    config = picture_config(views=Views(2))
    config = replace(config, losses=(*config.losses, Term("jensen_shannon", weight=0.0)))
    setup = set_up(toys.network(tmp_path, AUTOENCODER.replace("CHANNELS", "3")), shards, config)
    batch = next(iter(setup.loader))
    outputs = setup.classifier(batch.images_nchw)
    half = batch.size
    seen = (batch.images_nchw[:half].float() / 255 - setup.classifier.mean) / setup.classifier.std
    by_hand = F.cross_entropy(outputs["logits"][:half], batch.targets) + 2 * F.mse_loss(outputs["picture"][:half], seen)
    found = objective_of(setup, config, Settings.of(config))(outputs, batch)
    assert found.item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_a_picture_of_another_shape_is_refused(tmp_path: Path) -> None:
    shards = open_shards(toys.write_shards(tmp_path / "shards", channels=3))
    network = toys.network(tmp_path, AUTOENCODER.replace("CHANNELS", "1"))
    with pytest.raises(DeepcvError, match=r"needs the shape of the images, \(3, 8, 8\); the output has \(1, 8, 8\)"):
        fit(network, shards, picture_config())


def test_images_that_a_smaller_network_does_not_give_are_refused(tmp_path: Path) -> None:
    shards = open_shards(toys.write_shards(tmp_path / "shards", channels=3))
    network = toys.network(tmp_path, AUTOENCODER.replace("CHANNELS", "3"))
    with pytest.raises(DeepcvError, match=r"output picture, which learns them, would have the shape \(3, 6, 6\)"):
        fit(network, shards, picture_config(progressive_resize=ProgressiveResize(scale=0.6, until=0.5)))
