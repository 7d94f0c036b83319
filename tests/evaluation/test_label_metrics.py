import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from deepcv.evaluation import label_metrics, metrics


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(2, 5))
def test_scores_are_scikit_learns(seed: int, count: int, labels: int) -> None:
    random = np.random.default_rng(seed)
    there = (random.random((count, labels)) < random.random(labels)).astype(np.float32)
    probabilities = random.random((count, labels)).round(1)  # many are equal
    found = label_metrics.per_label(probabilities, there, "abcde"[:labels])
    with warnings.catch_warnings(action="ignore"):
        expected = sklearn_metrics.precision_recall_fscore_support(
            there, probabilities >= 0.5, average=None, zero_division=0
        )
    mine = np.array([(s.precision, s.recall, s.f1, s.support) for s in found]).T
    assert np.allclose(mine, np.array(expected))
    wanted = [name for name, support in zip("abcde", expected[3], strict=False) if support]
    assert [s.label for s in found if not math.isnan(s.average_precision)] == wanted
    if wanted:
        columns = [place for place, support in enumerate(expected[3]) if support]
        mean = sklearn_metrics.average_precision_score(there[:, columns], probabilities[:, columns], average="macro")
        assert label_metrics.mean_average_precision(found) == pytest.approx(mean)
        assert metrics.macro_f1(found) == pytest.approx(expected[2][columns].mean())


def test_no_label_at_all_scores_nothing() -> None:
    found = label_metrics.per_label(np.zeros((2, 1)), np.zeros((2, 1)), ("a",))
    assert label_metrics.mean_average_precision(found) == 0
    assert metrics.macro_f1(found) == 0
