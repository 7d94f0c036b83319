"""Stage `evaluate`: the model on the test split, as metrics, tables and pictures."""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from deepcv import lineage
from deepcv.data.shards import Dataset, open_shards
from deepcv.evaluation import embedding, metrics, plots
from deepcv.evaluation.history import read_history
from deepcv.evaluation.inference import logits_of
from deepcv.files import atomic_folder
from deepcv.images import grid
from deepcv.nn import classifier
from deepcv.params.base import load_section
from deepcv.params.evaluate import EvaluateParams
from deepcv.stages import entry

SHARDS = Path("data/shards")
MODEL = Path("data/model")
EVALUATION = Path("data/evaluation")
_GRID_COLUMNS = 5
_EMBEDDED = 1000  # more would take longer than they tell


def main() -> None:
    """Read data/model and data/shards, write data/evaluation, log it to the model's run."""
    params = load_section(EvaluateParams)
    shards = open_shards(SHARDS)
    model, info = classifier.load(MODEL / "model.pt")
    torch.set_num_threads(params.threads)  # another number, other last bits
    # fp32 on the CPU, as the exported model runs: registered and evaluated accuracy are the same number.
    logits = logits_of(model, shards.test.images_nhwc, batch_size=params.batch_size, device=torch.device("cpu"))
    labels = np.array(shards.test.labels)
    matrix = metrics.confusion(logits.argmax(axis=1), labels, len(info.classes))
    classes = metrics.per_class(matrix, info.classes)
    scores = {
        "accuracy": metrics.accuracy(logits, labels),
        "cross_entropy": metrics.cross_entropy(logits, labels),
        "macro_f1": metrics.macro_f1(classes),
        "images": len(labels),
    }
    reliability = metrics.reliability(logits, labels)
    with atomic_folder(EVALUATION) as folder:
        (folder / "metrics.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
        write_table(folder / "per_class.csv", asdict(classes[0]), (asdict(c).values() for c in classes))
        predicted = logits.argmax(axis=1)
        pairs = ((info.classes[actual], info.classes[guess]) for actual, guess in zip(labels, predicted, strict=True))
        write_table(folder / "confusion.csv", ["actual", "predicted"], pairs)
        write_table(folder / "reliability.csv", ["confidence", "accuracy", "images"], reliability)
        plots.draw_confusion(matrix, info.classes, folder / "confusion.png")
        plots.draw_reliability(reliability, folder / "reliability.png")
        plots.draw_curves(read_history(MODEL / "history.csv"), folder / "curves.png")
        draw_embedding(folder / "embedding.png", model, shards, logits, params.batch_size)
        draw_mistakes(folder / "mistakes.png", shards, logits, params.worst)
        draw_confident_mistakes(folder / "confident_mistakes.png", shards, logits, params.worst)
    print(
        f"{info.dataset}: test accuracy {scores['accuracy']:.4f}, macro F1 {scores['macro_f1']:.4f}, {len(labels)} images"
    )
    lineage.log_evaluation(MODEL, EVALUATION)


def write_table(path: Path, header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a CSV file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def draw_embedding(
    path: Path, model: classifier.Classifier, shards: Dataset, logits: NDArray[np.float32], batch_size: int
) -> None:
    """Draw test images, evenly spread ones where there are many, by what the network sees in them."""
    labels = np.array(shards.test.labels)
    count = min(_EMBEDDED, len(labels))
    shown = np.arange(count) * len(labels) // count
    features = embedding.features_of(model, shards.test.images_nhwc[shown], batch_size=batch_size)
    wrong = logits[shown].argmax(axis=1) != labels[shown]
    plots.draw_embedding(embedding.project(features), labels[shown], wrong, shards.classes, path)


def draw_mistakes(path: Path, shards: Dataset, logits: NDArray[np.float32], count: int) -> None:
    """Draw the test images whose true class got the least probability, worst first."""
    labels = np.array(shards.test.labels)
    of_truth = metrics.log_softmax(logits)[np.arange(len(labels)), labels]
    worst = np.argsort(of_truth, kind="stable")[:count]
    draw_images(
        path, shards, worst, [caption(shards.classes, labels[i], logits[i].argmax(), of_truth[i]) for i in worst]
    )


def draw_confident_mistakes(path: Path, shards: Dataset, logits: NDArray[np.float32], count: int) -> None:
    """Draw the test images that were taken for another class, those first where that class got the most probability."""
    labels = np.array(shards.test.labels)
    surest = metrics.confident_mistakes(logits, labels)[:count]
    probabilities = np.exp(metrics.log_softmax(logits[surest]).max(axis=1))
    captions = [
        (f"as {shards.classes[logits[i].argmax()]}", f"p={p:.3f}", f"is {shards.classes[labels[i]]}")
        for i, p in zip(surest, probabilities, strict=True)
    ]
    draw_images(path, shards, surest, captions)


def draw_images(path: Path, shards: Dataset, numbers: NDArray[np.int64], captions: Sequence[tuple[str, ...]]) -> None:
    """Draw these images of the test split under their captions."""
    sheet = grid(np.array(shards.test.images_nhwc[numbers]), list(captions), columns=_GRID_COLUMNS)
    cv2.imwrite(str(path), sheet[:, :, ::-1])


def caption(classes: Sequence[str], actual: int, predicted: int, log_probability: float) -> tuple[str, ...]:
    """Say what an image is, what it was taken for, and how unlikely its class was held."""
    return (f"is {classes[actual]}", f"as {classes[predicted]}", f"p={np.exp(log_probability):.3f}")


if __name__ == "__main__":
    entry.run(main)
