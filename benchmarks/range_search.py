"""Suggested learning rates against the best of a grid of 12 whole trainings, for five pairs of network and data.

    python -m benchmarks.range_search --path ../cifar10-jpeg.tar.gz [--quick]
    python -m benchmarks.range_search --development          # the ten pairs on which the default method was chosen

The grid is 0.001 times 1, 2, 4, … 2048; its best is the rate with the least val loss after the last epoch (cross entropy
without smoothing). All methods of `deepcv find-lr` are compared, and ignite's FastaiLRFinder on the same network and batches;
it holds where the default method is within a factor of 3 in four of five pairs, from 100 steps at most. One seed, one core.
`--quick` takes the first pair. Fashion-MNIST comes from Debian's package dataset-fashion-mnist.
"""

import argparse
import json
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from ignite.engine import Engine
from ignite.handlers import FastaiLRFinder
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch.nn import functional

from benchmarks import pictures
from benchmarks.result import ROOT, emit
from deepcv.data.loaders import Batch
from deepcv.data.shards import Dataset, open_shards, write_description, write_split
from deepcv.errors import DeepcvError
from deepcv.nn import spec
from deepcv.nn.spec import NetworkSpec
from deepcv.training import range_search
from deepcv.training.config import TrainConfig
from deepcv.training.fit import fit
from deepcv.training.setup import set_up

GRID = tuple(0.001 * 2**power for power in range(12))
NEAR = 3.0
FASHION = Path("/usr/share/datasets/fashion-mnist")
LINEAR = """\
nodes:
  - {id: pixels, op: flatten}
  - {id: head, op: linear, features: $classes}
outputs: {logits: head}
"""
MLP = """\
nodes:
  - {id: pixels, op: flatten}
  - {id: hidden, op: linear, features: 64}
  - {id: act, op: activation, kind: relu}
  - {id: head, op: linear, features: $classes}
outputs: {logits: head}
"""
CONFIG = TrainConfig(
    epochs=5, batch_size=64, optimizer="adamw", lr=0.01, momentum=0.9, weight_decay=0.01, label_smoothing=0.1,
    warmup=0.25, flip=False, shift=0, cutout=0, seed=0, threads=1, device="cpu", precision="fp32", channels_last=True,
)  # fmt: skip
Pixels = tuple[NDArray[np.uint8], NDArray[np.int64]]  # images (n, h, w, c), labels (n,)


@dataclass(frozen=True)
class Pair:
    """A network file, or the text of one, with its parameters; data; what differs from CONFIG."""

    network: str
    parameters: dict[str, Any]
    data: str
    changes: dict[str, Any]


SGD = {"optimizer": "sgd", "weight_decay": 5e-4}
MUON = {"optimizer": "muon", "weight_decay": 0.1}
DIGITS, SMALL, RESNET = "networks/digits.yaml", "networks/small.yaml", "deepcv/nn/zoo/resnet-9.yaml"
PAIRS = {
    "mlp-digits-sgd": Pair(MLP, {}, "digits", SGD),
    "linear-digits-adamw": Pair(LINEAR, {}, "digits", {}),
    "digits-network-fashion-adamw": Pair(DIGITS, {"width": 8}, "fashion", {}),
    "resnet-9-fashion-sgd": Pair(RESNET, {"width": 8}, "fashion", SGD),
    "small-cifar-muon": Pair(SMALL, {"width": 8}, "cifar", {**MUON, "flip": True, "shift": 2}),
}
# Seen while the method was chosen: `minimum/3` on the first five; it held in three of the next five, and `between` was chosen
# on all ten.
DEVELOPMENT = {
    "digits-nadam": Pair(DIGITS, {"width": 8}, "digits", {"optimizer": "torch/NAdam", "batch_size": 32}),
    "digits-muon": Pair(DIGITS, {"width": 8}, "digits", {"optimizer": "muon"}),
    "digits-network-fashion-sgd": Pair(DIGITS, {"width": 4}, "other-fashion", {**SGD, "epochs": 4}),
    "mlp-fashion-adamw": Pair(MLP, {}, "other-fashion", {}),
    "mlp-fashion-sgd": Pair(MLP, {}, "other-fashion", SGD),
    "digits-adamw": Pair(DIGITS, {"width": 16}, "digits", {}),
    "digits-sgd": Pair(DIGITS, {"width": 16}, "digits", SGD),
    "small-fashion-muon": Pair(SMALL, {"width": 8}, "fashion", MUON),
    "resnet-9-cifar-sgd": Pair(RESNET, {"width": 8}, "cifar", {**SGD, "flip": True, "shift": 2}),
    "linear-fashion-adamw": Pair(LINEAR, {}, "fashion", {}),
}


def digits() -> tuple[Pixels, Pixels]:
    """The embedded digits, 300 of them to judge by."""
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    images, labels = (found.images[order] * 15.9).astype(np.uint8)[..., None], found.target[order]
    return (images[300:], labels[300:]), (images[:300], labels[:300])


def fashion(first: int) -> tuple[Pixels, Pixels]:
    """2,000 garments to train on, and 1,000 before them to judge by."""
    images = pictures.idx(FASHION / "train-images-idx3-ubyte.gz")[first : first + 3000, ..., None]
    labels = pictures.idx(FASHION / "train-labels-idx1-ubyte.gz")[first : first + 3000].astype(np.int64)
    return (images[1000:], labels[1000:]), (images[:1000], labels[:1000])


