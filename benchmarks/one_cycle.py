"""The one-cycle schedule: its curve against torch's and fastai's, and what it is worth against step decay.

    pip install --target PEER fastai python-fasthtml fastdownload --no-deps   # and what its import then asks for
    PYTHONPATH=PEER python -m benchmarks.one_cycle [--quick] [--path cifar10-jpeg.tar.gz --images 10000 --epochs 24 --seeds 0 1 2]

Without fastai its curve is left out and `fastai` is null. With `--path`: accuracy after a quarter of the epochs in one cycle minus that
after all of them with step decay (a tenth at 1/2 and 3/4), SGD with Nesterov momentum, everything else equal. Each side's rate is
chosen on the val images among three, with the first seed; those named in RATES are for batches of 128 images and grow with the
root of `--batch-size`. On a GPU `--jobs 6` trains six at a time.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.result import emit
from benchmarks.trainings import config_of, in_parallel, network_of, prepared, test_accuracy, with_train_images
from deepcv.data.shards import Dataset
from deepcv.training.config import TrainConfig
from deepcv.training.engine import DivergedError
from deepcv.training.fit import fit
from deepcv.training.schedules import Curve, OneCycle, Piecewise

BOUND, POINTS = 1e-9, -0.2
RATES = {"one_cycle": (0.1, 0.3, 0.6), "step": (0.03, 0.1, 0.3)}
STEP_DECAY = ((0.0, 1.0), (0.5, 0.1), (0.75, 0.01))
CASES = list(itertools.product((20, 97, 500), (0.1, 0.25, 0.4), (2, 3), ("cosine", "linear")))


def from_torch() -> float:
    """Largest difference of rate or momentum from torch's OneCycleLR, over steps, warm-ups, phases and shapes."""
    worst = 0.0
    for steps, warmup, phases, shape in CASES:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 0.1, total_steps=steps, pct_start=warmup, three_phase=phases == 3,
            anneal_strategy={"cosine": "cos"}.get(shape, shape),
        )  # fmt: skip
        rate = OneCycle(warmup, phases=phases, shape=shape).curve(0.1, steps)
        momentum = OneCycle(warmup, 0.85, 0.95, 0.95, phases=phases, shape=shape).curve(0.9, steps)
        for step in range(steps):
            group = optimizer.param_groups[0]
            worst = max(worst, abs(rate.at(step) - group["lr"]), abs(momentum.at(step) - group["momentum"]))
            optimizer.step()
            if step < steps - 1:
                scheduler.step()
    return worst


def from_fastai() -> float | None:
    """Largest difference from the curve of fastai's fit_one_cycle, as a function of the share of the training; None without it."""
    try:
        from fastai.callback.schedule import combined_cos
    except ImportError as error:
        print(f"without fastai: {error}", file=sys.stderr)
        return None
    worst = 0.0
    # fastai divides shares in float32: only where it cuts the curve in halves are they exact.
    for warmup, share in itertools.product((0.5,), np.arange(4097) / 4096):
        rate = Curve(((0.0, 0.1 / 25), (warmup, 0.1), (1.0, 0.1 / 1e5)), "cosine")
        momentum = Curve(((0.0, 0.95), (warmup, 0.85), (1.0, 0.95)), "cosine")
        theirs: tuple[Callable[[float], float], ...] = (
            combined_cos(warmup, 0.1 / 25, 0.1, 0.1 / 1e5), combined_cos(warmup, 0.95, 0.85, 0.95),
        )  # fmt: skip
        for ours, their in zip((rate, momentum), theirs, strict=True):
            worst = max(worst, abs(ours.at(share) - their(share)))
    return worst


def trained(shards: Dataset, base: TrainConfig, network: str, job: tuple[str, float, int]) -> tuple[float, float]:
    """Val and test accuracy of one training of `base.epochs` by step decay, or of a quarter of them in one cycle."""
    side, rate, seed = job
    config = replace(base, lr=rate, seed=seed)
    if side == "step":
        config = replace(
            config, schedules={"lr": Piecewise(tuple((share, by * rate) for share, by in STEP_DECAY), "step")}
        )
    else:
        config = replace(config, epochs=base.epochs // 4)
    try:
        fitted = fit(network_of(network), shards, config)
    except DivergedError:  # too high a rate to be chosen
        return 0.0, 0.0
    val, test = fitted.history[-1].val_accuracy, test_accuracy(fitted, shards)
    print(f"{side} {rate:.3g} seed {seed}: val {val:.4f}, test {test:.4f}", file=sys.stderr, flush=True)
    return val, test


def compare(shards: Dataset, base: TrainConfig, network: str, seeds: list[int], jobs: int) -> dict[str, Any]:
    """Choose a rate per side on val, then test accuracies over seeds."""
    work, growth = partial(trained, shards, base, network), (base.batch_size / 128) ** 0.5
    first = [(side, rate * growth, seeds[0]) for side in ("step", "one_cycle") for rate in RATES[side]]
    results = dict(zip(first, in_parallel(work, first, jobs), strict=True))
    val = {side: {rate: results[one, rate, seed][0] for one, rate, seed in first if one == side} for side in RATES}
    chosen = {side: max(found, key=lambda rate: found[rate]) for side, found in val.items()}
    others = [(side, chosen[side], seed) for side in ("step", "one_cycle") for seed in seeds[1:]]
    results |= zip(others, in_parallel(work, others, jobs), strict=True)
    found: dict[str, Any] = {}
    for side, rate in chosen.items():
        accuracies = [results[side, rate, seed][1] for seed in seeds]
        found[side] = {
            "lr": rate, "val_of_rates": val[side], "accuracies": accuracies, "mean": statistics.mean(accuracies)
        }  # fmt: skip
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--path", type=Path, help="CIFAR-10-JPEG or a folder of shards; without it the curves alone are compared"
    )
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=24, help="of step decay; one cycle gets a quarter")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--network", default="networks/small.yaml:width=8", help="a file or a name of the zoo")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--quick", action="store_true", help="2,000 images, 4 epochs, one seed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    curves = {"torch": from_torch(), "fastai": from_fastai()}
    holds = all(one is not None and one <= BOUND for one in curves.values())
    more: dict[str, Any] = {}
    if options.path:
        images, epochs, seeds = (2000, 4, [0]) if options.quick else (options.images, options.epochs, options.seeds)
        base = replace(
            config_of("cifar10-jpeg"), optimizer="sgd", weight_decay=5e-4, label_smoothing=0.0, epochs=epochs,
            batch_size=options.batch_size,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as name:
            shards = with_train_images(prepared(options.path, Path(name)), images)
            found = compare(shards, base, options.network, seeds, options.jobs)
        points = 100 * (found["one_cycle"]["mean"] - found["step"]["mean"])
        holds = holds and points >= POINTS
        more = {
            "points": round(points, 2), "points_hold": points >= POINTS, "images": images, "epochs": epochs, "network": options.network,
            "batch_size": options.batch_size, **found,
        }  # fmt: skip
    emit(
        "one-cycle", value=max(one or 0.0 for one in curves.values()), baseline=None,
        target=f"curves within {BOUND}; a quarter of the epochs within {POINTS} points of step decay", holds=holds,
        n=len(CASES), curves=curves, **more,
    )  # fmt: skip


if __name__ == "__main__":
    main()
