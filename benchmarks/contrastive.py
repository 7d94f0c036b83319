"""What contrastive losses are worth on Fashion-MNIST: before training with few labels, and beside cross entropy.

    python -m benchmarks.contrastive [--quick] [--path SHARDS] [--part pretraining | terms] [--seeds 0 1 2] [--jobs 12]

`pretraining`: ResNet-9 learns from train images without labels (SimCLR: `nt_xent` of two views; its labels are set to 0 before), then a
logistic regression learns from its features, or its embedding, and 1 % of the labels. Against it, the same network trained on that
1 % alone. Its rate, epochs and augmentation (SimCLR's or flip and shift) are chosen on the val images, as are SimCLR's temperature,
what the regression sees and its strength. Beside it `supcon` with the 1 % of the labels, and with all of them. `value`: points of
SimCLR over the supervised network on the test images.

`terms`: cross entropy alone, on images with flip and shift or AugMix, against cross entropy with `jensen_shannon` of AugMix's views or
`triplet` beside it; weights chosen on val.
"""

import argparse
import itertools
import statistics
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from benchmarks.embeddings import RESNET, answers, config, little_val, network, of_split
from benchmarks.result import ROOT, emit
from benchmarks.trainings import accuracy, in_parallel, with_train_images
from deepcv.data.augmentation import Recipe
from deepcv.data.augmentation.policies import Operation
from deepcv.data.loaders import Views
from deepcv.data.shards import Dataset, Split, open_shards
from deepcv.training.fit import Fitted, fit
from deepcv.training.losses import Term

POINTS = 3.0
LABELS = 0.01
REPEATS = (
    8  # of the few images with labels in an epoch, each time with other draws: epochs of few steps cost more than these
)
STRONG = Recipe(operations=(Operation("crop", 0.7, 1.0), Operation("gamma", 0.4, 2.5), Operation("contrast", 0.4, 1.6)))
AUGMIX = Recipe(policy="augmix")
PROBES = (0.001, 0.01, 0.1, 1.0, 10.0)
UNUSED = {name: Term("none", name) for name in ("logits", "features", "embedding")}
# Rate and augmentation and passes over the images of the supervised network.
SUPERVISED = tuple(itertools.product((0.001, 0.004), ("strong", "weak"), (40, 120)))
PRETRAINED = {"simclr": (0.2, 0.5), "supcon": (0.1,), "supcon_few": (0.1,)}
TERMS = {"cross_entropy": (0.0,), "augmix": (0.0,), "jensen_shannon": (1.0, 12.0), "triplet": (0.1, 1.0)}


@dataclass(frozen=True)
class Task:
    """One training, or one grid of the supervised network; `setting` is a temperature or a weight."""

    side: str
    setting: float
    seed: int


@dataclass(frozen=True)
class Size:
    """How much is trained; `epochs` of the pre-training, `passes` a factor of those over few images."""

    width: int = 32
    images: int = 0  # 0: all
    batch: int = 256
    epochs: int = 50
    passes: float = 1.0
    grid: tuple[tuple[float, str, int], ...] = SUPERVISED
    term_images: int = 10_000
    term_epochs: int = 16


@dataclass(frozen=True)
class Found:
    """Accuracies of one task; `chosen` says with what."""

    val: float
    test: float
    chosen: str


