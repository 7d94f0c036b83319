"""Multi-label classification, regression, and a class with a number through the pipeline itself, on pictures of scikit-learn's digits.

    python -m benchmarks.tasks            [--quick]

Multi-label: four cells, each with a digit or empty; which digits are there? Regression: a digit turned by up to 60 degrees; by how
many? Several targets: which digit, and turned by how many? Each side is `dvc repro` with the recipe of `examples/` in a copy of the
checkout, judged on images of other digits than it was trained on. The baselines are a ridge and a logistic regression of
scikit-learn on the pixels, in the same run.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score, r2_score

from benchmarks.checkouts import checkout, environment
from benchmarks.result import cpu_s, emit
from deepcv.params.edit import set_values

_SIDE, _IMAGES, _MOST_DEGREES = 16, {"train": 2400, "val": 300, "test": 600}, 60
_SHARES = {
    "train": (0.0, 0.6),
    "val": (0.6, 0.7),
    "test": (0.7, 1.0),
}  # of the digits, so that no split has seen another's
_EMPTY = 0.5


def collage(
    digits: NDArray[np.uint8], labels: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """A picture (32, 32) of up to four digits, and which, `;` between them."""
    cells, there = [], set()
    for _ in range(4):
        number = rng.integers(len(digits))
        empty = rng.random() < _EMPTY
        cells.append(np.zeros((_SIDE, _SIDE), np.uint8) if empty else digits[number])
        there |= set() if empty else {str(labels[number])}
    noise = rng.integers(0, 40, (2 * _SIDE, 2 * _SIDE), np.uint8)  # an empty picture would be a duplicate of the others
    return np.maximum(np.block([cells[:2], cells[2:]]), noise), (";".join(sorted(there)),)


def digit_turned(
    digits: NDArray[np.uint8], labels: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """A picture (32, 32) of a digit, which it is, and the degrees by which it is turned against the clock."""
    degrees = rng.uniform(-_MOST_DEGREES, _MOST_DEGREES)
    number = rng.integers(len(digits))
    padded = cv2.copyMakeBorder(digits[number], 8, 8, 8, 8, cv2.BORDER_CONSTANT)
    turn = cv2.getRotationMatrix2D((15.5, 15.5), degrees, 1.0)
    picture = np.asarray(cv2.warpAffine(padded, turn, (2 * _SIDE, 2 * _SIDE)), np.uint8)
    return picture, (str(labels[number]), f"{degrees:.2f}")


def turned(
    digits: NDArray[np.uint8], labels: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """A picture of a digit, and the degrees alone."""
    picture, (_, degrees) = digit_turned(digits, labels, rng)
    return picture, (degrees,)


KINDS = {
    "multi-label": (collage, ["things"], "tags: [things]", ["mean_average_precision"]),
    "regression": (turned, ["degrees"], "numbers: [degrees]", ["r2"]),
    "several-targets": (digit_turned, ["label", "degrees"], "numbers: [degrees]", ["accuracy", "numbers.degrees.r2"]),
}


def write(folder: Path, kind: str, share: float) -> None:
    """Write the images, labels.csv and dataset.yaml."""
    make, header, columns, _ = KINDS[kind]
    found = load_digits()
    images = [
        cv2.resize((image * 15.9).astype(np.uint8), (_SIDE, _SIDE), interpolation=cv2.INTER_CUBIC)
        for image in found.images
    ]
    order = np.random.default_rng(0).permutation(len(images))
    rows = []
    (folder / "images").mkdir(parents=True)
    for seed, (split, count) in enumerate(_IMAGES.items()):
        first, last = (round(end * len(order)) for end in _SHARES[split])
        chosen, rng = order[first:last], np.random.default_rng(seed)
        for number in range(round(count * share)):
            picture, truth = make(np.stack(images)[chosen], found.target[chosen], rng)
            name = f"images/{split}-{number:04d}.png"
            cv2.imwrite(str(folder / name), picture)
            rows.append((name, split, *truth))
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "split", *header), *rows])
    (folder / "dataset.yaml").write_text(f"source: table\nsplit: split\n{columns}\n", encoding="utf-8")


def baseline(shards: Path, metric: str) -> float:
    """A metric of a linear model on the pixels."""
    labels = "labels_1" if metric.startswith("numbers.") else "labels"  # of the further target, of the main one
    train, test = (
        (np.load(shards / f"{s}_images.npy").reshape(-1, 4 * _SIDE**2) / 255.0, np.load(shards / f"{s}_{labels}.npy"))
        for s in ("train", "test")
    )
    if metric == "accuracy":
        return float(LogisticRegression(C=0.1, max_iter=300).fit(*train).score(*test))
    if metric.endswith("r2"):
        return float(r2_score(test[1], Ridge(10.0).fit(*train).predict(test[0])))
    scores = [
        average_precision_score(
            test[1][:, label],
            LogisticRegression(C=0.1, max_iter=300).fit(train[0], train[1][:, label]).decision_function(test[0]),
        )
        for label in range(train[1].shape[1])
    ]
    return float(np.mean(scores))


def measure(kind: str, quick: bool) -> dict[str, Any]:
    """Run the recipe; return its metrics, those of linear models and the CPU seconds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkout(folder)
        write(folder / "pictures", kind, 0.2 if quick else 1.0)
        (folder / "params.yaml").write_text((folder / f"examples/{kind}.yaml").read_text())
        set_values(folder / "params.yaml", {"ingest.path": "pictures"} | ({"train.epochs": 1} if quick else {}))
        before = cpu_s()
        subprocess.run(
            [sys.executable, "-m", "dvc", "repro"], cwd=folder, env=environment(folder), check=True, stdout=sys.stderr
        )
        spent_s = cpu_s() - before
        metrics = json.loads((folder / "data/evaluation/metrics.json").read_text())
        baselines = {metric: baseline(folder / "data/shards", metric) for metric in KINDS[kind][3]}
        return {**metrics, "baselines": baselines, "cpu_s": round(spent_s, 1)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--quick", action="store_true", help="a fifth of the images, one epoch")
    options = parser.parse_args()
    found = {kind: measure(kind, options.quick) for kind in options.kinds}
    scores = [(one[metric], other) for one in found.values() for metric, other in one["baselines"].items()]
    emit(
        "tasks", value=min(score for score, _ in scores), baseline=max(other for _, other in scores),
        target="better than a linear model on the pixels", holds=all(score > other for score, other in scores),
        n=1, kinds=found,
    )  # fmt: skip


if __name__ == "__main__":
    main()
