"""Metrics of a network's answers; plain numpy, float64.

Logits are (n, classes), and labels what `shards.Split.labels` has: of classification class numbers (n,), of multi-label 0 and 1, of
regression numbers, each (n, k). Of regression logits are numbers in the units of the labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcv.task import Task

Logits = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class ClassScores:
    """Precision, recall and F1 of one class, each 0–1 (0 where it is undefined), and how many test images it has."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class NumberScores:
    """Of one number, in its units: mean absolute error, root of the mean squared error; and R², at most 1."""

    number: str
    mae: float
    rmse: float
    r2: float


def losses(task: Task, logits: Logits, labels: NDArray[Any]) -> NDArray[np.float64]:
    """What the task's own loss is of each image, (n,): nats of classes and labels, squared standard deviations of numbers."""
    match task.kind:
        case "classification":
            found: NDArray[np.float64] = -log_softmax(logits)[np.arange(len(labels)), labels]
        case "multi_label":
            answers = logits.astype(np.float64)
            found = (np.logaddexp(0, answers) - answers * labels).mean(axis=1)
        case "regression":
            found = (((logits.astype(np.float64) - labels) / np.array(task.std)) ** 2).mean(axis=1)
    return found


def score(task: Task, logits: Logits, labels: NDArray[Any]) -> float:
    """How good the answers are, 1 at best: the share of right classes or of right decisions on labels, of numbers R²."""
    match task.kind:
        case "classification":
            return accuracy(logits, labels)
        case "multi_label":
            return float(((logits >= 0) == (labels >= 0.5)).mean())
        case "regression":
            return float(r2(logits, labels).mean())


def r2(numbers: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.float64]:
    """The share of each number's variance (k,) that the answers explain, as scikit-learn has it where there is none."""
    squares = ((numbers.astype(np.float64) - labels) ** 2).sum(axis=0)
    total = ((labels - labels.mean(axis=0, dtype=np.float64)) ** 2).sum(axis=0)
    found: NDArray[np.float64] = np.where(
        total > 0, 1 - squares / np.maximum(total, np.finfo(float).tiny), np.where(squares > 0, 0.0, 1.0)
    )
    return found


def per_number(numbers: NDArray[Any], labels: NDArray[Any], names: Sequence[str]) -> list[NumberScores]:
    """Scores of each number, from answers and labels (n, k)."""
    errors = numbers.astype(np.float64) - labels
    mae, rmse = np.abs(errors).mean(axis=0), np.sqrt((errors**2).mean(axis=0))
    explained = r2(numbers, labels)
    return [NumberScores(name, float(mae[i]), float(rmse[i]), float(explained[i])) for i, name in enumerate(names)]


def sigmoid(logits: Logits) -> NDArray[np.float64]:
    """Probabilities of labels."""
    return np.exp(-np.logaddexp(0, -logits.astype(np.float64)))


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """Log probabilities (n, classes)."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def accuracy(logits: Logits, labels: Labels) -> float:
    """Share of images whose largest logit is their label's."""
    return float((logits.argmax(axis=1) == labels).mean())


def cross_entropy(logits: Logits, labels: Labels) -> float:
    """Mean negative log likelihood, in nats."""
    return float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())


def confusion(predicted: Labels, labels: Labels, classes: int) -> NDArray[np.int64]:
    """Counts (actual class, predicted class)."""
    flat = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.int64)


def per_class(matrix: NDArray[np.int64], class_names: tuple[str, ...]) -> list[ClassScores]:
    """Scores of each class from a confusion matrix."""
    hits = np.diag(matrix).astype(np.float64)
    precision = hits / np.maximum(1, matrix.sum(axis=0))
    recall = hits / np.maximum(1, matrix.sum(axis=1))
    f1 = 2 * precision * recall / np.maximum(np.finfo(float).tiny, precision + recall)
    return [
        ClassScores(name, float(precision[i]), float(recall[i]), float(f1[i]), int(matrix[i].sum()))
        for i, name in enumerate(class_names)
    ]


def macro_f1(scores: Sequence[ClassScores]) -> float:
    """Mean F1 of the classes or labels that have test images; 0 where none has."""
    found = [score.f1 for score in scores if score.support]
    return float(np.mean(found)) if found else 0.0


def confident_mistakes(logits: Logits, labels: Labels) -> Labels:
    """Numbers of the images whose predicted class is wrong, those with the most probability for it first."""
    wrong: Labels = np.flatnonzero(logits.argmax(axis=1) != labels)
    order = np.argsort(-log_softmax(logits[wrong]).max(axis=1), kind="stable")
    return wrong[order]


def reliability(logits: Logits, labels: Labels, bins: int = 10) -> list[tuple[float, float, int]]:
    """Mean confidence, accuracy and count of each non-empty confidence bin (Guo et al. 2017, arXiv 1706.04599)."""
    probabilities = np.exp(log_softmax(logits))
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    return [
        (float(confidence[which == b].mean()), float(correct[which == b].mean()), int((which == b).sum()))
        for b in range(bins)
        if (which == b).any()
    ]