def few(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Places of 1 % of the images of each class."""
    order = np.random.default_rng(seed).permutation(len(labels))
    of_classes = (order[labels[order] == one] for one in np.unique(labels))
    return np.sort(np.concatenate([places[: max(1, round(LABELS * len(places)))] for places in of_classes]))


def repeated(split: Split) -> Split:
    """A split of few images several times."""
    return Split(np.tile(split.images_nhwc, (REPEATS, 1, 1, 1)), np.tile(split.labels, REPEATS))


def probe(fitted: Fitted, shards: Dataset, labelled: Split) -> Found:
    """Logistic regressions on features and embedding, each scaled as over the labelled images; the best on val is tested."""
    best = Found(0.0, 0.0, "")
    for output in ("features", "embedding"):
        seen = [answers(fitted, split.images_nhwc, output) for split in (labelled, shards.val, shards.test)]
        mean, std = seen[0].mean(0), seen[0].std(0) + 1e-3
        few_images, val, test = ((one - mean) / std for one in seen)
        for strength in PROBES:
            model = LogisticRegression(C=strength, max_iter=1000).fit(few_images, labelled.labels)
            if (on_val := model.score(val, shards.val.labels)) > best.val:
                best = Found(on_val, model.score(test, shards.test.labels), f"{output} C={strength}")
    return best


def pretrained(task: Task, shards: Dataset, labelled: Split, size: Size) -> Found:
    """Pre-train without labels, with all or with few, and probe."""
    assert isinstance(shards.train, Split)  # noqa: S101  # prepared images
    loss = "nt_xent" if task.side == "simclr" else "supcon"
    term = Term(loss, "embedding", options={"temperature": task.setting})
    settings = config(
        epochs=size.epochs, batch_size=size.batch, optimizer="muon", lr=0.01, weight_decay=0.1, seed=task.seed,
        augmentation=STRONG, views=Views(2), losses=(UNUSED["logits"], UNUSED["features"], term),
    )  # fmt: skip
    train = shards.train
    if task.side == "simclr":
        train = replace(train, labels=np.zeros_like(train.labels))  # so that none can leak
    if task.side == "supcon_few":
        train = repeated(labelled)
        settings = replace(settings, epochs=max(1, round(320 * size.passes / REPEATS)), batch_size=size.batch)
    return probe(
        fit(network(RESNET, width=size.width), replace(little_val(shards), train=train), settings), shards, labelled
    )


def supervised(task: Task, shards: Dataset, labelled: Split, size: Size) -> Found:
    """The network on few labelled images alone: the best setting on val."""
    best = Found(0.0, 0.0, "")
    for lr, images, passes in size.grid:
        settings = config(
            epochs=max(1, round(passes * size.passes / REPEATS)), batch_size=64, lr=lr, seed=task.seed,
            augmentation=STRONG if images == "strong" else Recipe(), weight_decay=0.05,
            losses=(Term("cross_entropy", options={"label_smoothing": 0.1}), UNUSED["features"], UNUSED["embedding"]),
        )  # fmt: skip
        fitted = fit(network(RESNET, width=size.width), replace(little_val(shards), train=repeated(labelled)), settings)
        if (on_val := accuracy(fitted, shards.val)) > best.val:
            best = Found(on_val, accuracy(fitted, shards.test), f"lr={lr} {images} passes={passes}")
    return best


def with_term(task: Task, shards: Dataset, size: Size) -> Found:
    """Train with cross entropy and perhaps another term."""
    assert isinstance(shards.train, Split)  # noqa: S101  # prepared images
    losses = [Term("cross_entropy"), UNUSED["features"], UNUSED["embedding"]]
    if task.side == "jensen_shannon":
        losses.append(Term("jensen_shannon", weight=task.setting))
    if task.side == "triplet":
        losses[2] = Term(
            "triplet", "embedding", weight=task.setting, options={"distance": "cosine", "mining": "semi_hard"}
        )
    settings = config(
        epochs=size.term_epochs, batch_size=128, lr=0.004, seed=task.seed, losses=tuple(losses),
        augmentation=AUGMIX if task.side in ("augmix", "jensen_shannon") else Recipe(),
        views=Views(3, "clean") if task.side == "jensen_shannon" else Views(),
    )  # fmt: skip
    fitted = fit(network(RESNET, width=size.width), with_train_images(little_val(shards), size.term_images), settings)
    return Found(accuracy(fitted, shards.val), accuracy(fitted, shards.test), f"weight={task.setting}")


def measured(task: Task, folder: Path, size: Size) -> Found:
    """Do one task, in a process that may have nothing else."""
    started = time.monotonic()
    torch.set_num_threads(1)
    shards = open_shards(folder)
    assert isinstance(shards.train, Split)  # noqa: S101  # prepared images
    labelled = of_split(shards.train, few(shards.train.labels, task.seed))
    if size.images:
        shards = with_train_images(shards, size.images)
    if task.side in TERMS:
        found = with_term(task, shards, size)
    else:
        found = (supervised if task.side == "supervised" else pretrained)(task, shards, labelled, size)
    print(f"{task} {found} {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return found


def summary(found: dict[Task, Found], side: str) -> dict[str, Any]:
    """Test accuracies of a side's setting that was best on val, over seeds."""
    settings: dict[float, list[Found]] = {}
    for task in sorted(found, key=lambda one: one.seed):
        if task.side == side:
            settings.setdefault(task.setting, []).append(found[task])
    val = {setting: statistics.mean(one.val for one in results) for setting, results in settings.items()}
    best = max(val, key=lambda setting: val[setting])
    tests = [one.test for one in settings[best]]
    return {
        "mean": statistics.mean(tests), "seeds": tests, "setting": best, "val_of_settings": val,
        "chosen": [one.chosen for one in settings[best]],
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, default=ROOT / "data/shards", help="prepared shards of Fashion-MNIST")
    parser.add_argument("--part", choices=("pretraining", "terms"), default="pretraining")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="processes, which share a GPU")
    parser.add_argument("--epochs", type=int, default=Size.epochs, help="of the pre-training")
    parser.add_argument("--width", type=int, default=Size.width)
    parser.add_argument("--quick", action="store_true", help="a narrow network, few images, one seed")
    options = parser.parse_args()
    size = Size(options.width, epochs=options.epochs)
    if options.quick:
        options.seeds, size = options.seeds[:1], Size(4, 2_048, 256, 2, 0.05, SUPERVISED[::5], 1_024, 1)
    pretraining = options.part == "pretraining"
    sides = {**PRETRAINED, "supervised": (0.0,)} if pretraining else TERMS
    tasks = [Task(side, one, seed) for side, settings in sides.items() for one in settings for seed in options.seeds]
    work = partial(measured, folder=options.path, size=size)
    found = dict(zip(tasks, in_parallel(work, tasks, options.jobs), strict=True))
    results = {side: summary(found, side) for side in sides}
    points = {
        side: round((results[side]["mean"] - results["supervised" if pretraining else "cross_entropy"]["mean"]) * 100, 2)
        for side in sides
    }  # fmt: skip
    if pretraining:
        emit(
            "contrastive", value=results["simclr"]["mean"], baseline=results["supervised"]["mean"], n=len(options.seeds),
            target=f">= +{POINTS} points for a probe of SimCLR's features over supervised training, 1 % of the labels",
            holds=points["simclr"] >= POINTS, points=points, epochs=size.epochs, width=size.width, sides=results,
        )  # fmt: skip
        return
    emit(
        "contrastive-terms", value=results["jensen_shannon"]["mean"], baseline=results["cross_entropy"]["mean"],
        n=len(options.seeds), target="recorded: accuracy with another term beside cross entropy, and without", holds=True,
        points=points, images=size.term_images, epochs=size.term_epochs, width=size.width, sides=results,
    )  # fmt: skip


if __name__ == "__main__":
    main()
