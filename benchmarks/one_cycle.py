"""The one-cycle schedule: its curve against torch's and fastai's, and what it is worth against step decay.

    pip install --target PEER fastai python-fasthtml fastdownload --no-deps   # and what its import then asks for
    PYTHONPATH=PEER python -m benchmarks.one_cycle [--quick] [--path cifar10-jpeg.tar.gz --images 10000 --epochs 24 --seeds 0 1 2]

Without fastai its curve is left out and `fastai` is null. With `--path`: accuracy after a quarter of the epochs in one cycle minus that
after all of them with step decay (a tenth at 1/2 and 3/4), SGD with Nesterov momentum, everything else equal. Each side's rate is
chosen on the val images among three, with the first seed.
"""

import argparse
import itertools
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.result import ROOT, emit
from benchmarks.trainings import config_of, prepared, test_accuracy, with_train_images
from deepcv.data.shards import Dataset
from deepcv.nn.spec import load
from deepcv.training.config import TrainConfig
from deepcv.training.fit import Fitted, fit
from deepcv.training.schedules import Curve, OneCycle, Piecewise, Schedule

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


def trained(shards: Dataset, base: TrainConfig, side: str, rate: float, epochs: int, seed: int) -> Fitted:
    """One training of one side."""
    schedules: dict[str, Schedule] = {}
    if side == "step":
        schedules["lr"] = Piecewise(tuple((share, factor * rate) for share, factor in STEP_DECAY), "step")
    config = replace(
        base, lr=rate, schedules=schedules, epochs=epochs // 4 if side == "one_cycle" else epochs, seed=seed
    )
    fitted = fit(load(ROOT / "networks/small.yaml", {"width": 8}), shards, config)
    print(f"{side} {rate} seed {seed}: val {fitted.history[-1].val_accuracy:.4f}", file=sys.stderr, flush=True)
    return fitted


def compare(shards: Dataset, base: TrainConfig, epochs: int, seeds: list[int]) -> dict[str, Any]:
    """Choose a rate per side on val, then test accuracies over seeds."""
    found: dict[str, Any] = {}
    for side, rates in RATES.items():
        val = {rate: trained(shards, base, side, rate, epochs, seeds[0]).history[-1].val_accuracy for rate in rates}
        rate = max(rates, key=lambda one: val[one])
        accuracies = [test_accuracy(trained(shards, base, side, rate, epochs, seed), shards) for seed in seeds]
        found[side] = {"lr": rate, "val_of_rates": val, "accuracies": accuracies, "mean": statistics.mean(accuracies)}
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, help="CIFAR-10-JPEG; without it the curves alone are compared")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=24, help="of step decay; one cycle gets a quarter")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="2,000 images, 4 epochs, one seed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    curves = {"torch": from_torch(), "fastai": from_fastai()}
    holds = all(one is not None and one <= BOUND for one in curves.values())
    more: dict[str, Any] = {}
    if options.path:
        images, epochs, seeds = (2000, 4, [0]) if options.quick else (options.images, options.epochs, options.seeds)
        base = replace(config_of("cifar10-jpeg"), optimizer="sgd", weight_decay=5e-4, label_smoothing=0.0)
        with tempfile.TemporaryDirectory() as name:
            found = compare(with_train_images(prepared(options.path, Path(name)), images), base, epochs, seeds)
        points = 100 * (found["one_cycle"]["mean"] - found["step"]["mean"])
        holds = holds and points >= POINTS
        more = {"points": round(points, 2), "images": images, "epochs": epochs, **found}
    emit(
        "one-cycle", value=max(one or 0.0 for one in curves.values()), baseline=None,
        target=f"curves within {BOUND}; a quarter of the epochs within {POINTS} points of step decay", holds=holds,
        n=len(CASES), curves=curves, **more,
    )  # fmt: skip


if __name__ == "__main__":
    main()
