"""Stage `evaluate`: the model on the test split, as metrics, tables and pictures."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from deepcv import lineage
from deepcv.data.shards import Dataset, open_shards
from deepcv.evaluation import embedding, label_metrics, metrics, plots
from deepcv.evaluation.history import read_history
from deepcv.evaluation.inference import outputs_of
from deepcv.evaluation.label_metrics import LabelScores
from deepcv.evaluation.metrics import NumberScores
from deepcv.files import atomic_folder
from deepcv.images import grid
from deepcv.nn import classifier
from deepcv.nn.classifier import answering
from deepcv.params.base import load_section
from deepcv.params.evaluate import EvaluateParams
from deepcv.stages import entry
from deepcv.task import LIKELY, FurtherTarget, Task

SHARDS = Path("data/shards")
MODEL = Path("data/model")
EVALUATION = Path("data/evaluation")
_GRID_COLUMNS = 5
_EMBEDDED = 1000  # more would take longer than they tell
_FURTHER_COLUMNS = ("r2", "mae", "rmse", "precision", "recall", "f1", "average_precision", "support")


def main() -> None:
    """Read data/model and data/shards, write data/evaluation, log it to the model's run."""
    params = load_section(EvaluateParams)
    shards = open_shards(SHARDS)
    model, info = classifier.load(MODEL / "model.pt")
    torch.set_num_threads(params.threads)  # another number, other last bits
    # fp32 on the CPU, as the exported model runs: registered and evaluated accuracy are the same number.
    logits, *others = outputs_of(
        model, shards.test.images_nhwc, ["logits", *info.further],
        batch_size=params.batch_size, device=torch.device("cpu"),
    )  # fmt: skip
    report = {"classification": report_classes, "multi_label": report_labels, "regression": report_numbers}
    with atomic_folder(EVALUATION) as folder:
        scores = report[info.task.kind](folder, shards, logits, params.worst)
        further = report_further(folder, shards, info.further, dict(zip(info.further, others, strict=True)))
        scores["images"] = len(logits)
        written = scores | {f"{of}.{name}": value for of, found in further.items() for name, value in found.items()}
        (folder / "metrics.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
        plots.draw_curves(read_history(MODEL / "history.csv"), folder / "curves.png", read_history(MODEL / "steps.csv"))
        if info.task.kind == "classification":
            draw_embedding(folder / "embedding.png", model, shards, logits, params.batch_size)
            training = json.loads((MODEL / "training.json").read_text(encoding="utf-8"))
            for output, directions in embedding.compared_outputs(training).items():
                path = folder / f"embedding_of_{output}.png"
                draw_embedding(path, model, shards, logits, params.batch_size, output=output, directions=directions)
    print(f"{info.dataset}: {len(logits)} test images, {told(scores)}")
    for of, found in further.items():
        print(f"  {of}: {told(found)}")
    lineage.log_evaluation(MODEL, EVALUATION)


def told(scores: Mapping[str, float]) -> str:
    """Metrics in words."""
    return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in scores.items() if name != "images")


def report_classes(folder: Path, shards: Dataset, logits: NDArray[np.float32], worst: int) -> dict[str, float]:
    """Write tables and pictures of a classification, return its metrics."""
    labels, predicted = np.array(shards.test.labels), logits.argmax(axis=1)
    matrix = metrics.confusion(predicted, labels, len(shards.classes))
    classes = metrics.per_class(matrix, shards.classes)
    reliability = metrics.reliability(logits, labels)
    write_table(folder / "per_class.csv", asdict(classes[0]), (asdict(c).values() for c in classes))
    pairs = ((shards.classes[actual], shards.classes[guess]) for actual, guess in zip(labels, predicted, strict=True))
    write_table(folder / "confusion.csv", ["actual", "predicted"], pairs)
    write_table(folder / "reliability.csv", ["confidence", "accuracy", "images"], reliability)
    plots.draw_confusion(matrix, shards.classes, folder / "confusion.png")
    plots.draw_reliability(reliability, folder / "reliability.png")
    draw_mistakes(folder / "mistakes.png", shards, logits, worst)
    draw_confident_mistakes(folder / "confident_mistakes.png", shards, logits, worst)
    return {
        "accuracy": metrics.accuracy(logits, labels),
        "cross_entropy": metrics.cross_entropy(logits, labels),
        "macro_f1": metrics.macro_f1(classes),
    }


def report_labels(folder: Path, shards: Dataset, logits: NDArray[np.float32], worst: int) -> dict[str, float]:
    """Write tables and pictures of a multi-label test, return its metrics; `accuracy` is that of single decisions."""
    labels, probabilities = np.array(shards.test.labels), metrics.sigmoid(logits)
    scores = label_metrics.per_label(probabilities, labels, shards.classes)
    losses = metrics.losses(shards.task, logits, shards.test.labels)
    write_table(folder / "per_label.csv", asdict(scores[0]), (asdict(one).values() for one in scores))
    write_table(folder / "predictions.csv", ["actual", "predicted"], told_pairs(shards, probabilities))
    plots.draw_precision_recall(
        label_metrics.curves(probabilities, labels, shards.classes), folder / "precision_recall.png"
    )
    draw_worst(folder / "mistakes.png", shards, probabilities, losses, worst)
    return {
        **scores_of_labels(shards.task, logits, labels, scores),
        "exact_match": float(((logits >= 0) == (labels >= LIKELY)).all(axis=1).mean()),
        "cross_entropy": float(losses.mean()),
    }


