import itertools
import math
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import toys
import tqdm
from ignite.engine import Engine, Events
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from toys import bits, same

from deepcv.data.augmentation import DROPOUT, Augmentation, Recipe, gather, hash32, permutation
from deepcv.data.augmentation.policies import Operation
from deepcv.data.augmentation.recipe import Mix
from deepcv.data.crops import random_crops
from deepcv.data.loaders import Views
from deepcv.data.shards import Dataset, Split, open_shards
from deepcv.errors import DeepcvError
from deepcv.evaluation import metrics
from deepcv.evaluation.embedding import features_of
from deepcv.evaluation.inference import logits_of
from deepcv.nn.classifier import Classifier, ModelFileError, ModelInfo, TestTimeViews, create, load, save
from deepcv.nn.layers.blur import Blur
from deepcv.nn.layers.whitening import WhiteningConv2d
from deepcv.nn.spec import NetworkSpec
from deepcv.training.checkpoints import InterruptedTrainingError
from deepcv.training.config import ProgressiveResize
from deepcv.training.engine import RunningMetrics
from deepcv.training.fit import Fitted, fit
from deepcv.training.history import EpochRecord, Point
from deepcv.training.losses import Term
from deepcv.training.optimizers import create_optimizer
from deepcv.training.schedules import Piecewise, Plateau, Ramp
from deepcv.training.speed import tell_speed

CPU = torch.device("cpu")
MIXED = Recipe(
    "trivialaugment", (Operation("rotate", -9, 9),), mixup=Mix(0.4, 0.5), cutmix=Mix(1.0, 0.4)
)  # soft targets
SMALL_FIRST = ProgressiveResize(scale=0.6, until=0.5)  # 5×5 of 8×8, in two of three epochs
EVERYTHING: dict[str, Any] = {
    "ema": 0.9, "accumulate": 2, "clip_norm": 1.0, "layer_decay": 0.8, "select": "best", "unfreeze": {"stem": 2},
    "batch_size": 4, "optimizer": "muon",
    "schedules": {
        "lr": Ramp(warmup=0.1), "dropout": Ramp("linear", start=0.5), "weight_decay": Plateau(patience=0),
        "augmentation.mixup.probability": Piecewise(((0.0, 0.0), (0.4, 1.0)), "step"),
    },
}  # fmt: skip

CONTRASTIVE: dict[str, Any] = {
    "views": Views(3, "clean"), "augmentation": Recipe("augmix"),
    "losses": (
        Term("cross_entropy", options={"class_weights": "balanced"}), Term("jensen_shannon", weight=2.0),
        Term("supcon", weight=0.1), Term("triplet", weight=0.1),
    ),
    "schedules": {"losses.2.weight": Ramp("linear"), "losses.0.label_smoothing": Ramp("linear", start=0.3)},
}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": "sgd", "flip": True, "cutout": 2, "channels_last": False},
        {"optimizer": "muon", "channels_last": False},
        {"precision": "bf16"},
        {"augmentation": MIXED},
        {"progressive_resize": SMALL_FIRST, "test_time_views": "flip"},
        EVERYTHING,
        CONTRASTIVE,
    ],
)
def test_a_training_repeats_bit_for_bit(changes: dict[str, Any], network: NetworkSpec, shards: Dataset) -> None:
    one = fit(network, shards, toys.config(**changes))
    torch.rand(5)  # what other code draws in between does not matter
    assert same(one, fit(network, shards, toys.config(**changes)))
    assert not same(one, fit(network, shards, toys.config(**changes, seed=1)))


@pytest.mark.parametrize("changes", [{}, {"augmentation": MIXED, "precision": "bf16"}, EVERYTHING, CONTRASTIVE])
@pytest.mark.parametrize(
    "step", [1, 2, 4, 5, 6, 7, 11, 12]
)  # 4 and 12 are epochs' last ones, which no judging comes after
def test_an_interrupted_training_goes_on_bit_for_bit_from_the_step_that_it_was_at(
    changes: dict[str, Any], step: int, network: NetworkSpec, shards: Dataset, tmp_path: Path
) -> None:
    config = toys.config(**{"batch_size": 6, "log_every": 1, **changes})
    whole = fit(network, shards, config)
    asked = itertools.count(1)
    with pytest.raises(InterruptedTrainingError):
        fit(network, shards, config, checkpoints=tmp_path, interrupted=lambda: next(asked) >= step)
    torch.rand(5)
    told: list[Point] = []
    resumed = fit(network, shards, config, checkpoints=tmp_path, on_point=told.append)
    assert same(resumed, whole)
    assert tuple(told) == whole.points  # restored ones are told too
    assert len(resumed.history) == 3
    assert len(list(tmp_path.iterdir())) == 2  # those of the interrupted process are gone


@pytest.mark.parametrize("step", [1, 4])
def test_a_balanced_training_goes_on_bit_for_bit(
    step: int, network: NetworkSpec, shards: Dataset, tmp_path: Path
) -> None:
    order = np.argsort(shards.train.labels, kind="stable")[:14]  # 12 dark, 2 light
    rare = replace(shards, train=Split(shards.train.images_nhwc[order], shards.train.labels[order]))
    config = toys.config(batch_size=4, balance=1.0)
    whole = fit(network, rare, config)
    asked = itertools.count(1)
    with pytest.raises(InterruptedTrainingError):
        fit(network, rare, config, checkpoints=tmp_path, interrupted=lambda: next(asked) >= step)
    assert same(fit(network, rare, config, checkpoints=tmp_path), whole)
    assert not same(fit(network, rare, replace(config, balance=0.0)), whole)


