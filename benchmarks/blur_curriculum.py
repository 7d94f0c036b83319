"""Curriculum by smoothing: what a blur on activations that fades during training is worth on CIFAR-10-JPEG.

    python -m benchmarks.blur_curriculum --path SHARDS [--quick] [--seeds 0 1 2 --epochs 16 --width 32 --jobs 9]

ResNet-9 with a blur behind each convolution (blur_curriculum.yaml), trained with the blur's sigma at 0 and with two schedules from
1 pixel: the paper's, exponential (Sinha et al. 2020, arXiv 2003.01367: times 0.9 every 5 of 200 epochs), and a line to 0 at
half of the training. Everything else is equal. The schedule that is better on val, mean over the seeds, is compared on test.
No gain is asked for: `holds` says whether there is one. `--jobs` trains so many networks at a time, each in a process of its own.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.result import ROOT, emit
from benchmarks.trainings import config_of, in_parallel, prepared_folder, test_accuracy, with_train_images
from deepcv.data.shards import open_shards
from deepcv.nn.spec import load
from deepcv.training.fit import fit
from deepcv.training.schedules import Ramp, Schedule

SCHEDULES: Mapping[str, Mapping[str, Schedule]] = {
    "exponential": {"blur": Ramp("exponential", 1.0, 0.9**40)},
    "linear": {"blur": Ramp("linear", 1.0, 0.0, until=0.5)},
    "none": {},
}


@dataclass(frozen=True)
class Task:
    """One training, with what its process needs to know."""

    side: str
    seed: int
    shards: Path
    epochs: int
    width: int
    lr: float
    quick: bool


def trained(task: Task) -> dict[str, Any]:
    """Train and measure one network."""
    torch.set_num_threads(1)
    shards = open_shards(task.shards)
    # The robust recipe's optimizer, flip and shift, without what makes it robust.
    base = config_of("cifar10-jpeg")
    config = replace(
        base, optimizer="sgd", lr=task.lr, momentum=0.9, weight_decay=5e-4, label_smoothing=0.0, batch_size=256, warmup=0.25,
        flip=True, shift=4, cutout=0, test_time_views="one", epochs=task.epochs, seed=task.seed, threads=1,
        schedules=SCHEDULES[task.side],
    )  # fmt: skip
    if task.quick:
        shards, config = with_train_images(shards, 2_000), replace(config, batch_size=64)
    started = time.perf_counter()
    fitted = fit(load(ROOT / "benchmarks/blur_curriculum.yaml", {"width": task.width}), shards, config)
    result = {
        "side": task.side, "seed": task.seed, "val_accuracy": fitted.history[-1].val_accuracy,
        "fit_s": round(time.perf_counter() - started, 1), "accuracy": test_accuracy(fitted, shards),
    }  # fmt: skip
    print(result, file=sys.stderr, flush=True)
    return result


def summary(results: list[dict[str, Any]], side: str) -> dict[str, Any]:
    """Means of one side over its seeds."""
    own = [one for one in results if one["side"] == side]
    return {
        **{key: round(statistics.mean(one[key] for one in own), 4) for key in ("accuracy", "val_accuracy")},
        "accuracies": [round(one["accuracy"], 4) for one in own],
        "fit_s": [one["fit_s"] for one in own],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, required=True, help="CIFAR-10-JPEG")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.2, help="peak of the cycle, of all sides")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--quick", action="store_true", help="2,000 train images, 4 epochs, width 8, lr 0.05, one seed")
    options = parser.parse_args()
    if options.quick:
        options.epochs, options.width, options.lr, options.seeds = 4, 8, 0.05, options.seeds[:1]
    with tempfile.TemporaryDirectory() as name:
        shards = prepared_folder(options.path, Path(name))
        tasks = [
            Task(side, seed, shards, options.epochs, options.width, options.lr, options.quick)
            for seed in options.seeds
            for side in SCHEDULES
        ]
        results = in_parallel(trained, tasks, options.jobs)
    sides = {side: summary(results, side) for side in SCHEDULES}
    best = max(("exponential", "linear"), key=lambda side: sides[side]["val_accuracy"])
    ours, theirs = sides[best]["accuracy"], sides["none"]["accuracy"]
    emit(
        "blur-curriculum", value=ours, baseline=theirs, target="recorded: accuracy with the blur's schedule minus without",
        holds=ours > theirs, n=len(options.seeds), points=round(100 * (ours - theirs), 2), schedule=best,
        epochs=options.epochs, width=options.width, lr=options.lr, **sides,
    )  # fmt: skip


if __name__ == "__main__":
    main()
