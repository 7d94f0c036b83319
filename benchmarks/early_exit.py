"""Early exits on CIFAR-10-JPEG: the multiply-adds that they save, and the accuracy that they cost.

    python -m benchmarks.early_exit --path cifar10-jpeg.tar.gz [--width 16 --epochs 6 --seeds 0 1 2 --jobs 3 --quick]

Trains `resnet-9-exits` on the mean loss of its exits, once per seed. The threshold of each exit (of the margin between its two
likeliest classes, which saved a point more than the largest probability on val images of seed 2) is taken on the val images: of all
pairs whose cost is, with 95 % confidence, within the points allowed, that which saves most. The cost is a paired difference, so its
standard error comes from those images alone whose answer changes. `value` is the mean share of multiply-adds saved on
the test images, `points` the mean of what the accuracy lost against the same network without exits. The more val images
(`ingest.val_fraction`), the smaller the error, and the more is saved.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.result import emit
from benchmarks.trainings import config_of, in_parallel, prepared, with_train_images
from deepcv.data.shards import Dataset, Split
from deepcv.nn.classifier import Classifier
from deepcv.nn.spec import load
from deepcv.nn.spec.expand import ZOO
from deepcv.serving.early_exit import EarlyExit, sureness
from deepcv.training.config import TrainConfig
from deepcv.training.fit import Fitted, fit
from deepcv.training.losses import Term

EXITS = ("exit1", "exit2", "logits")
SAVED, POINTS = 0.30, 0.5
THRESHOLDS = np.linspace(0.1, 1.0, 91).tolist()  # of the margin between the two likeliest classes
# In standard errors. With one alone the luckiest of 5,041 pairs costs all that is allowed (simulated, 5,000 images).
CONFIDENCE = 1.645
NEVER = (2.0,) * (len(EXITS) - 1)


@dataclass(frozen=True)
class Answers:
    """Of each exit, (exits, images): the margin of its likeliest class and whether it is right; multiply-adds up to each exit."""

    sureness: Tensor
    right: Tensor
    macs: Tensor

    def at(self, thresholds: Sequence[float]) -> tuple[Tensor, float]:
        """Which answers are right, bool (images,), and mean multiply-adds per image, where each leaves at the first sure exit."""
        sure = self.sureness >= torch.tensor([*thresholds, 0.0]).view(-1, 1)
        sure[-1] = True
        left = sure.int().argmax(0, keepdim=True)
        return self.right.gather(0, left)[0], self.macs[left].mean().item()


def train(shards: Dataset, config: TrainConfig, width: int) -> Fitted:
    """All exits together, on the mean of their losses."""
    smoothing = {"label_smoothing": config.label_smoothing}
    losses = tuple(Term("cross_entropy", name, weight=1 / len(EXITS), options=smoothing) for name in EXITS)
    config = replace(config, losses=losses, test_time_views="one")  # EarlyExit has no such thing
    return fit(load(ZOO / "resnet-9-exits.yaml", {"width": width}), shards, config)


@torch.no_grad()
def answers(model: Classifier, split: Split, macs: Tensor) -> Answers:
    """Every exit's answer to every image, without leaving early."""
    parts = [model(part) for part in pictures(split, model.mean.device)]
    logits = torch.stack([torch.cat([part[name] for part in parts]) for name in EXITS]).cpu()
    return Answers(sureness(logits, "margin"), logits.argmax(2) == torch.from_numpy(np.array(split.labels)), macs)


def pictures(split: Split, device: torch.device) -> Sequence[Tensor]:
    """All images in batches of 500, uint8 (b, c, h, w)."""
    return torch.split(torch.from_numpy(np.array(split.images_nhwc)).permute(0, 3, 1, 2).to(device), 500)


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
    """Those that save most at a cost whose upper confidence bound is within the points allowed."""
    whole, _ = val.at(NEVER)
    best, least = NEVER, float("inf")
    for pair in itertools.product(THRESHOLDS, repeat=len(EXITS) - 1):
        right, macs = val.at(pair)
        lost = whole.double() - right.double()
        if macs < least and 100 * (lost.mean() + CONFIDENCE * lost.std() / len(lost) ** 0.5).item() <= POINTS:
            best, least = pair, macs
    return best


def measure(shards: Dataset, config: TrainConfig, width: int, seed: int) -> dict[str, Any]:
    """Train with a seed; thresholds from val, figures from test."""
    fitted = train(shards, replace(config, seed=seed), width)
    model, device = fitted.classifier.eval(), fitted.hardware.torch_device
    assert isinstance(model.network, fx.GraphModule)  # noqa: S101  for mypy
    macs = macs_to_each_exit(model.network, torch.randn(1, *shards.input_shape))
    model.to(device)
    val = answers(model, shards.val, macs)
    thresholds = chosen_thresholds(val)
    test = answers(model, shards.test, macs)
    runner = EarlyExit(model.network, EXITS, thresholds, "margin")
    left = [runner(model.normalise(part)) for part in pictures(shards.test, device)]
    exits = torch.cat([one.exits for one in left]).cpu()
    named = torch.cat([one.logits for one in left]).argmax(1).cpu()
    accuracy = (named == torch.from_numpy(np.array(shards.test.labels))).double().mean().item()
    without = shares(test.right)[-1]
    found = {
        "saved": round(1 - (macs[exits].mean() / macs[-1]).item(), 4), "points": round((without - accuracy) * 100, 2),
        "points_on_val": round(100 * (shares(val.right)[-1] - val.at(thresholds)[0].double().mean().item()), 2),
        "thresholds": [round(one, 2) for one in thresholds], "accuracy_without": round(without, 4),
        "accuracy_of_exits": [round(one, 4) for one in shares(test.right)],
        "share_of_exits": [round((exits == place).double().mean().item(), 4) for place in range(len(EXITS))],
        "mega_macs": [round(one / 1e6, 2) for one in macs.tolist()],
    }  # fmt: skip
    print(f"seed {seed}: {found}", file=sys.stderr, flush=True)
    return found


def shares(right: Tensor) -> list[float]:
    """Of right answers, per exit."""
    found: list[float] = right.double().mean(1).tolist()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, required=True, help="the tar of CIFAR-10-JPEG, or a folder of shards")
    parser.add_argument("--width", type=int, default=16, help="64 is ResNet-9 as published")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--quick", action="store_true", help="2,000 training images, width 8, two epochs, one seed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        shards = prepared(options.path, Path(name))
        config = replace(config_of("cifar10-jpeg"), epochs=options.epochs, batch_size=options.batch_size)
        if options.quick:
            options.width, config, options.seeds = 8, replace(config, epochs=2), options.seeds[:1]
            shards = with_train_images(shards, 2_000)
        found = in_parallel(partial(measure, shards, config, options.width), options.seeds, options.jobs)
    saved, points = (statistics.mean(one[name] for one in found) for name in ("saved", "points"))
    emit(
        "early-exit", value=round(saved, 4), baseline=SAVED, n=len(found),
        target=f">= {SAVED:.0%} of the multiply-adds saved at <= {POINTS} points",
        holds=saved >= SAVED and points <= POINTS, points=round(points, 2), seeds=found, width=options.width,
        epochs=config.epochs, batch_size=config.batch_size, val_images=len(shards.val.labels),
    )  # fmt: skip


if __name__ == "__main__":
    main()