def test_balanced_weights_are_those_of_the_visits(network: NetworkSpec, shards: Dataset) -> None:
    order = np.argsort(shards.train.labels, kind="stable")[:16]  # 12 dark, 4 light
    rare = replace(shards, train=Split(shards.train.images_nhwc[order], shards.train.labels[order]))
    weighted = (Term("cross_entropy", options={"class_weights": "balanced"}),)

    def same_curves(balance: float) -> bool:
        one, two = (
            fit(network, rare, toys.config(losses=losses, balance=balance))
            for losses in (weighted, (Term("cross_entropy"),))
        )
        return [record.val_loss for record in one.history] == pytest.approx([r.val_loss for r in two.history])

    assert same_curves(1.0)
    assert not same_curves(0.0)


def test_often_saved_is_the_same(network: NetworkSpec, shards: Dataset, tmp_path: Path) -> None:
    config = toys.config(checkpoint_minutes=1e-9)
    assert same(fit(network, shards, config, checkpoints=tmp_path), fit(network, shards, toys.config()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint_8.pt", "checkpoint_9.pt"]


@pytest.mark.parametrize("accumulate", [1, 2])  # of three batches an epoch
def test_a_running_mean_of_the_weights_is_judged_and_becomes_the_model(
    accumulate: int, network: NetworkSpec, shards: Dataset
) -> None:
    """The mean by its own formula, from the weights after each step."""
    config = toys.config(ema=0.6, epochs=2, accumulate=accumulate)
    fitted = fit(network, shards, config)
    mean: dict[str, torch.Tensor] = {}
    seen: list[dict[str, torch.Tensor]] = []
    with _watched_steps(seen):
        plain = fit(network, shards, replace(config, ema=0.0))
    first, *steps = seen  # the first call of the optimizer sees the initial weights
    mean = first
    for number, weights in enumerate([*steps, dict(plain.classifier.named_parameters())], start=1):
        kept = min(0.6, (1 + number) / (10 + number))
        mean = {key: kept * value + (1 - kept) * weights[key].detach() for key, value in mean.items()}
    for key, value in fitted.classifier.named_parameters():
        assert torch.allclose(value, mean[key], atol=1e-6), key
    assert [record.train_loss for record in fitted.history] == [record.train_loss for record in plain.history]
    assert [record.val_loss for record in fitted.history] != [record.val_loss for record in plain.history]


def test_a_long_mean_of_a_short_training_has_learned_too(network: NetworkSpec, shards: Dataset) -> None:
    """0.999 of the mean in every step would leave 96 % of the random weights in the mean of these 36."""
    assert fit(network, shards, toys.config(ema=0.999, epochs=12)).history[-1].val_accuracy == 1.0


def test_a_blur_that_changes_is_the_running_means_too(shards: Dataset, tmp_path: Path) -> None:
    network = toys.network(
        tmp_path, toys.NETWORK.replace("  - {id: drop", "  - {id: blur, op: blur, max_sigma: 2}\n  - {id: drop")
    )
    rising = {"blur": Ramp("linear", start=0.0, end=1.5)}
    fitted = fit(network, shards, toys.config(ema=0.5, schedules=rising))
    layer = next(module for module in fitted.classifier.modules() if isinstance(module, Blur))
    assert layer.on
    assert float(layer.sigma) == 1.5
    fresh = create(network.canonical(), fitted.info)
    fresh.load_state_dict(fitted.classifier.state_dict())  # which sets taps from sigma
    images = torch.from_numpy(shards.val.images_nhwc.copy()).permute(0, 3, 1, 2)
    with torch.inference_mode():
        assert torch.equal(fresh.eval()(images)["logits"], fitted.classifier.eval()(images)["logits"])


@contextmanager
def _watched_steps(seen: list[dict[str, torch.Tensor]]) -> Iterator[None]:
    def look(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        names = ["network.stem.conv.weight", "network.head.weight"]
        by_shape = {(4, 1, 3, 3): names[0], (2, 4): names[1]}
        rest = iter(["network.stem.norm.weight", "network.stem.norm.bias", "network.head.bias"])
        seen.append({by_shape.get(tuple(p.shape)) or next(rest): p.detach().clone() for p in parameters})

    handle = register_optimizer_step_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()


def test_the_best_epoch_becomes_the_model_and_patience_ends_a_training(
    network: NetworkSpec, shards: Dataset, tmp_path: Path
) -> None:
    worse = Piecewise(((0.0, 0.05), (0.3, 0.05), (0.31, 2.0)), "step")  # it learns, then the rate destroys it
    config = toys.config(epochs=20, schedules={"lr": worse}, optimizer="sgd", select="best", patience=3)
    fitted = fit(network, shards, config, checkpoints=tmp_path)
    best = max(fitted.history, key=lambda record: record.rank)
    assert len(fitted.history) == best.epoch + 3 < 20
    logits = logits_of(
        fitted.classifier, shards.val.images_nhwc, batch_size=500, device=CPU, memory_format=torch.channels_last
    )
    assert metrics.cross_entropy(logits, shards.val.labels) == best.val_loss
    last = fit(network, shards, replace(config, select="last"))
    assert last.history == fitted.history
    assert bits(last) != bits(fitted)
    assert same(fit(network, shards, config, checkpoints=tmp_path), fitted)  # not one more epoch


# The third epoch is the best, then the second; then the rate destroys what was learned.
UP_AND_DOWN: dict[str, Any] = {
    "epochs": 6, "optimizer": "sgd",
    "schedules": {"lr": Piecewise(((0.0, 0.5), (0.5, 0.5), (0.51, 60.0), (0.8, 60.0), (0.81, 0.5)), "step")},
}  # fmt: skip


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("best/*")}


@pytest.mark.parametrize("changes", [{}, {"ema": 0.5, "test_time_views": "flip"}])
def test_the_models_of_the_best_epochs_are_kept(
    changes: dict[str, Any], network: NetworkSpec, shards: Dataset, tmp_path: Path
) -> None:
    config = toys.config(**UP_AND_DOWN, **changes, keep_best=2, select="best")
    fitted = fit(network, shards, config, checkpoints=tmp_path)
    ranked = sorted(fitted.history, key=lambda record: record.rank)
    assert sorted(files_of(tmp_path)) == sorted(f"epoch_{record.epoch:04}.pt" for record in ranked[-2:])
    for record in ranked[-2:]:
        model, info = load(tmp_path / f"best/epoch_{record.epoch:04}.pt")
        assert info == fitted.info
        logits = logits_of(model, shards.val.images_nhwc, batch_size=500, device=CPU, memory_format=torch.channels_last)
        assert metrics.cross_entropy(logits, shards.val.labels) == pytest.approx(record.val_loss, rel=1e-6)
    save(tmp_path / "model.pt", fitted.classifier, network.canonical(), fitted.info)
    assert files_of(tmp_path)[f"epoch_{ranked[-1].epoch:04}.pt"] == (tmp_path / "model.pt").read_bytes()
    plain = fit(network, shards, toys.config(**UP_AND_DOWN, **changes, select="best"), checkpoints=tmp_path / "plain")
    assert same(plain, fitted)
    assert not files_of(tmp_path / "plain")


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("killed_in", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_a_killed_training_keeps_the_same_models(
    count: int, killed_in: int, lost: int, network: NetworkSpec, shards: Dataset, tmp_path: Path
) -> None:
    """Killed when an epoch's model is written and its checkpoint is not; and where the checkpoint before is damaged too."""
    config = toys.config(**UP_AND_DOWN, keep_best=count)
    fit(network, shards, config, checkpoints=tmp_path / "whole")

    def kill(record: EpochRecord) -> None:
        if record.epoch == killed_in:
            raise KilledError

    folder = tmp_path / "killed"
    with pytest.raises(KilledError):
        fit(network, shards, config, checkpoints=folder, on_epoch=kill)
    for path in sorted(folder.glob("*.pt"), key=lambda path: int(path.stem.split("_")[1]), reverse=True)[:lost]:
        path.write_bytes(b"")
    fit(network, shards, config, checkpoints=folder)
    assert files_of(folder) == files_of(tmp_path / "whole")
    assert len(files_of(folder)) == min(count, 6)


def test_a_part_learns_from_its_epoch_on(network: NetworkSpec, shards: Dataset) -> None:
    def stem(**changes: Any) -> torch.Tensor:
        return fit(network, shards, toys.config(**changes)).classifier.get_parameter("network.stem.conv.weight")

    frozen = stem(unfreeze={"stem": 4})
    assert torch.equal(frozen, stem(freeze=("stem",)))
    assert not torch.equal(frozen, stem(unfreeze={"stem": 3}))
    assert torch.equal(stem(), stem(unfreeze={"stem": 1}))
    assert torch.equal(stem(unfreeze={"stem": 3}), stem(freeze=("stem",), unfreeze={"stem": 3}))


TWO_HEADS = toys.NETWORK.replace(
    "outputs: {logits: head}",
    "  - {id: embedding, op: linear, from: pool, features: 6}\noutputs: {logits: head, embedding: embedding}",
)


def test_every_output_has_a_loss_or_is_left_out(shards: Dataset, tmp_path: Path) -> None:
    network = toys.network(tmp_path, TWO_HEADS)
    with pytest.raises(DeepcvError, match="no term uses the network's output 'embedding'"):
        fit(network, shards, toys.config())
    for views, losses in (
        (1, (Term("cross_entropy"), Term("none", "embedding"))),
        (2, (Term("cross_entropy"), Term("supcon", "embedding", weight=0.5))),
    ):
        fitted = fit(network, shards, toys.config(losses=losses, views=Views(views), epochs=6, shift=0))
        assert fitted.history[-1].val_accuracy == 1.0
    with pytest.raises(DeepcvError, match=r"needs 2 or more of each; got 1"):
        fit(network, shards, toys.config(losses=(Term("cross_entropy"), Term("nt_xent", "embedding"))))


def test_cross_entropy_named_is_cross_entropy_unnamed(network: NetworkSpec, shards: Dataset) -> None:
    named = fit(network, shards, toys.config(losses=(Term("cross_entropy", options={"label_smoothing": 0.1}),)))
    assert same(named, fit(network, shards, toys.config()))


@pytest.mark.acceptance  # compiling takes a minute
def test_a_compiled_step_trains(shards: Dataset, tmp_path: Path) -> None:
    network = toys.network(tmp_path, toys.NETWORK.replace("  - {id: drop, op: dropout, p: 0.3}\n", ""))
    compiled, plain = (fit(network, shards, toys.config(compile=on)) for on in (True, False))
    assert [record.train_loss for record in compiled.history] == pytest.approx(
        [record.train_loss for record in plain.history], rel=1e-4
    )
    assert bits(compiled).keys() == bits(plain).keys()


def test_compiling_changes_nothing_but_speed(network: NetworkSpec, shards: Dataset) -> None:
    with torch.compiler.set_stance("force_eager"):  # what is compiled before the first step leaves no trace
        compiled, plain = (fit(network, shards, toys.config(compile=on)) for on in ("max-autotune", False))
    assert same(compiled, plain)


def test_compiled_code_that_computes_no_numbers_is_not_used(
    network: NetworkSpec, shards: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What torch 2.15 does to networks/airbench.yaml in bf16 on a CPU, without the minute that it takes."""

    class Broken(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, images_nchw: torch.Tensor) -> dict[str, torch.Tensor]:
            outputs: dict[str, torch.Tensor] = self.model(images_nchw)
            for value in outputs.values():
                value.register_hook(lambda gradient: gradient * math.nan)
            return outputs

    plain = fit(network, shards, toys.config())
    monkeypatch.setattr(torch, "compile", lambda model, **_options: Broken(model))
    assert same(fit(network, shards, toys.config(compile=True)), plain)
    assert "it trains as it is" in capsys.readouterr().err


class KilledError(Exception):
    pass


@pytest.mark.parametrize("changes", [{}, {"optimizer": "sgd"}, {"augmentation": MIXED}, EVERYTHING])
@pytest.mark.parametrize("killed_after", [1, 2])
def test_a_killed_training_goes_on_bit_for_bit(
    changes: dict[str, Any], killed_after: int, network: NetworkSpec, shards: Dataset, tmp_path: Path
) -> None:
    config = toys.config(**changes)
    whole = fit(network, shards, config)

    def kill(record: EpochRecord) -> None:
        if record.epoch == killed_after + 1:  # the checkpoint of this epoch is not yet written
            raise KilledError

    with pytest.raises(KilledError):
        fit(network, shards, config, checkpoints=tmp_path, on_epoch=kill)
    torch.rand(5)
    seen: list[EpochRecord] = []
    resumed = fit(network, shards, config, checkpoints=tmp_path, on_epoch=seen.append)
    assert same(resumed, whole)
    assert tuple(seen) == whole.history  # restored epochs are told too
    again = fit(network, shards, config, checkpoints=tmp_path)  # nothing is left to do
    assert same(again, whole)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_shards(toys.write_encoded_shards(tmp_path_factory.mktemp("encoded")))


WHITENED = toys.NETWORK.replace(
    "{id: stem, op: conv, channels: 4}", "{id: white, op: whiten}\n  - {id: norm, op: batch_norm}"
)


@pytest.mark.parametrize("changes", [
    {"flip": True}, {"augmentation": MIXED}, {"progressive_resize": SMALL_FIRST, "least_crop": 0.5},
])  # fmt: skip
def test_a_killed_training_on_crops_goes_on_bit_for_bit(
    changes: dict[str, Any], encoded: Dataset, tmp_path: Path
) -> None:
    network, config = toys.network(tmp_path, WHITENED), toys.config(**changes)
    whole = fit(network, encoded, config)

    def kill(record: EpochRecord) -> None:
        if record.epoch == 2:
            raise KilledError

    with pytest.raises(KilledError):
        fit(network, encoded, config, checkpoints=tmp_path / "checkpoints", on_epoch=kill)
    assert same(fit(network, encoded, config, checkpoints=tmp_path / "checkpoints"), whole)
    assert [record.epoch for record in whole.history] == [1, 2, 3]
    assert not same(fit(network, encoded, replace(config, least_crop=0.3)), whole)


def test_whitening_is_fitted_on_crops_without_augmentation(encoded: Dataset, tmp_path: Path) -> None:
    network = toys.network(tmp_path, WHITENED)
    fitted = fit(network, encoded, toys.config(flip=True, epochs=1, lr=1e-9))
    crops = random_crops(encoded.train, encoded.recipe, seed=0).take(permutation(0, 0, 24, CPU), 0)
    other = create(network.canonical(), fitted.info)
    other.fit_whitening(crops.permute(0, 3, 1, 2))
    for (name, one), (_, two) in zip(fitted.classifier.state_dict().items(), other.state_dict().items(), strict=True):
        assert "white" not in name or torch.equal(one, two), name


def test_crops_teach(encoded: Dataset, tmp_path: Path) -> None:
    fitted = fit(toys.network(tmp_path), encoded, toys.config(epochs=6, least_crop=0.3))
    assert fitted.history[-1].val_accuracy == 1.0


def flip_a_bit(path: Path) -> None:
    """Damage the numbers of the largest record; what torch.load alone does not notice."""
    with zipfile.ZipFile(path) as archive:
        record = max(archive.infolist(), key=lambda info: info.file_size)
    content = bytearray(path.read_bytes())
    name_size, extra_size = struct.unpack_from("<HH", content, record.header_offset + 26)  # of zip's local header
    content[record.header_offset + 30 + name_size + extra_size + record.file_size // 2] ^= 16
    path.write_bytes(content)


def lose_the_history(path: Path) -> None:
    """What comes before it is whole: it must not be loaded."""
    content = torch.load(path, weights_only=True)
    torch.save({key: value for key, value in content.items() if key != "history"}, path)


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-200]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not a checkpoint"),
    "one bit": flip_a_bit,
    "of another kind": lambda path: torch.save({"model": {}}, path),
    "a network alone": lambda path: torch.save({"format": 1, "spec": {}, "state_dict": {}}, path),
}


CHECKPOINT_DAMAGE = {**DAMAGE, "without history": lose_the_history}


@pytest.mark.parametrize("damage", CHECKPOINT_DAMAGE)
def test_a_damaged_checkpoint_is_set_aside(
    damage: str, network: NetworkSpec, shards: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = toys.config()
    whole = fit(network, shards, config, checkpoints=tmp_path)
    newest = tmp_path / "checkpoint_9.pt"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint_6.pt", "checkpoint_9.pt"]
    CHECKPOINT_DAMAGE[damage](newest)
    assert same(fit(network, shards, config, checkpoints=tmp_path), whole)
    assert "checkpoint_9.pt cannot be read" in capsys.readouterr().err
    assert (tmp_path / "checkpoint_9.damaged").exists()
    for path in tmp_path.glob("*.pt"):  # none is left: the training starts over
        CHECKPOINT_DAMAGE[damage](path)
    assert same(fit(network, shards, config, checkpoints=tmp_path), whole)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), OSError(5, "Input/output error")])
def test_a_checkpoint_that_cannot_be_taken_over_now_is_kept(
    error: Exception, network: NetworkSpec, shards: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toys.config()
    asked = itertools.count(1)
    with pytest.raises(InterruptedTrainingError):
        fit(network, shards, config, checkpoints=tmp_path, interrupted=lambda: next(asked) >= 7)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fails(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("deepcv.training.sharding.WholeOptimizer.load_state_dict", fails)
        with pytest.raises(
            DeepcvError, match=r"checkpoint_\d\.pt was read but not taken over \(.*\); it is kept: try again"
        ):
            fit(network, shards, config, checkpoints=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert same(fit(network, shards, config, checkpoints=tmp_path), fit(network, shards, config))


def test_a_kill_in_the_second_writing_of_an_epoch_leaves_the_first(
    network: NetworkSpec, shards: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which was written behind its last step; the other one has its val loss too."""
    monkeypatch.setattr("deepcv.training.checkpoints._WORTH_S", -1.0)
    save = torch.save

    def killed(content: Mapping[str, Any], *rest: Any, **options: Any) -> None:
        if content["history"]["records"]:
            raise KilledError
        save(content, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", killed)
        with pytest.raises(KilledError):
            fit(network, shards, toys.config(), checkpoints=tmp_path)
    assert [path.name for path in tmp_path.glob("*.pt")] == ["checkpoint_3.pt"]
    told: list[EpochRecord] = []
    resumed = fit(network, shards, toys.config(), checkpoints=tmp_path, on_epoch=told.append)
    assert same(resumed, fit(network, shards, toys.config()))
    assert tuple(told) == resumed.history


def test_a_disk_that_cannot_read_says_nothing_of_a_checkpoint(
    network: NetworkSpec, shards: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(network, shards, toys.config(), checkpoints=tmp_path)
    before = sorted(tmp_path.iterdir())

    def fails(*_: object, **_options: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(torch, "load", fails)
    with pytest.raises(OSError, match="Input/output error"):
        fit(network, shards, toys.config(), checkpoints=tmp_path)
    assert sorted(tmp_path.iterdir()) == before


def one_cycle(step: int, steps: int, warmup: float, peak: float) -> float:
    """torch.optim.lr_scheduler.OneCycleLR's documented formula: cosine up from peak/25, cosine down to peak/25/1e4."""

    def cosine(start: float, end: float, share: float) -> float:
        return end + (start - end) / 2 * (1 + math.cos(math.pi * share))

    rise = warmup * steps - 1
    if step <= rise:
        return cosine(peak / 25, peak, step / rise)
    start = rise
    return cosine(peak, peak / 25e4, (step - start) / (steps - 1 - start))


@pytest.mark.parametrize(("epochs", "warmup"), [(3, 0.25), (4, 0.5), (2, 0.0), (5, 0.9)])
def test_the_learning_rate_is_that_of_one_cycle(
    epochs: int, warmup: float, network: NetworkSpec, shards: Dataset
) -> None:
    fitted = fit(network, shards, toys.config(epochs=epochs, warmup=warmup, lr=0.02))
    steps = epochs * 3  # 24 images in batches of 8
    for record in fitted.history:
        at = min(record.epoch * 3, steps - 1)  # the rate that the next step would have
        if record.epoch < epochs:
            assert math.isclose(record.lr, one_cycle(at, steps, warmup, 0.02), rel_tol=1e-9)


def test_the_optimizers_are_those_that_params_name() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    sgd = create_optimizer(model, toys.config(optimizer="sgd", momentum=0.8, weight_decay=0.3))
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.8, True)
    assert not create_optimizer(model, toys.config(optimizer="sgd", momentum=0.0)).defaults["nesterov"]
    adamw = create_optimizer(model, toys.config(momentum=0.8, weight_decay=0.3))
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.defaults["betas"] == (0.8, 0.99)
    for optimizer in (sgd, adamw):
        decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        assert {name: decay[id(p)] for name, p in model.named_parameters()} == {
            "0.weight": 0.3, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0,
        }  # fmt: skip


@pytest.mark.parametrize("batch_size", [8, 1000])  # 1000: one step, whose own loss is that of before it
def test_a_training_that_diverges_is_told_and_leaves_no_checkpoint(
    batch_size: int, network: NetworkSpec, shards: Dataset, tmp_path: Path
) -> None:
    told: list[EpochRecord] = []
    config = toys.config(epochs=1, batch_size=batch_size, optimizer="sgd", lr=1e30, warmup=0.0, weight_decay=0.0)
    with pytest.raises(DeepcvError, match=r"training diverged in epoch 1 \(loss (nan|inf)\); lower train\.lr"):
        fit(network, shards, config, checkpoints=tmp_path, on_epoch=told.append)
    assert not told
    assert not list(tmp_path.iterdir())


def test_it_learns_from_mixed_images(network: NetworkSpec, shards: Dataset) -> None:
    fitted = fit(network, shards, toys.config(epochs=8, shift=0, augmentation=Recipe(cutmix=Mix(1.0, 0.5))))
    assert fitted.history[-1].val_accuracy == 1.0


def test_soft_targets_count_by_their_likeliest_class() -> None:
    hard, soft = RunningMetrics(CPU), RunningMetrics(CPU)
    logits = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    hard.add(torch.tensor(0.5), logits, torch.tensor([0, 1, 0]))
    soft.add(torch.tensor(0.5), logits, torch.tensor([[0.6, 0.4, 0], [0, 1, 0], [0.7, 0, 0.3]]))
    assert hard.read() == soft.read() == (0.5, pytest.approx(2 / 3))


def test_it_learns(network: NetworkSpec, shards: Dataset) -> None:
    fitted = fit(network, shards, toys.config(epochs=8, shift=0))
    assert fitted.history[-1].train_loss < fitted.history[0].train_loss
    assert fitted.history[-1].val_loss < fitted.history[0].val_loss
    assert fitted.history[-1].val_accuracy == 1.0
    assert [record.epoch for record in fitted.history] == list(range(1, 9))


def test_a_split_smaller_than_a_batch_is_one_batch(network: NetworkSpec, shards: Dataset) -> None:
    fitted = fit(network, shards, toys.config(batch_size=1000, epochs=4))  # 4 steps, of which 0.25 rise: one
    assert len(fitted.history) == 4


def test_a_batch_of_one_image_has_no_norm_of_flat_features(shards: Dataset, tmp_path: Path) -> None:
    norm = toys.NETWORK.replace("  - {id: head", "  - {id: norm, op: batch_norm}\n  - {id: head")
    assert len(fit(toys.network(tmp_path, norm), shards, toys.config(batch_size=2, epochs=1)).history) == 1
    with pytest.raises(DeepcvError, match=r"node 'norm': a batch norm .* raise train\.batch_size"):
        fit(toys.network(tmp_path, norm), shards, toys.config(batch_size=1))
    assert len(fit(toys.network(tmp_path), shards, toys.config(batch_size=1, epochs=1)).history) == 1


@pytest.mark.parametrize(
    ("changes", "small_epochs", "side"),
    [
        ({"optimizer": "adamw", "progressive_resize": SMALL_FIRST}, 2, 5),
        ({"progressive_resize": ProgressiveResize(scale=0.86, until=1)}, 3, 7),  # trained small, judged whole
        ({"optimizer": "sgd"}, 0, 8),
    ],
)
def test_the_engine_computes_what_a_plain_loop_does(
    changes: dict[str, Any], small_epochs: int, side: int, network: NetworkSpec, shards: Dataset
) -> None:
    """Ignite's engine, the loader and the metrics against a loop written out in torch, bit for bit."""
    config = toys.config(flip=True, **changes)
    fitted = fit(network, shards, config)

    torch.manual_seed(config.seed)
    info = ModelInfo(shards.name, shards.classes, shards.recipe, shards.mean, shards.std)
    model = create(network.canonical(), info).to(memory_format=torch.channels_last)
    images, labels = torch.from_numpy(shards.train.images_nhwc.copy()), torch.from_numpy(shards.train.labels.copy())
    steps = config.epochs * 3
    opt = create_optimizer(model, config)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        opt, config.lr, total_steps=steps, pct_start=0.25, cycle_momentum=False
    )
    loss_fn = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    history = []
    for epoch in range(config.epochs):
        torch.manual_seed(int(hash32(config.seed, epoch, torch.zeros(1, dtype=torch.int64), DROPOUT)))
        model.train()
        losses, hits = 0.0, 0
        for index in permutation(config.seed, epoch, 24, CPU).split(8):
            batch = gather(images, index, Augmentation(flip=True, shift=1), config.seed, epoch).permute(0, 3, 1, 2)
            if epoch < small_epochs:
                size = (side, side)
                batch = nn.functional.interpolate(batch.float(), size, mode="bilinear", antialias=True).round().byte()
            logits = model(batch)["logits"]
            loss = loss_fn(logits, labels[index])
            opt.zero_grad()
            loss.backward()
            opt.step()
            schedule.step()
            losses += float(loss.detach().double()) * 8
            hits += int((logits.argmax(1) == labels[index]).sum())
        val = logits_of(model, shards.val.images_nhwc, batch_size=500, device=CPU, memory_format=torch.channels_last)
        scores = metrics.cross_entropy(val, shards.val.labels), metrics.accuracy(val, shards.val.labels)
        rate = schedule.get_last_lr()[0] if epoch < 2 else config.lr / 25 / 1e4  # after its end torch's goes up again
        history.append(EpochRecord(epoch + 1, losses / 24, hits / 24, *scores, rate))
    assert [asdict(record) for record in fitted.history] == [asdict(record) for record in history]
    for key, value in model.state_dict().items():
        assert torch.equal(value, fitted.classifier.state_dict()[key]), key


def test_a_network_of_one_size_gets_no_smaller_images(shards: Dataset, tmp_path: Path) -> None:
    flat = """\
nodes:
  - {id: flat, op: flatten}
  - {id: head, op: linear, features: $classes}
outputs: {logits: head}
"""
    with pytest.raises(DeepcvError, match=r"progressive_resize makes images of 5×5, .* head\.weight would be .* 25"):
        fit(toys.network(tmp_path, flat), shards, toys.config(progressive_resize=SMALL_FIRST))


def test_the_answer_is_the_mean_of_both_sides(network: NetworkSpec, shards: Dataset) -> None:
    both, plain = (fit(network, shards, toys.config(test_time_views=views)) for views in ("flip", "one"))
    assert bits(both) == bits(plain)
    assert [record.train_loss for record in both.history] == [record.train_loss for record in plain.history]
    assert [record.val_loss for record in both.history] != [record.val_loss for record in plain.history]
    images = torch.from_numpy(shards.test.images_nhwc.copy()).permute(0, 3, 1, 2)
    with torch.inference_mode():
        one, other, mean = (
            model.classifier.eval()(batch)["logits"]
            for model, batch in ((plain, images), (plain, images.flip(3)), (both, images))
        )
    assert torch.equal(mean, (one + other) / 2)
    assert not torch.equal(mean, one)


def test_the_answer_is_the_mean_of_six_views(network: NetworkSpec, shards: Dataset) -> None:
    six, plain = (fit(network, shards, toys.config(test_time_views=views)) for views in ("flip_shift", "one"))
    assert bits(six) == bits(plain)
    images = np.array(shards.test.images_nhwc)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    height, width = images.shape[1:3]
    corners = [padded[:, at : at + height, at : at + width] for at in (0, 2)]
    expected = sum(
        share * logits_of(plain.classifier, np.ascontiguousarray(view), batch_size=50, device=CPU)
        for share, moved in ((0.25, [images]), (0.125, corners))
        for picture in moved
        for view in (picture, picture[:, :, ::-1])
    )
    assert logits_of(six.classifier, images, batch_size=50, device=CPU) == pytest.approx(expected, abs=1e-5)


def test_a_network_of_two_scales_trains_on_the_images_and_on_smaller_ones(shards: Dataset, tmp_path: Path) -> None:
    spec = toys.network(tmp_path, toys.TWO_SCALES)
    fitted = fit(spec, shards, toys.config(test_time_views="flip"))
    assert same(fitted, fit(spec, shards, toys.config(test_time_views="flip")))
    assert fitted.history[-1].val_accuracy == 1
    save(tmp_path / "model.pt", fitted.classifier, spec.canonical(), fitted.info)
    loaded, _ = load(tmp_path / "model.pt")
    images = torch.from_numpy(shards.test.images_nhwc.copy()).permute(0, 3, 1, 2)
    assert torch.equal(loaded(images)["logits"], fitted.classifier.eval()(images)["logits"])
    loaded.train()(images)["logits"].square().sum().backward()
    assert all(loaded.network.get_parameter(f"{part}.conv.weight").grad.abs().sum() > 0 for part in ("near", "far"))
    normalised = loaded.normalise(images)
    inputs = loaded.eval().inputs(normalised)
    assert inputs["fine"] is normalised
    # Rows of 8 pixels to 4: antialiased, each weighs 1, 3, 3, 1 eighths of four neighbours; those at the border 3, 3, 1 sevenths.
    rows = torch.zeros(4, 8)
    rows[0, :3], rows[1, 1:5], rows[2, 3:7] = torch.tensor([3, 3, 1]) / 7, *[torch.tensor([1, 3, 3, 1]) / 8] * 2
    rows[3] = rows[0].flip(0)
    torch.testing.assert_close(inputs["coarse"], rows @ normalised)
    assert features_of(loaded, shards.test.images_nhwc, batch_size=5).shape == (8, 8)


def test_whitening_sees_the_images_at_the_size_of_its_input(shards: Dataset, tmp_path: Path) -> None:
    text = toys.TWO_SCALES.replace("op: conv, channels: 4, from: coarse", "op: whiten, from: coarse")
    info = ModelInfo(shards.name, shards.classes, shards.recipe, shards.mean, shards.std)
    model = create(toys.network(tmp_path, text).canonical(), info)
    images = torch.from_numpy(shards.train.images_nhwc.copy()).permute(0, 3, 1, 2)
    model.fit_whitening(images)
    found = model.network.get_submodule("far")
    expected = WhiteningConv2d(1, found.kernel_size[0])
    expected.fit(model.inputs(model.normalise(images))["coarse"])
    assert torch.equal(found.weight, expected.weight)


def test_images_of_one_pixel_cannot_be_moved() -> None:
    info = ModelInfo("toy", ("a", "b"), {"channels": 1, "height": 1, "width": 8}, (0.5,), (0.5,), "flip_shift")
    with pytest.raises(DeepcvError, match="expected sides of 2 or more"):
        Classifier(torch.nn.Identity(), info)


@pytest.mark.parametrize(
    ("version", "told", "views"),
    [(1, {}, "one"), (2, {"test_time_flip": False}, "one"), (2, {"test_time_flip": True}, "flip")],
)
def test_an_older_model_file_is_read(
    version: int, told: dict[str, bool], views: TestTimeViews, network: NetworkSpec, shards: Dataset, tmp_path: Path
) -> None:
    fitted = fit(network, shards, toys.config(epochs=1, test_time_views=views))
    save(tmp_path / "new", fitted.classifier, network.canonical(), fitted.info)
    content = torch.load(tmp_path / "new", weights_only=True)
    del content["info"]["test_time_views"]
    content["info"].update(told)
    torch.save(content | {"format": version}, tmp_path / "old")
    assert load(tmp_path / "old")[1] == fitted.info
    torch.save(content | {"format": 6}, tmp_path / "newer")
    with pytest.raises(ModelFileError, match="not a model file of format 3"):
        load(tmp_path / "newer")


def test_the_model_file_gives_the_classifier_back(network: NetworkSpec, shards: Dataset, tmp_path: Path) -> None:
    fitted = fit(network, shards, toys.config(epochs=1, test_time_views="flip"))
    for name in ("one", "two"):
        save(tmp_path / name, fitted.classifier, network.canonical(), fitted.info)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    loaded, info = load(tmp_path / "one")
    assert info == fitted.info
    assert not loaded.training
    images = shards.test.images_nhwc
    expected = logits_of(fitted.classifier, images, batch_size=3, device=CPU)
    assert (logits_of(loaded, images, batch_size=3, device=CPU) == expected).all()


@pytest.mark.parametrize("damage", ["missing", *DAMAGE])
def test_a_damaged_model_file_is_refused(damage: str, network: NetworkSpec, shards: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    if damage != "missing":
        info = ModelInfo(shards.name, shards.classes, shards.recipe, shards.mean, shards.std)
        save(path, create(network.canonical(), info), network.canonical(), info)
        DAMAGE[damage](path)
    with pytest.raises(ModelFileError, match=r"model\.pt: (missing|damaged|not a model file)"):
        load(path)


def test_progress_is_drawn_on_stderr(network: NetworkSpec, shards: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    fitted = fit(network, shards, toys.config(epochs=3), progress=True)
    drawn = capsys.readouterr()
    assert "9/9" in drawn.err
    lines = [line.split() for line in drawn.err.replace("\r", "\n").split("\n")]
    assert lines.count(["epoch", "train", "loss", "accuracy", "val", "loss", "accuracy", "lr", "seconds"]) == 1
    rows = [line for line in lines if len(line) == 7 and line[0] in ("1", "2", "3")]
    assert [(row[0], row[4]) for row in rows] == [(str(r.epoch), f"{r.val_accuracy:.4f}") for r in fitted.history]
    assert drawn.out == ""


def test_without_a_bar_there_are_rows(
    network: NetworkSpec, shards: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As TQDM_DISABLE, which tqdm reads when it is imported, takes it away."""
    monkeypatch.setattr(tqdm, "tqdm", partial(tqdm.tqdm, disable=True))
    fit(network, shards, toys.config(), progress=True)
    table = capsys.readouterr().err
    assert "val loss" in table
    assert "%|" not in table
    assert len(table.splitlines()) == 5
    assert table.splitlines()[-1].startswith("images a second: ")  # short as it was


@pytest.fixture
def spend(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let seconds pass on the clock by which speed is measured."""
    now_s = 0.0

    def pass_by(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    monkeypatch.setattr("deepcv.training.speed.time", SimpleNamespace(perf_counter=lambda: now_s))
    return pass_by


@pytest.mark.parametrize("steps", [5, 20, 120])
@pytest.mark.parametrize(("loader_s", "step_s", "limit"), [(0.02, 0.001, "loader"), (0.001, 0.02, "network")])
def test_what_limits_the_training_is_said_once(
    loader_s: float, step_s: float, limit: str, steps: int, spend: Callable[[float], None]
) -> None:
    """Also of few steps; what happens between epochs, here of five steps, does not count."""
    told: list[str] = []
    noted: list[Mapping[str, float]] = []

    def work(_engine: Engine, _batch: int) -> bool:
        spend(step_s)
        return True

    trainer = Engine(work)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: spend(0.05))
    tell_speed(trainer, 8, CPU, told.append, noted.append)

    def batches() -> Iterator[int]:
        for number in range(steps):
            spend(loader_s)
            yield number

    trainer.run(batches(), max_epochs=steps // 5, epoch_length=5)
    (line,), (rates,) = told, noted
    assert line.endswith(f"together; the {limit} limits the training")
    loader, step, both = (rates[f"images_per_s.{name}"] for name in ("loader", "network", "together"))
    assert [f"{rate:,.0f}" for rate in (loader, step, both)] == re.findall(r"[\d,]*\d", line)
    assert [8 / rate for rate in (loader, step, both)] == pytest.approx([loader_s, step_s, loader_s + step_s])


@pytest.mark.parametrize("accumulate", [2, 16])
def test_what_limits_the_training_is_said_of_whole_windows(accumulate: int, spend: Callable[[float], None]) -> None:
    """Batches wait for a step of the optimizer, which then takes as long as all of them."""
    told: list[str] = []
    noted: list[Mapping[str, float]] = []

    def work(engine: Engine, _batch: int) -> bool:
        if engine.state.iteration % accumulate:
            return False
        spend(0.01 * accumulate)
        return True

    def batches() -> Iterator[int]:
        for number in range(320):
            spend(0.001)
            yield number

    trainer = Engine(work)
    tell_speed(trainer, 8, CPU, told.append, noted.append)
    trainer.run(batches(), max_epochs=1, epoch_length=320)
    (line,), (rates,) = told, noted
    assert line.endswith("the network limits the training")
    found = [8 / rates[f"images_per_s.{name}"] for name in ("loader", "network", "together")]
    assert found == pytest.approx([0.001, 0.01, 0.011])


def test_of_three_steps_no_speed_is_said() -> None:
    told: list[object] = []
    trainer = Engine(lambda _engine, _batch: None)
    tell_speed(trainer, 8, CPU, told.append, told.append)
    trainer.run(range(3), max_epochs=1)
    assert told == []


def test_little_memory_is_enough_for_training_and_judging_and_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For three images at a time when the network learns, and for five when it is judged."""
    shards = toys.shards(tmp_path / "shards", held_out=18)
    nodes = "nodes:\n  - {id: flat, op: flatten}\n  - {id: head, op: linear, features: $classes}\n"
    network = toys.network(tmp_path, f"{nodes}outputs: {{logits: head}}\n")
    forward = Classifier.forward

    def confined(model: Classifier, images_nchw: torch.Tensor) -> dict[str, torch.Tensor]:
        if len(images_nchw) > (3 if model.training else 5):
            raise torch.OutOfMemoryError("tried to allocate more than there is")
        return forward(model, images_nchw)

    noted: list[Mapping[str, float]] = []

    def train(folder: Path, **more: Any) -> Fitted:
        return fit(network, shards, toys.config(), checkpoints=folder, on_note=noted.append, **more)

    roomy = fit(network, shards, toys.config())
    assert roomy.pieces == 1
    monkeypatch.setattr(Classifier, "forward", confined)
    whole = train(tmp_path / "whole")
    assert whole.pieces == 4
    assert noted == [{"pieces": 2}, {"pieces": 4}]
    said = re.findall(r"out of memory; (\d+) images", capsys.readouterr().err)
    assert said == ["4", "2", "9", "5"]  # each once, not in every epoch
    assert [one.val_loss for one in whole.history] == pytest.approx([one.val_loss for one in roomy.history], rel=1e-4)
    asked = itertools.count(1)
    with pytest.raises(InterruptedTrainingError):
        train(tmp_path / "cut", interrupted=lambda: next(asked) >= 5)
    capsys.readouterr()
    assert same(train(tmp_path / "cut"), whole)
    assert "out of memory" not in capsys.readouterr().err
    assert noted[-1] == {"pieces": 4}


def test_seeds_and_epochs_share_no_dropout() -> None:
    zero = torch.zeros(1, dtype=torch.int64)
    drawn = {int(hash32(seed, epoch, zero, DROPOUT)) for seed, epoch in itertools.product(range(9), range(9))}
    assert len(drawn) == 81
