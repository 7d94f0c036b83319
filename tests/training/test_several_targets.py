"""Trainings whose network has outputs for further targets, beside `logits` for the main one."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from torch.nn import functional as F

from deepcv.data.augmentation import Recipe
from deepcv.data.augmentation.recipe import Mix
from deepcv.data.loaders import Views
from deepcv.data.shards import Dataset, open_shards, write_description
from deepcv.errors import DeepcvError
from deepcv.evaluation import metrics
from deepcv.evaluation.inference import logits_of, outputs_of
from deepcv.images import ImageRecipe
from deepcv.nn import classifier
from deepcv.params.base import ParamsError
from deepcv.params.edit import with_values
from deepcv.serving import onnx_export
from deepcv.serving.predictor import ExportInfo, Predictor
from deepcv.task import Task
from deepcv.training.fit import Fitted, fit
from deepcv.training.hyperparameters import Settings
from deepcv.training.losses import Term
from deepcv.training.setup import objective_of, set_up

CPU = torch.device("cpu")
SIZE, BRIGHT = toys.FURTHER
LOSSES = (Term("cross_entropy"), Term("mse", "size", SIZE.of, weight=2.0), Term("bce", "bright", BRIGHT.of))
CONFIG = toys.config(epochs=40, lr=0.02, shift=0, losses=LOSSES)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_shards(toys.write_several_shards(tmp_path_factory.mktemp("shards")))


@pytest.fixture(scope="module")
def fitted(shards: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return fit(toys.network(tmp_path_factory.mktemp("network"), toys.THREE_HEADS), shards, CONFIG)


def answers(model: torch.nn.Module, shards: Dataset) -> list[np.ndarray]:
    return outputs_of(model, shards.test.images_nhwc, ["logits", "size", "bright"], batch_size=5, device=CPU)


def test_each_output_learns_its_target_and_answers_in_the_units_of_the_table(shards: Dataset, fitted: Fitted) -> None:
    logits, size, bright = answers(fitted.classifier, shards)
    assert metrics.accuracy(logits, shards.test.labels) > 0.9
    assert fitted.history[-1].val_accuracy > 0.9
    assert np.abs(size - shards.test.further[SIZE.of]).mean() < 150  # of 1000 to 3550
    assert metrics.score(BRIGHT.task, bright, shards.test.further[BRIGHT.of]) > 0.9
    assert fitted.info.further == {"size": shards.further[0], "bright": shards.further[1]}
    assert (logits == logits_of(fitted.classifier, shards.test.images_nhwc, batch_size=5, device=CPU)).all()


def test_each_epoch_is_judged_by_further_targets_too(shards: Dataset, fitted: Fitted) -> None:
    logits, size, bright = outputs_of(
        fitted.classifier, shards.val.images_nhwc, ["logits", "size", "bright"], batch_size=5, device=CPU
    )
    last = fitted.history[-1]
    assert last.val_accuracy == metrics.accuracy(logits, shards.val.labels)
    assert last.further == pytest.approx({
        f"{SIZE.of}.r2": metrics.score(shards.further[0].task, size, shards.val.further[SIZE.of]),
        f"{BRIGHT.of}.accuracy": metrics.score(BRIGHT.task, bright, shards.val.further[BRIGHT.of]),
    }, rel=1e-4)  # fmt: skip
    assert last.further[f"{SIZE.of}.r2"] > fitted.history[0].further[f"{SIZE.of}.r2"]
    assert last.rank == (last.val_accuracy, -last.val_loss)


def test_the_loss_is_the_sum_of_the_terms_of_all_targets(shards: Dataset, tmp_path: Path) -> None:
    setup = set_up(toys.network(tmp_path, toys.THREE_HEADS), shards, CONFIG)
    batch = next(iter(setup.loader))
    made = setup.classifier(batch.images_nchw)
    numbers = batch.further[SIZE.of]
    assert numbers.shape == (8, 1)
    by_hand = (
        F.cross_entropy(made["logits"], batch.targets)
        + 2 * F.mse_loss(made["size"], numbers)
        + F.binary_cross_entropy_with_logits(made["bright"], batch.further[BRIGHT.of])
    )
    found = objective_of(setup, CONFIG, Settings.of(CONFIG))(made, batch)
    assert found.item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_further_numbers_are_learned_with_mean_0_and_deviation_1(shards: Dataset, tmp_path: Path) -> None:
    truth = np.array(shards.train.further[SIZE.of], np.float64)
    assert np.allclose(shards.further[0].task.mean, truth.mean(axis=0))
    assert np.allclose(shards.further[0].task.std, truth.std(axis=0))
    loader = set_up(toys.network(tmp_path, toys.THREE_HEADS), shards, CONFIG).loader
    assert np.allclose(loader.further[SIZE.of].mean(0), 0, atol=1e-6)
    assert np.allclose(loader.further[SIZE.of].numpy().std(axis=0), 1, atol=1e-6)
    assert loader.further[BRIGHT.of].unique().tolist() == [0, 1]


def test_a_further_target_that_no_output_learns_changes_no_bit(shards: Dataset, tmp_path: Path) -> None:
    network, config = toys.network(tmp_path), toys.config()
    alone = replace(shards, further=(), train=replace(shards.train, further={}))
    assert toys.same(fit(network, shards, config), fit(network, alone, config))


def test_the_running_mean_of_the_weights_answers_in_the_units_of_the_table(shards: Dataset, tmp_path: Path) -> None:
    network, config = toys.network(tmp_path, toys.THREE_HEADS), replace(CONFIG, epochs=8, ema=0.7)
    mean, plain = fit(network, shards, config), fit(network, shards, replace(config, ema=0.0))
    (found, other) = (
        outputs_of(one.classifier, shards.val.images_nhwc, ["size"], batch_size=16, device=CPU)[0]
        for one in (mean, plain)
    )
    assert not np.array_equal(found, other)
    assert abs(found.mean() - shards.val.further[SIZE.of].mean()) < 1000  # of 1000 to 3550
    score = metrics.score(shards.further[0].task, found, shards.val.further[SIZE.of])
    assert mean.history[-1].further[f"{SIZE.of}.r2"] == pytest.approx(score, rel=1e-4)


@pytest.mark.parametrize(
    "changes",
    [{}, {"augmentation": Recipe(mixup=Mix(1.0, 1.0)), "epochs": 3}, {"accumulate": 2}, {"ema": 0.7, "select": "best"}],
)
def test_a_resumed_training_ends_with_the_same_bits(changes: dict[str, Any], shards: Dataset, tmp_path: Path) -> None:
    def stop(record: Any) -> None:
        if record.epoch == 2:
            raise KeyboardInterrupt

    network, config = toys.network(tmp_path, toys.THREE_HEADS), replace(CONFIG, **{"epochs": 4, **changes})
    whole = fit(network, shards, config)
    with pytest.raises(KeyboardInterrupt):
        fit(network, shards, config, checkpoints=tmp_path / "c", on_epoch=stop)
    assert toys.same(fit(network, shards, config, checkpoints=tmp_path / "c"), whole)


def test_crops_of_encoded_images_carry_further_targets(shards: Dataset, tmp_path: Path) -> None:
    encoded = open_shards(toys.write_several_shards(tmp_path / "shards", encoded=True))
    assert encoded.further == shards.further
    network = toys.network(tmp_path, toys.THREE_HEADS)
    config = replace(CONFIG, epochs=1, batch_size=48)
    pixels, crops = (next(iter(set_up(network, one, config).loader)) for one in (shards, encoded))
    assert not torch.equal(pixels.images_nchw, crops.images_nchw)
    assert torch.equal(pixels.targets, crops.targets)
    for of in (SIZE.of, BRIGHT.of):
        assert torch.equal(pixels.further[of], crops.further[of])
    assert np.isfinite(fit(network, encoded, config).history[-1].val_loss)


@pytest.mark.parametrize(("changed", "message"), [
    ((1, Term("mse", "size", "numbers.x")), "there is no target 'numbers.x'; there are label, images, numbers.größe/2, tags.bright"),
    ((1, Term("mse", "size", "tags.brigth")), "there are label, .*; the closest is 'tags.bright'"),
    ((2, Term("bce", "bright", SIZE.of)), "it learns from targets of kind multi_label; 'numbers.größe/2' is number"),
    ((2, Term("mse", "bright", SIZE.of)), "it needs 1 values for 'numbers.größe/2', the output has 2"),
    ((1, Term("mse", "logits", SIZE.of)), "logits answers preprocess.target and cannot learn numbers.größe/2"),
    ((0, Term("bce", "bright", "label")), "the output 'bright' learns label and tags.bright; expected one target"),
])  # fmt: skip
def test_terms_that_do_not_fit_are_refused(
    changed: tuple[int, Term], message: str, shards: Dataset, tmp_path: Path
) -> None:
    losses = list(LOSSES)
    losses[changed[0]] = changed[1]
    with pytest.raises(DeepcvError, match=message):
        fit(toys.network(tmp_path, toys.THREE_HEADS), shards, replace(CONFIG, losses=tuple(losses)))


@pytest.mark.parametrize(("output", "learned"), [("size", "numbers.größe/2"), ("bright", "tags.bright")])
def test_no_classes_are_compared_where_a_further_target_is_learned(
    output: str, learned: str, shards: Dataset, tmp_path: Path
) -> None:
    network, views = toys.network(tmp_path, toys.THREE_HEADS), Views(2)
    config = replace(CONFIG, losses=(*LOSSES, Term("jensen_shannon", output)), views=views)
    with pytest.raises(DeepcvError, match=f"compares class probabilities; the output '{output}' learns {learned}"):
        fit(network, shards, config)
    allowed = replace(config, losses=(*LOSSES, Term("jensen_shannon")))
    objective_of(set_up(network, shards, allowed), allowed, Settings.of(allowed))


def test_the_model_file_and_the_export_answer_as_the_model_does(
    shards: Dataset, fitted: Fitted, tmp_path: Path
) -> None:
    spec = toys.network(tmp_path, toys.THREE_HEADS)
    classifier.save(tmp_path / "model.pt", fitted.classifier, spec.canonical(), fitted.info)
    assert torch.load(tmp_path / "model.pt", weights_only=True)["format"] == 5  # which an older DeepCV refuses
    model, info = classifier.load(tmp_path / "model.pt")
    logits, size, bright = answers(fitted.classifier, shards)
    assert info == fitted.info
    assert all((a == b).all() for a, b in zip(answers(model, shards), (logits, size, bright), strict=True))
    exported = ExportInfo("toy", info.classes, ImageRecipe(8, 8, 1), "m", info.task, tuple(info.further.values()))
    onnx_export.export(model, exported, tmp_path / "model.onnx")
    images = np.array(shards.test.images_nhwc)
    assert onnx_export.check(model, tmp_path / "model.onnx", images, 1e-5) <= 1e-5
    predictor = Predictor(tmp_path / "model.onnx")
    assert predictor.info == exported
    found = predictor.run(images)
    assert list(found) == ["logits", "probabilities", SIZE.of, BRIGHT.of]
    assert np.allclose(predictor.answers(images).sum(axis=1), 1)
    assert np.allclose(found[SIZE.of], size, rtol=1e-5)
    assert np.allclose(found[BRIGHT.of], metrics.sigmoid(bright), atol=1e-6)


def test_of_several_outputs_for_one_target_the_first_answers(shards: Dataset, tmp_path: Path) -> None:
    twice = toys.THREE_HEADS.replace(
        "outputs: {", "  - {id: again, op: linear, features: 1, from: hidden}\noutputs: {early: again, "
    )
    losses = (*LOSSES, Term("l1", "early", SIZE.of))
    one = fit(toys.network(tmp_path, twice), shards, replace(CONFIG, losses=losses, epochs=1))
    assert list(one.info.further) == ["size", "bright", "early"]
    assert list(classifier.answering(one.info.further)) == ["size", "bright"]
    early = outputs_of(one.classifier, shards.test.images_nhwc, ["early"], batch_size=5, device=CPU)[0]
    assert early.mean() > 1000  # in the table's units as well


def test_the_main_target_may_be_numbers(tmp_path: Path) -> None:
    folder = toys.write_several_shards(tmp_path / "shards")
    for split in ("train", "val", "test"):
        (folder / f"{split}_labels_1.npy").rename(folder / f"{split}_labels.npy")
        (folder / f"{split}_labels_2.npy").rename(folder / f"{split}_labels_1.npy")
    write_description(
        folder, name="toy", classes=SIZE.names, test_digest="t" * 64, recipe=toys.RECIPE, task=Task(SIZE.of),
        further=(BRIGHT,),
    )  # fmt: skip
    heads = toys.THREE_HEADS.replace("size: size, ", "")
    heads = heads.replace("  - {id: size, op: linear, features: 1, from: hidden}\n", "")
    one = fit(toys.network(tmp_path, heads), open_shards(folder), replace(CONFIG, losses=(Term("mse"), LOSSES[2])))
    assert one.history[-1].val_accuracy > 0.9  # R²


def test_what_params_and_training_both_refuse_is_said_alike(shards: Dataset, tmp_path: Path) -> None:
    """`deepcv check` knows params alone; a training that was not checked must not fail otherwise."""
    two = (*LOSSES[:2], Term("bce", "size", BRIGHT.of), Term("none", "bright"))
    main = (*LOSSES[:1], Term("mse", "logits", SIZE.of), *LOSSES[1:])
    cases = {
        f"learns {SIZE.of} and {BRIGHT.of}; expected one target: give each an output of its own": two,
        "logits answers preprocess.target": main,
    }
    network = toys.network(tmp_path, toys.THREE_HEADS)
    text = (toys.REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    for says, losses in cases.items():
        listed = [{"loss": term.loss, "output": term.output, "target": term.target} for term in losses]
        listed = [entry for entry in listed if entry["loss"] != "none"]
        with pytest.raises(ParamsError, match=re.escape(says)):
            with_values(text, {"preprocess.further_targets": [SIZE.of, BRIGHT.of], "train.losses": listed})
        with pytest.raises(DeepcvError, match=re.escape(says)):
            fit(network, shards, replace(CONFIG, losses=losses))