def cifar(path: Path) -> tuple[Pixels, Pixels]:
    """2,000 photographs to train on, and 1,000 of the test split to judge by."""

    def read(split: str, count: int) -> Pixels:
        images, labels = pictures.cifar(path, split, count)
        return ((images * 0.25 + 0.47) * 255).round().byte().permute(0, 2, 3, 1).numpy(), labels.numpy()

    return read("train", 2000), read("test", 1000)


def shards(folder: Path, name: str, splits: tuple[Pixels, Pixels]) -> Dataset:
    """Write and open the shards of a train and a val split."""
    folder.mkdir()
    train, val = splits
    for split, (images, labels) in {"train": train, "val": val, "test": val}.items():
        write_split(folder, split, images, labels, images.shape)
    _, height, width, channels = train[0].shape
    recipe = {"height": height, "width": width, "channels": channels, "resize": "stretch"}
    classes = tuple(str(number) for number in range(10))
    write_description(folder, name=name, classes=classes, test_digest="t" * 64, recipe=recipe)
    return open_shards(folder)


def network(pair: Pair, folder: Path) -> NetworkSpec:
    """The pair's network."""
    if pair.network.endswith(".yaml"):
        return spec.load(ROOT / pair.network, pair.parameters)
    path = folder / "network.yaml"
    path.write_text(pair.network)
    return spec.load(path, pair.parameters)


def peer(built: NetworkSpec, data: Dataset, config: TrainConfig) -> float:
    """What ignite's FastaiLRFinder suggests from as many steps over the same range; nan where it gives up."""
    setup = set_up(built, data, config)
    setup.classifier.train()

    def step(_engine: Engine, batch: Batch) -> float:
        setup.optimizer.zero_grad()
        logits = setup.classifier(batch.images_nchw)["logits"]
        loss = functional.cross_entropy(logits, batch.targets, label_smoothing=config.label_smoothing)
        loss.backward()
        setup.optimizer.step()
        return loss.item()

    finder = FastaiLRFinder()
    saved = {"model": setup.classifier, "optimizer": setup.optimizer}
    lowest, highest = range_search.LOWEST, range_search.HIGHEST
    with (
        warnings.catch_warnings(action="ignore"),
        finder.attach(Engine(step), saved, num_iter=range_search.STEPS, start_lr=lowest, end_lr=highest) as trainer,
    ):
        trainer.run(setup.loader)
    try:
        return float(finder.lr_suggestion()[0])  # all groups have the same
    except RuntimeError:
        return math.nan


def excess(rate: float, losses: Sequence[float]) -> float:
    """How much larger than the least val loss that at `rate` is, as a share; between rates of the grid along a line."""
    return float(np.interp(math.log(rate), np.log(GRID), losses)) / min(losses) - 1


def measure(pair: Pair, data: Dataset, folder: Path) -> dict[str, Any]:
    """Train the grid, sweep, and tell how far each suggestion is from the best rate, as a ratio."""
    built, config = network(pair, folder), replace(CONFIG, **pair.changes)
    begun, curve = time.process_time(), []
    for rate in GRID:
        try:
            last = fit(built, data, replace(config, lr=rate)).history[-1]
            curve.append((last.val_loss, last.val_accuracy))
        except DeepcvError:  # it diverged
            curve.append((math.inf, 0.0))
    training_s = (time.process_time() - begun) / len(GRID)
    begun = time.process_time()
    trace = range_search.sweep(set_up(built, data, config), config)
    sweep_s = time.process_time() - begun
    read = {**range_search.suggestions(trace), "ignite": peer(built, data, config)}
    losses, accuracies = zip(*curve, strict=True)
    best = GRID[int(np.argmin(losses))]
    return {
        "best": best,
        "best_by_accuracy": GRID[int(np.argmax(accuracies))],
        "within_5_percent": [rate for rate, loss in zip(GRID, losses, strict=True) if loss <= 1.05 * min(losses)],
        "ratio": {name: round(rate / best, 2) for name, rate in read.items()},
        "excess": {name: round(excess(rate, losses), 3) for name, rate in read.items()},
        "val_losses": [round(loss, 4) for loss in losses],
        "steps": len(trace.rates) + trace.diverged,
        "sweep_cpu_s": round(sweep_s, 2),
        "training_cpu_s": round(training_s, 2),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, help="tar of CIFAR-10-JPEG; without it, its pair is left out")
    parser.add_argument("--development", action="store_true", help="the pairs on which the default method was chosen")
    parser.add_argument("--quick", action="store_true", help="the first pair alone, within 60 s")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pairs = DEVELOPMENT if options.development else PAIRS
    sources: dict[str, Callable[[], tuple[Pixels, Pixels]]] = {
        "digits": digits,
        "fashion": lambda: fashion(0),
        "other-fashion": lambda: fashion(30_000),
        **({"cifar": lambda: cifar(options.path)} if options.path else {}),
    }
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for title, pair in pairs.items():
            if pair.data not in sources or (options.quick and found):
                continue
            data = shards(folder / title, pair.data, sources[pair.data]())
            found[title] = measure(pair, data, folder)
            print(title, json.dumps(found[title]), file=sys.stderr, flush=True)
    methods = (*get_args(range_search.Method), "ignite")
    near = {
        method: sum(1 / NEAR <= one["ratio"][method] <= NEAR for one in found.values()) for method in methods
    }  # fmt: skip
    share = near[methods[0]] / len(found)
    emit(
        "range-search", value=share, baseline=near["ignite"] / len(found),
        target=f"share of pairs within a factor of {NEAR:g} of the best of {len(GRID)} rates >= 0.8, from <= 100 steps",
        holds=share >= 0.8 and all(one["steps"] <= range_search.STEPS for one in found.values()), n=len(found),
        near=near, pairs=found,
    )  # fmt: skip


if __name__ == "__main__":
    main()
