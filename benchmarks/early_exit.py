"""Early exits on CIFAR-10-JPEG: the multiply-adds that they save, and the accuracy that they cost.

    python -m benchmarks.early_exit --path cifar10-jpeg.tar.gz [--width 16 --epochs 6 --seeds 0 1 2 --quick]

Trains `resnet-9-exits` on the mean loss of its exits, once per seed. The threshold of each exit is taken on the val images: of all
pairs that cost at most half of the points allowed, that which saves most. `value` is the mean share of multiply-adds saved on
the test images, `points` the mean of what the accuracy lost against the same network without exits.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.result import emit
from benchmarks.trainings import config_of, prepared, with_train_images
from deepcv.data.augmentation import Augmentation
from deepcv.data.loaders import TrainLoader
from deepcv.data.shards import Dataset, Split
from deepcv.nn.classifier import Classifier, ModelInfo
from deepcv.nn.spec import build, load
from deepcv.nn.spec.expand import ZOO
from deepcv.serving.early_exit import EarlyExit
from deepcv.training.config import TrainConfig
from deepcv.training.hardware import resolve
from deepcv.training.optimizers import create_optimizer

EXITS = ("exit1", "exit2", "logits")
SAVED, POINTS = 0.30, 0.5
THRESHOLDS = np.linspace(0.3, 1.0, 71).tolist()
NEVER = (2.0,) * (len(EXITS) - 1)


@dataclass(frozen=True)
class Answers:
    """The softmax of each exit, (exits, images, classes), the labels, and the multiply-adds up to each exit."""

    probabilities: Tensor
    labels: Tensor
    macs: Tensor

    def at(self, thresholds: Sequence[float]) -> tuple[float, float]:
        """Accuracy, and mean multiply-adds per image, where images leave at the first exit that is as sure as its threshold."""
        sure = self.probabilities.amax(2) >= torch.tensor([*thresholds, 0.0]).view(-1, 1)
        sure[-1] = True
        left = sure.int().argmax(0)
        correct = self.probabilities[left, torch.arange(len(left))].argmax(1) == self.labels
        return correct.double().mean().item(), self.macs[left].mean().item()


def train(shards: Dataset, config: TrainConfig, width: int) -> Classifier:
    """All exits together, on the mean of their losses."""
    hardware = resolve(config.device, config.precision, config.channels_last, config.threads)
    torch.manual_seed(config.seed)
    network = build(load(ZOO / "resnet-9-exits.yaml", {"width": width}), shards.input_shape, len(shards.classes))
    info = ModelInfo(shards.name, shards.classes, shards.recipe, shards.mean, shards.std)
    model = Classifier(network, info).to(memory_format=hardware.memory_format)
    loader = TrainLoader(
        shards.train, batch_size=config.batch_size, seed=config.seed, device=torch.device("cpu"),
        augmentation=Augmentation(config.flip, config.shift, config.cutout),
    )  # fmt: skip
    optimizer = create_optimizer(model, config)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.lr, total_steps=config.epochs * len(loader), pct_start=config.warmup, cycle_momentum=False
    )
    loss_of = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    for loader.epoch in range(config.epochs):
        for images, labels in loader:
            with hardware.autocast():
                outputs = model(images)
                loss = torch.stack([loss_of(outputs[name], labels) for name in EXITS]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        print(f"epoch {loader.epoch + 1}: loss {loss.item():.3f}", file=sys.stderr, flush=True)
    return model.eval()


@torch.no_grad()
def answers(model: Classifier, split: Split, macs: Tensor) -> Answers:
    """Every exit's answer to every image, without leaving early."""
    images = torch.from_numpy(np.array(split.images_nhwc)).permute(0, 3, 1, 2)
    parts = [model(part) for part in images.split(500)]
    probabilities = torch.stack([torch.cat([part[name] for part in parts]).softmax(1) for name in EXITS])
    return Answers(probabilities, torch.from_numpy(np.array(split.labels)), macs)


def macs_to_each_exit(network: fx.GraphModule, image: Tensor) -> Tensor:
    """Multiply-adds that one image (1, C, H, W) has cost when it leaves by each exit."""
    counts = []
    for place in range(len(EXITS)):
        thresholds = [2.0 if at < place else 0.0 for at in range(len(EXITS) - 1)]
        with FlopCounterMode(display=False) as counter:
            left = EarlyExit(network, EXITS, thresholds)(image)
        assert left.exits.item() == place  # noqa: S101  what is counted is what is meant
        counts.append(counter.get_total_flops() / 2)
    return torch.tensor(counts, dtype=torch.float64)


def chosen_thresholds(val: Answers) -> tuple[float, ...]:
    """Those that save most at a cost of at most half of the points allowed."""
    whole, _ = val.at(NEVER)
    found = {pair: val.at(pair) for pair in itertools.product(THRESHOLDS, repeat=len(EXITS) - 1)}
    allowed = [pair for pair, (accuracy, _) in found.items() if accuracy >= whole - POINTS / 200]
    return min(allowed, key=lambda pair: found[pair][1], default=NEVER)


def measure(shards: Dataset, config: TrainConfig, width: int) -> dict[str, Any]:
    """Train with the configuration's seed; thresholds from val, figures from test."""
    model = train(shards, config, width)
    assert isinstance(model.network, fx.GraphModule)  # noqa: S101  for mypy
    macs = macs_to_each_exit(model.network, torch.randn(1, *shards.input_shape))
    thresholds = chosen_thresholds(answers(model, shards.val, macs))
    test = answers(model, shards.test, macs)
    images = model.normalise(torch.from_numpy(np.array(shards.test.images_nhwc)).permute(0, 3, 1, 2))
    runner = EarlyExit(model.network, EXITS, thresholds)
    left = [runner(part) for part in images.split(500)]
    exits = torch.cat([one.exits for one in left])
    accuracy = (torch.cat([one.logits for one in left]).argmax(1) == test.labels).double().mean().item()
    without = test.at(NEVER)[0]
    return {
        "saved": round(1 - (macs[exits].mean() / macs[-1]).item(), 4), "points": round((without - accuracy) * 100, 2),
        "thresholds": [round(one, 2) for one in thresholds], "accuracy_without": round(without, 4),
        "accuracy_of_exits": [round((p.argmax(1) == test.labels).double().mean().item(), 4) for p in test.probabilities],
        "share_of_exits": [round((exits == place).double().mean().item(), 4) for place in range(len(EXITS))],
        "mega_macs": [round(one / 1e6, 2) for one in macs.tolist()],
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, required=True, help="the tar of CIFAR-10-JPEG")
    parser.add_argument("--width", type=int, default=16, help="64 is ResNet-9 as published")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="2,000 training images, width 8, two epochs, one seed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        shards = prepared(options.path, Path(name))
        config = replace(config_of("cifar10-jpeg"), epochs=options.epochs)
        if options.quick:
            options.width, config, options.seeds = 8, replace(config, epochs=2), options.seeds[:1]
            shards = with_train_images(shards, 2_000)
        torch.set_num_threads(1)
        found = [measure(shards, replace(config, seed=seed), options.width) for seed in options.seeds]
    saved, points = (statistics.mean(one[name] for one in found) for name in ("saved", "points"))
    emit(
        "early-exit", value=round(saved, 4), baseline=SAVED, n=len(found),
        target=f">= {SAVED:.0%} of the multiply-adds saved at <= {POINTS} points",
        holds=saved >= SAVED and points <= POINTS, points=round(points, 2), seeds=found, width=options.width,
        epochs=config.epochs,
    )  # fmt: skip


if __name__ == "__main__":
    main()
