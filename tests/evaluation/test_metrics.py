import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as sklearn_metrics
from torch.nn import functional as F

from deepcv.evaluation import metrics
from deepcv.task import CLASSIFICATION, Task

Case = tuple[NDArray[np.float32], NDArray[np.int64]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Logits and labels; small models, sure models, absent classes."""
    count, classes = draw(st.integers(1, 60)), draw(st.integers(2, 6))
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    scale = draw(st.sampled_from([0.1, 1.0, 10.0, 200.0]))
    logits = random.normal(0, scale, (count, classes)).astype(np.float32)
    return logits, random.integers(0, draw(st.integers(1, classes)), count)


@settings(deadline=None)
@given(cases())
def test_metrics_are_scikit_learns(case: Case) -> None:
    logits, labels = case
    classes = logits.shape[1]
    predicted = logits.argmax(axis=1)
    every = list(range(classes))
    assert metrics.accuracy(logits, labels) == pytest.approx(sklearn_metrics.accuracy_score(labels, predicted))
    matrix = metrics.confusion(predicted, labels, classes)
    assert np.array_equal(matrix, sklearn_metrics.confusion_matrix(labels, predicted, labels=every))
    scores = metrics.per_class(matrix, tuple("abcdef"[:classes]))
    expected = sklearn_metrics.precision_recall_fscore_support(labels, predicted, labels=every, zero_division=0)
    found = np.array([[s.precision, s.recall, s.f1, s.support] for s in scores]).T
    assert np.allclose(found, expected, rtol=0, atol=1e-12)
    assert [s.label for s in scores] == list("abcdef"[:classes])


@settings(deadline=None)
@given(cases())
def test_cross_entropy_is_scikit_learns(case: Case) -> None:
    logits, labels = case
    probabilities = np.exp(metrics.log_softmax(logits))
    assert np.allclose(probabilities.sum(axis=1), 1, rtol=0, atol=1e-12)
    if np.abs(logits).max() < 20:  # beyond, scikit-learn clips the probabilities
        with warnings.catch_warnings(action="ignore"):
            expected = sklearn_metrics.log_loss(labels, probabilities, labels=list(range(logits.shape[1])))
        assert metrics.cross_entropy(logits, labels) == pytest.approx(expected, rel=1e-9)


def test_large_logits_do_not_overflow() -> None:
    logits = np.array([[1e30, -1e30, 0], [88, -3e38, 88]], np.float32)
    assert metrics.cross_entropy(logits, np.array([0, 2])) == pytest.approx(np.log(2) / 2)


@settings(deadline=None)
@given(cases(), st.integers(1, 15))
def test_reliability_counts_every_image_once(case: Case, bins: int) -> None:
    logits, labels = case
    found = metrics.reliability(logits, labels, bins)
    counts = np.array([count for _, _, count in found])
    assert counts.sum() == len(labels)
    assert (counts > 0).all()
    confidences = [confidence for confidence, _, _ in found]
    assert confidences == sorted(confidences)
    assert all(1 / logits.shape[1] - 1e-9 <= c <= 1 + 1e-9 for c in confidences)
    weighted = sum(accuracy * count for _, accuracy, count in found) / len(labels)
    assert weighted == pytest.approx(metrics.accuracy(logits, labels))
    places = [min(bins - 1, int(c * bins)) for c in confidences]
    assert len(set(places)) == len(places)


def test_a_model_that_is_sure_and_right_lies_on_the_diagonal() -> None:
    labels = np.arange(3)
    assert metrics.reliability((np.eye(3) * 100).astype(np.float32), labels) == [(pytest.approx(1), 1.0, 3)]


def test_macro_f1_is_over_the_classes_that_have_images() -> None:
    matrix = metrics.confusion(np.array([0, 1, 1]), np.array([0, 1, 0]), 3)  # none is of the third
    expected = sklearn_metrics.f1_score([0, 1, 0], [0, 1, 1], average="macro")
    assert metrics.macro_f1(metrics.per_class(matrix, ("a", "b", "c"))) == pytest.approx(expected)


@settings(deadline=None)
@given(cases())
def test_confident_mistakes_are_the_wrong_ones_surest_first(case: Case) -> None:
    logits, labels = case
    found = metrics.confident_mistakes(logits, labels)
    assert sorted(found.tolist()) == [i for i, label in enumerate(labels) if logits[i].argmax() != label]
    confidence = metrics.log_softmax(logits).max(axis=1)[found]
    assert (confidence[1:] <= confidence[:-1]).all()


LABELS, NUMBERS = Task("tags.x"), Task("numbers", (1.0, -2.0), (2.0, 0.5))


def answers(seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    return random.normal(0, 3, (17, 2)).astype(np.float32), random.integers(0, 2, (17, 2)).astype(np.float32)


def test_the_loss_of_labels_is_torchs() -> None:
    logits, there = answers(0)
    expected = F.binary_cross_entropy_with_logits(torch.tensor(logits), torch.tensor(there), reduction="none").mean(1)
    assert np.allclose(metrics.losses(LABELS, logits, there), expected.numpy(), rtol=1e-6)
    assert np.isfinite(metrics.losses(LABELS, np.float32([[1e30, -1e30]]), np.float32([[1, 0]]))).all()
    assert metrics.score(LABELS, logits, there) == ((logits >= 0) == (there == 1)).mean()
    assert np.allclose(metrics.sigmoid(logits), torch.tensor(logits).sigmoid().numpy(), atol=1e-7)


def test_the_loss_of_numbers_counts_standard_deviations() -> None:
    numbers, truth = answers(1)
    expected = ((numbers - truth) / np.array([2.0, 0.5])) ** 2
    assert np.allclose(metrics.losses(NUMBERS, numbers, truth), expected.mean(1))


def test_scores_of_numbers_are_scikit_learns() -> None:
    numbers, truth = answers(2)
    assert metrics.score(NUMBERS, numbers, truth) == pytest.approx(sklearn_metrics.r2_score(truth, numbers))
    for place, one in enumerate(metrics.per_number(numbers, truth, ("a", "b"))):
        mine, own = truth[:, place], numbers[:, place]
        assert one.number == "ab"[place]
        assert one.mae == pytest.approx(sklearn_metrics.mean_absolute_error(mine, own))
        assert one.rmse == pytest.approx(sklearn_metrics.root_mean_squared_error(mine, own))
        assert one.r2 == pytest.approx(sklearn_metrics.r2_score(mine, own))


def test_numbers_that_do_not_differ_have_no_variance_to_explain() -> None:
    truth = np.float32([[1.0, 1.0], [1.0, 1.0]])
    assert metrics.r2(np.float32([[1.0, 2.0], [1.0, 1.0]]), truth).tolist() == [1.0, 0.0]


def test_classes_are_judged_as_before() -> None:
    logits, labels = answers(3)[0], np.arange(17) % 2
    assert metrics.losses(CLASSIFICATION, logits, labels).mean() == metrics.cross_entropy(logits, labels)
    assert metrics.score(CLASSIFICATION, logits, labels) == metrics.accuracy(logits, labels)
