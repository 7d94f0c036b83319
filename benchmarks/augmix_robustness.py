"""AugMix with its consistency loss against flip and shift alone: errors on corrupted and on clean test images of CIFAR-10-JPEG.

    python -m benchmarks.augmix_robustness --path SHARDS [--quick] [--seeds 0 1 2 --epochs 10 --width 32 --jobs 6]

One side is examples/cifar10-jpeg-robust.yaml, the other the same without AugMix, views and Jensen-Shannon term. The mean
corruption error is the mean error over fifteen corruptions in five severities (`benchmarks.corruptions`), as AugMix's paper has
it for CIFAR-10-C; no network is trained on any of them. `holds`: it falls by 30 % and clean accuracy by 0.5 points at most,
means over the seeds. `--jobs` trains so many networks at a time, each in a process of its own.
"""

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.corruptions import NAMES, SEVERITIES, corrupted
from benchmarks.result import ROOT, emit
from benchmarks.trainings import (
    accuracy,
    config_of,
    in_parallel,
    params_of,
    prepared_folder,
    some,
    test_accuracy,
    with_train_images,
)
from deepcv.data.augmentation import Recipe
from deepcv.data.loaders import Views
from deepcv.data.shards import Dataset, Split, open_shards
from deepcv.nn.spec import load
from deepcv.training.config import TrainConfig
from deepcv.training.fit import Fitted, fit

EXAMPLE = "cifar10-jpeg-robust"
LESS, POINTS = 0.30, -0.5
SIDES = ("augmix", "flip_shift")  # the longer trainings first


@dataclass(frozen=True)
class Task:
    """One training, with what its process needs to know."""

    side: str
    seed: int
    shards: Path
    corrupted: Path
    epochs: int
    width: int
    quick: bool


def corrupt(task: tuple[Path, str, int]) -> None:
    """Write the test images of one corruption and severity."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    folder, name, severity = task
    clean = np.load(folder / "clean.npy", mmap_mode="r")
    np.save(folder / f"{name}-{severity}.npy", corrupted(clean, name, severity))


def quick(shards: Dataset) -> Dataset:
    """A few of the train and test images."""
    return replace(with_train_images(shards, 2_000), test=some(shards.test, 200))


def config(task: Task) -> TrainConfig:
    """How one side is trained."""
    ours = replace(config_of(EXAMPLE), epochs=task.epochs, seed=task.seed, threads=1)
    if task.quick:
        ours = replace(ours, batch_size=32, lr=0.01)
    if task.side == "augmix":
        return ours
    return replace(ours, augmentation=Recipe(), views=Views(), losses=ours.losses[:1])


def errors(fitted: Fitted, folder: Path, split: Split) -> dict[str, list[float]]:
    """The error for each corruption and severity."""

    def error(name: str, severity: int) -> float:
        images = np.load(folder / f"{name}-{severity}.npy", mmap_mode="r")
        return 1 - accuracy(fitted, Split(images, split.labels))

    return {name: [error(name, severity) for severity in range(1, SEVERITIES + 1)] for name in NAMES}


def trained(task: Task) -> dict[str, Any]:
    """Train and measure one network."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    shards = quick(open_shards(task.shards)) if task.quick else open_shards(task.shards)
    network = load(ROOT / params_of(EXAMPLE).network, {"width": task.width})
    fitted = fit(network, shards, config(task))
    fitted_s = time.perf_counter() - started
    found = errors(fitted, task.corrupted, shards.test)
    result = {
        "side": task.side, "seed": task.seed, "accuracy": test_accuracy(fitted, shards),
        "mean_corruption_error": statistics.mean(itertools.chain(*found.values())),
        "val_accuracy": fitted.history[-1].val_accuracy, "fit_s": round(fitted_s, 1),
        "all_s": round(time.perf_counter() - started, 1), "errors": found,
    }  # fmt: skip
    print({key: value for key, value in result.items() if key != "errors"}, file=sys.stderr, flush=True)
    return result


def summary(results: list[dict[str, Any]], side: str) -> dict[str, Any]:
    """Means of one side over its seeds, and the error of each corruption over seeds and severities."""
    own = [one for one in results if one["side"] == side]
    return {
        **{key: round(statistics.mean(one[key] for one in own), 4) for key in ("accuracy", "mean_corruption_error")},
        "accuracies": [round(one["accuracy"], 4) for one in own],
        "mean_corruption_errors": [round(one["mean_corruption_error"], 4) for one in own],
        "fit_s": [one["fit_s"] for one in own],
        "errors": {
            name: round(statistics.mean(itertools.chain(*(one["errors"][name] for one in own))), 4) for name in NAMES
        },
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, required=True, help="CIFAR-10-JPEG")
    parser.add_argument("--epochs", type=int, default=config_of(EXAMPLE).epochs)
    parser.add_argument("--width", type=int, default=params_of(EXAMPLE).network_parameters["width"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument(
        "--quick", action="store_true", help="2,000 train and 200 test images, 4 epochs, width 8, one seed"
    )
    options = parser.parse_args()
    if options.quick:
        options.epochs, options.width, options.seeds = 4, 8, options.seeds[:1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = prepared_folder(options.path, folder)
        dataset = open_shards(shards)
        test = (quick(dataset) if options.quick else dataset).test
        np.save(folder / "clean.npy", test.images_nhwc)
        started = time.perf_counter()
        pictures = [(folder, *one) for one in itertools.product(NAMES, range(1, SEVERITIES + 1))]
        in_parallel(corrupt, pictures, len(os.sched_getaffinity(0)) if options.jobs > 1 else 1)
        print(f"corrupted in {time.perf_counter() - started:.1f} s", file=sys.stderr, flush=True)
        tasks = [
            Task(side, seed, shards, folder, options.epochs, options.width, options.quick)
            for side in SIDES
            for seed in options.seeds
        ]
        results = in_parallel(trained, tasks, options.jobs)
    ours, theirs = (summary(results, side) for side in SIDES)
    less = 1 - ours["mean_corruption_error"] / theirs["mean_corruption_error"]
    points = 100 * (ours["accuracy"] - theirs["accuracy"])
    emit(
        "augmix-robustness", value=ours["mean_corruption_error"], baseline=theirs["mean_corruption_error"],
        target=f"mean corruption error {LESS:.0%} less, clean accuracy at least {POINTS} points", n=len(options.seeds),
        holds=less >= LESS and points >= POINTS, less=round(less, 4), points=round(points, 2), epochs=options.epochs,
        width=options.width, augmix=ours, flip_shift=theirs,
    )  # fmt: skip


if __name__ == "__main__":
    main()
