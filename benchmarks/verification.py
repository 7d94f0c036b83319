"""Verification of classes that no training saw: are two images of Fashion-MNIST of one class, by the distance of their embeddings?

    python -m benchmarks.verification [--quick] [--path SHARDS] [--losses triplet] [--splits 0 1 2] [--seeds 0 1 2] [--jobs 9]

An encoder learns from seven classes, and pairs of test images of the three others are ranked. Which three: the first of a
permutation of the ten that is drawn with the split's number, before anything was measured. `value`: the mean area under the
ROC curve of `triplet` over splits and seeds; `baseline`: that of the distance of the pixels. Settings were chosen with classes
of splits 100 and 102, on their test images; those share classes with splits measured here, but no split is one of theirs.
"""

import argparse
import itertools
import statistics
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks.embeddings import answers, config, network, of_split
from benchmarks.result import ROOT, emit
from benchmarks.trainings import in_parallel, with_train_images
from deepcv.data.augmentation import Recipe
from deepcv.data.augmentation.policies import Operation
from deepcv.data.shards import Dataset, Split, open_shards
from deepcv.training.fit import fit
from deepcv.training.losses import Term

AUC = 0.90
PAIRS = 100_000
UNSEEN = 3
# The encoder of the zoo's siamese network; `again`, the same encoder for the other image of a pair, is not asked for and not run.
SIAMESE = """\
parameters: {width: 64, features: 64}
nodes:
  - {id: pair, spec: siamese, from: [input, input], parameters: {width: $width, features: $features}}
  - {id: head, op: linear, from: pair.encoder, features: $classes}
outputs: {logits: head, embedding: pair.encoder}
"""
AUGMENTED = Recipe(operations=(Operation("crop", 0.6, 1.0), Operation("brightness", 0.6, 1.4)))
LOSSES = {
    "supcon": Term("supcon", "embedding"),
    "triplet": Term("triplet", "embedding", options={"mining": "all", "margin": 1.0}),
    "all_classes": Term(
        "supcon", "embedding"
    ),  # which sees the others' train images too: no unseen classes, for comparison
}


@dataclass(frozen=True)
class Task:
    """One training."""

    loss: str
    split: int
    seed: int


@dataclass(frozen=True)
class Size:
    """How much is trained."""

    width: int = 64
    images: int = 40_000
    batch: int = 512
    epochs: int = 20


def unseen(split: int, classes: int) -> NDArray[np.int64]:
    """The classes that training does not see, drawn."""
    return np.sort(np.random.default_rng(split).permutation(classes)[:UNSEEN])


def only(split: Split, classes: NDArray[np.int64]) -> Split:
    """The images of these classes, numbered from 0."""
    found = of_split(split, np.flatnonzero(np.isin(split.labels, classes)))
    return replace(found, labels=np.searchsorted(classes, found.labels))


def seen(shards: Dataset, split: int) -> Dataset:
    """Without the images of the unseen classes; statistics of pixels stay those of all."""
    classes = np.setdiff1d(np.arange(len(shards.classes)), unseen(split, len(shards.classes)))
    assert isinstance(shards.train, Split)  # noqa: S101  # prepared images
    return replace(
        shards, classes=tuple(shards.classes[one] for one in classes), train=only(shards.train, classes),
        val=only(shards.val, classes),
    )  # fmt: skip


def area(embeddings: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Area under the ROC curve of random pairs, ranked by the distance of their embeddings."""
    one, other = np.random.default_rng(0).integers(len(labels), size=(2, PAIRS))
    one, other = one[one != other], other[one != other]
    distances = np.linalg.norm(embeddings[one] - embeddings[other], axis=1)
    return float(roc_auc_score(labels[one] == labels[other], -distances))


def measured(task: Task, folder: Path, size: Size) -> float:
    """Train an encoder and rank pairs of classes that it has not seen, in a process that may have nothing else."""
    started = time.monotonic()
    torch.set_num_threads(1)
    shards = open_shards(folder)
    settings = config(
        epochs=size.epochs, batch_size=size.batch, lr=0.003, seed=task.seed, augmentation=AUGMENTED,
        losses=(Term("none", "logits"), LOSSES[task.loss]),
    )  # fmt: skip
    trained = shards if task.loss == "all_classes" else seen(shards, task.split)
    fitted = fit(network(SIAMESE, width=size.width), with_train_images(trained, size.images), settings)
    test = only(shards.test, unseen(task.split, len(shards.classes)))
    found = area(answers(fitted, test.images_nhwc, "embedding"), test.labels)
    print(f"{task}: {found:.4f}, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, default=ROOT / "data/shards", help="prepared shards of Fashion-MNIST")
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES), help="triplet among them")
    parser.add_argument("--splits", type=int, nargs="+", default=[0, 1, 2], help="of the classes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="processes, which share a GPU")
    parser.add_argument("--epochs", type=int, default=Size.epochs)
    parser.add_argument("--width", type=int, default=Size.width)
    parser.add_argument("--quick", action="store_true", help="a narrow network, few images and epochs, one seed")
    options = parser.parse_args()
    if "triplet" not in options.losses:
        parser.error("--losses: expected triplet among them, whose area is the benchmark's value")
    size = Size(width=options.width, epochs=options.epochs)
    if options.quick:
        options.seeds, size = options.seeds[:1], Size(8, 2_048, 256, 2)
    tasks = [
        Task(loss, split, seed) for loss, split, seed in itertools.product(options.losses, options.splits, options.seeds)
    ]  # fmt: skip
    work = partial(measured, folder=options.path, size=size)
    found = dict(zip(tasks, in_parallel(work, tasks, options.jobs), strict=True))
    shards = open_shards(options.path)
    classes = {split: unseen(split, len(shards.classes)) for split in options.splits}
    pixels = {}
    for split in options.splits:
        test = only(shards.test, classes[split])
        pixels[split] = area(test.images_nhwc.reshape(len(test.labels), -1).astype(np.float32), test.labels)
    means = {loss: statistics.mean(found[task] for task in tasks if task.loss == loss) for loss in options.losses}
    table = [
        {
            "unseen": [shards.classes[one] for one in classes[split]], "pixels": pixels[split],
            **{loss: [found[Task(loss, split, seed)] for seed in options.seeds] for loss in options.losses},
        }
        for split in options.splits
    ]  # fmt: skip
    emit(
        "verification", value=means["triplet"], baseline=statistics.mean(pixels.values()), n=len(options.seeds),
        target=f"area under the ROC curve of pairs of unseen classes >= {AUC}", holds=means["triplet"] >= AUC,
        means=means, splits=table, images=size.images, epochs=size.epochs, width=size.width,
    )  # fmt: skip


if __name__ == "__main__":
    main()
