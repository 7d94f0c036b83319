"""Metrics of images that have several labels or none, which scikit-learn computes; machines that only train may not have it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve

from deepcv.evaluation.metrics import ClassScores
from deepcv.task import LIKELY


@dataclass(frozen=True)
class LabelScores(ClassScores):
    """Of one label: precision, recall and F1 at probability 0.5, and average precision, nan where no test image has it."""

    average_precision: float


def per_label(probabilities: NDArray[Any], labels: NDArray[Any], names: Sequence[str]) -> list[LabelScores]:
    """Scores of each label, from probabilities and labels (n, k)."""
    there, said = labels >= LIKELY, probabilities >= LIKELY
    hits, support = (there & said).sum(axis=0), there.sum(axis=0)
    precision, recall = hits / np.maximum(1, said.sum(axis=0)), hits / np.maximum(1, support)
    f1 = 2 * hits / np.maximum(1, said.sum(axis=0) + support)
    return [
        LabelScores(
            name, float(precision[i]), float(recall[i]), float(f1[i]), int(support[i]),
            float(average_precision_score(there[:, i], probabilities[:, i])) if support[i] else math.nan,
        )
        for i, name in enumerate(names)
    ]  # fmt: skip


def curves(
    probabilities: NDArray[Any], labels: NDArray[Any], names: Sequence[str]
) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Precision and recall of each label that an image has, at all thresholds."""
    found = {}
    for place, name in enumerate(names):
        if (there := labels[:, place] >= LIKELY).any():
            precision, recall, _ = precision_recall_curve(there, probabilities[:, place])
            found[name] = (precision, recall)
    return found


def mean_average_precision(scores: Sequence[LabelScores]) -> float:
    """Mean over the labels that an image has; 0 where there is none."""
    found = [one.average_precision for one in scores if one.support]
    return float(np.mean(found)) if found else 0.0
