"""Classification metrics from logits and labels; plain numpy, float64."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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


def macro_f1(scores: list[ClassScores]) -> float:
    """Mean F1 of the classes that have test images."""
    return float(np.mean([score.f1 for score in scores if score.support]))


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