def report_numbers(folder: Path, shards: Dataset, logits: NDArray[np.float32], worst: int) -> dict[str, float]:
    """Write tables and pictures of a regression, return its metrics; errors of several numbers, of several units, are in the table."""
    labels = np.array(shards.test.labels)
    scores = metrics.per_number(logits, labels, shards.classes)
    write_table(folder / "per_number.csv", asdict(scores[0]), (asdict(one).values() for one in scores))
    header = [f"{side} {name}" for side in ("actual", "predicted") for name in shards.classes]
    rows = ((f"{number:.9g}" for number in row) for row in np.concatenate([labels, logits], axis=1))
    write_table(folder / "predictions.csv", header, rows)
    plots.draw_scatter(logits, labels, shards.classes, folder / "predictions.png")
    draw_worst(folder / "mistakes.png", shards, logits, metrics.losses(shards.task, logits, labels), worst)
    return scores_of_numbers(shards.task, logits, labels, scores)


def scores_of_labels(
    task: Task, logits: NDArray[np.float32], labels: NDArray[Any], scores: Sequence[LabelScores]
) -> dict[str, float]:
    """Metrics of labels (n, k), of which `scores` has each."""
    return {
        "mean_average_precision": label_metrics.mean_average_precision(scores),
        "macro_f1": metrics.macro_f1(scores),
        "accuracy": metrics.score(task, logits, labels),
    }


def scores_of_numbers(
    task: Task, answers: NDArray[np.float32], labels: NDArray[Any], scores: Sequence[NumberScores]
) -> dict[str, float]:
    """Metrics of numbers (n, k), of which `scores` has each; errors of several, of several units, have no mean."""
    errors = {"mae": scores[0].mae, "rmse": scores[0].rmse} if len(scores) == 1 else {}
    return {"r2": metrics.score(task, answers, labels), **errors}


def report_further(
    folder: Path, shards: Dataset, further: Mapping[str, FurtherTarget], outputs: Mapping[str, NDArray[np.float32]]
) -> dict[str, dict[str, float]]:
    """Write `further_targets.csv`, a row per label or number of each output, and a picture of each target that is numbers.

    Returns the metrics of each further target. Where several outputs learn one target they, and the picture, are those of the first
    in `train.losses`. Pictures are numbered as the targets are in `preprocess.further_targets`. Nothing is written where none does.
    """
    found: dict[str, dict[str, float]] = {}
    answers, place = answering(further), {target.of: number for number, target in enumerate(shards.further, start=1)}
    rows: list[tuple[object, ...]] = []
    for output, target in further.items():
        made, truth = outputs[output], np.array(shards.test.further[target.of])
        if target.task.kind == "regression":
            numbers = metrics.per_number(made, truth, target.names)
            scores, cells = scores_of_numbers(target.task, made, truth, numbers), [asdict(one) for one in numbers]
        else:
            labels = label_metrics.per_label(metrics.sigmoid(made), truth, target.names)
            scores, cells = scores_of_labels(target.task, made, truth, labels), [asdict(one) for one in labels]
        for name, one in zip(target.names, cells, strict=True):
            rows.append((target.of, output, name, *(one.get(column, "") for column in _FURTHER_COLUMNS)))
        if output in answers:
            found[target.of] = scores
            if target.task.kind == "regression":
                plots.draw_scatter(made, truth, target.columns, folder / f"further_{place[target.of]}.png")
    if further:
        write_table(folder / "further_targets.csv", ["target", "output", "name", *_FURTHER_COLUMNS], rows)
    return found


def told_pairs(shards: Dataset, answers: NDArray[Any]) -> list[tuple[str, str]]:
    """What each test image has and what it was taken for, in words."""
    said = shards.task.in_words
    return [
        (said(shards.classes, a), said(shards.classes, b)) for a, b in zip(shards.test.labels, answers, strict=True)
    ]


def draw_worst(path: Path, shards: Dataset, answers: NDArray[Any], losses: NDArray[np.float64], count: int) -> None:
    """Draw the test images of the largest losses, worst first."""
    worst, pairs = np.argsort(-losses, kind="stable")[:count], told_pairs(shards, answers)
    captions = [(f"is {pairs[i][0] or 'none'}", f"as {pairs[i][1] or 'none'}", f"loss {losses[i]:.2f}") for i in worst]
    draw_images(path, shards, worst, captions)


def write_table(path: Path, header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a CSV file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def draw_embedding(
    path: Path, model: classifier.Classifier, shards: Dataset, logits: NDArray[np.float32], batch_size: int,
    *, output: str = "", directions: bool = False,
) -> None:  # fmt: skip
    """Draw test images, evenly spread ones where there are many, by what the network sees in them.

    That is what the logits are computed of, or an `output`, of which the `directions` alone may count.
    """
    labels = np.array(shards.test.labels)
    count = min(_EMBEDDED, len(labels))
    shown = np.arange(count) * len(labels) // count
    features = embedding.features_of(model, shards.test.images_nhwc[shown], batch_size=batch_size, output=output)
    if directions:
        features = embedding.directions_of(features)
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
