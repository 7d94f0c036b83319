"""The precision and layout that `auto` chooses here against float32 in NCHW: a training step of ResNet-9, images a second.

    python -m benchmarks.precision [--widths 32 64 --quick]
    python -m benchmarks.precision --path cifar10-jpeg.tar.gz --images 10000 --epochs 6 --seeds 0 1 2   # and the accuracies

One thread. Units of both sides alternate, in CPU seconds; a control compares float32 with itself. With `--path` the first width is
also trained with both settings, and test accuracies are compared.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.result import emit
from benchmarks.trainings import config_of, prepared, test_accuracy, with_train_images
from deepcv.nn.spec import build, load
from deepcv.nn.spec.expand import ZOO
from deepcv.training.fit import fit
from deepcv.training.hardware import Hardware, keep_freed_memory, resolve

RATIO, POINTS = 2.3, 0.3


def stepper(width: int, hardware: Hardware, batch_size: int) -> Callable[[], None]:
    """One training step of a network of its own on one batch."""
    torch.manual_seed(0)
    net = build(load(ZOO / "resnet-9.yaml", {"width": width}), (3, 32, 32), 10).to(memory_format=hardware.memory_format)
    images = torch.randn(batch_size, 3, 32, 32).contiguous(memory_format=hardware.memory_format)
    labels = torch.arange(batch_size) % 10
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, nesterov=True)

    def step() -> None:
        with hardware.autocast():
            loss = nn.functional.cross_entropy(net(images)["logits"], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def speeds(width: int, default: Hardware, plain: Hardware, rounds: int, batch_size: int) -> dict[str, float]:
    """Images per CPU second of both sides, the median ratio, and that of float32 against itself."""
    sides = {
        "auto": stepper(width, default, batch_size),
        "fp32": stepper(width, plain, batch_size),
        "control": stepper(width, plain, batch_size),
    }
    for step in sides.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        names = list(sides)[number % 3 :] + list(sides)[: number % 3]
        for name in names:
            start = time.process_time()
            sides[name]()
            seconds[name].append(time.process_time() - start)
    ratios = [fp32 / auto for fp32, auto in zip(seconds["fp32"], seconds["auto"], strict=True)]
    controls = [fp32 / other for fp32, other in zip(seconds["fp32"], seconds["control"], strict=True)]
    return {
        "auto_images_s": batch_size / statistics.median(seconds["auto"]),
        "fp32_images_s": batch_size / statistics.median(seconds["fp32"]),
        "ratio": statistics.median(ratios), "control": statistics.median(controls),
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--path", type=Path, help="CIFAR-10-JPEG; without it no accuracy is compared")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--quick", action="store_true", help="small batches, one width, within 60 s")
    options = parser.parse_args()
    widths, rounds, batch_size = (
        (options.widths[:1], 5, 16) if options.quick else (options.widths, options.rounds, options.batch_size)
    )
    torch.set_num_threads(1)
    keep_freed_memory()
    default, plain = resolve("cpu", "auto", "auto", 1), resolve("cpu", "fp32", False, 1)
    found = {width: speeds(width, default, plain, rounds, batch_size) for width in widths}
    more: dict[str, Any] = {}
    holds = all(one["ratio"] >= RATIO for one in found.values())
    if options.path:
        base = replace(config_of("cifar10-jpeg"), epochs=options.epochs, device="cpu")
        sides = {
            side: replace(base, precision=hardware.precision, channels_last=hardware.channels_last)
            for side, hardware in (("auto", default), ("fp32", plain))
        }
        network = load(ZOO / "resnet-9.yaml", {"width": widths[0]})
        with tempfile.TemporaryDirectory() as name:
            shards = with_train_images(prepared(options.path, Path(name)), options.images)
            accuracies = {
                side: [
                    test_accuracy(fit(network, shards, replace(config, seed=seed)), shards) for seed in options.seeds
                ]
                for side, config in sides.items()
            }
        points = 100 * (statistics.mean(accuracies["auto"]) - statistics.mean(accuracies["fp32"]))
        holds = holds and points >= -POINTS
        more = {
            "points": round(points, 2),
            "accuracies": accuracies,
            "images": options.images,
            "epochs": options.epochs,
        }
    slowest = min(found.values(), key=lambda one: one["ratio"])
    emit(
        "precision", value=slowest["auto_images_s"], baseline=slowest["fp32_images_s"], n=rounds,
        target=f">= {RATIO} x on a CPU with AMX, accuracy within {POINTS} points", holds=holds, precision=default.precision,
        channels_last=default.channels_last, batch_size=batch_size,
        widths={width: {key: round(value, 3) for key, value in one.items()} for width, one in found.items()}, **more,
    )  # fmt: skip


if __name__ == "__main__":
    main()
