from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from torch import nn

from deepcv.evaluation.embedding import (
    COMPARING,
    compared_outputs,
    directions_of,
    features_of,
    head_of,
    project,
)
from deepcv.nn.classifier import Classifier, ModelInfo, create
from deepcv.training.losses import LOSSES

SCALED = toys.NETWORK.replace(
    "outputs: {logits: head}", "  - {id: scaled, op: scale, by: 0.5}\noutputs: {logits: scaled}"
)
NO_HEAD = """\
nodes:
  - {id: last, op: conv, channels: $classes}
  - {id: pool, op: global_avg_pool}
outputs: {logits: pool}
"""
JOINED = toys.NETWORK.replace(
    "outputs: {logits: head}",
    "  - {id: other, op: linear, from: pool, features: $classes}\n"
    "  - {id: both, op: sum, from: [head, other]}\noutputs: {logits: both}",
)


TWO_HEADS = toys.NETWORK.replace(
    "outputs: {logits: head}",
    "  - {id: embedding, op: linear, from: pool, features: 6}\noutputs: {logits: head, embedding: embedding}",
)


def classifier_of(text: str, folder: Path) -> Classifier:
    torch.manual_seed(0)
    recipe = {"height": 8, "width": 8, "channels": 1, "resize": "stretch"}
    info = ModelInfo("toy", ("a", "b", "c"), recipe, (0.5,), (0.2,), "flip")
    return create(toys.network(folder, text).canonical(), info).eval()


def clusters(count: int, features: int = 6) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(count) % 3
    noise = np.random.default_rng(0).normal(0, 0.3, (count, features))
    return (noise + 5 * np.eye(3, features)[labels]).astype(np.float32), labels


@pytest.mark.parametrize("text", [toys.NETWORK, SCALED])
def test_features_are_what_the_head_takes_of_the_image_itself(text: str, tmp_path: Path) -> None:
    classifier = classifier_of(text, tmp_path)
    images = toys.labelled(7)[0]
    found = features_of(classifier, images, batch_size=3)
    assert found.shape == (7, 4)
    head = classifier.network.get_submodule("head")
    assert isinstance(head, nn.Linear)
    assert head_of(classifier.network) is head
    with torch.inference_mode():
        logits = classifier.network(classifier.normalise(torch.from_numpy(images).permute(0, 3, 1, 2)))["logits"]
        expected = head(torch.from_numpy(found)) * (0.5 if text == SCALED else 1)
    assert torch.allclose(logits, expected, atol=1e-5)
    assert not head._forward_pre_hooks


@pytest.mark.parametrize("text", [NO_HEAD, JOINED])
def test_without_a_head_features_are_logits(text: str, tmp_path: Path) -> None:
    classifier = classifier_of(text, tmp_path)
    images = toys.labelled(5)[0]
    assert head_of(classifier.network) is None
    with torch.inference_mode():
        logits = classifier.network(classifier.normalise(torch.from_numpy(images).permute(0, 3, 1, 2)))["logits"]
    assert np.allclose(features_of(classifier, images, batch_size=2), logits.numpy(), atol=1e-5)


def test_a_layer_without_weights_may_come_after_the_head(tmp_path: Path) -> None:
    rounded = toys.NETWORK.replace(
        "outputs: {logits: head}", "  - {id: last, op: activation, kind: gelu}\noutputs: {logits: last}"
    )
    assert isinstance(head_of(classifier_of(rounded, tmp_path).network), nn.Linear)


@pytest.mark.parametrize("count", [4, 5, 40, 150])
def test_what_lies_together_stays_together_and_equal_features_give_equal_places(count: int) -> None:
    features, labels = clusters(count)
    places = project(features)
    assert places.shape == (count, 2)
    assert np.isfinite(places).all()
    assert places.std() > 0
    assert np.array_equal(places, project(features.copy()))
    if count >= 40:
        distances = np.linalg.norm(places[:, None] - places[None, :], axis=2)
        np.fill_diagonal(distances, np.inf)
        assert (labels[distances.argmin(axis=1)] == labels).all()


@pytest.mark.parametrize(
    "features",
    [
        np.ones((9, 3), np.float32), np.zeros((1, 3), np.float32), np.eye(3, dtype=np.float32),
        np.full((9, 3), np.nan, np.float32), np.repeat(np.float32([[0], [np.inf]]), 5, axis=0),
    ],
)  # fmt: skip
def test_images_that_nothing_tells_apart_lie_at_one_point(features: np.ndarray) -> None:
    with np.errstate(invalid="ignore"):
        assert np.array_equal(project(features), np.zeros((len(features), 2)))


def test_one_feature_is_enough() -> None:
    places = project(np.linspace(0, 1, 30, dtype=np.float32)[:, None])
    assert np.isfinite(places).all()
    assert places.std() > 0


def test_an_output_is_seen_as_it_is(tmp_path: Path) -> None:
    classifier = classifier_of(TWO_HEADS, tmp_path)
    images = toys.labelled(7)[0]
    with torch.inference_mode():
        made = classifier.network(classifier.normalise(torch.from_numpy(images).permute(0, 3, 1, 2)))["embedding"]
    found = features_of(classifier, images, batch_size=3, output="embedding")
    assert found.shape == (7, 6)
    assert np.allclose(found, made.numpy(), atol=1e-5)


def test_the_losses_that_compare_images_say_which_outputs_are_embeddings() -> None:
    assert set(COMPARING) == {name for name, loss in LOSSES.items() if not loss.divisible}
    losses = [
        {"loss": "cross_entropy", "output": "logits"}, {"loss": "triplet", "output": "logits"},
        {"loss": "supcon", "output": "a", "temperature": 0.1}, {"loss": "triplet", "output": "a"},
        {"loss": "triplet", "output": "b"}, {"loss": "triplet", "output": "c", "distance": "cosine"},
        {"loss": "none", "output": "d"}, {"loss": "nt_xent", "output": "e"},
    ]  # fmt: skip
    assert compared_outputs({"params": {"losses": losses}}) == {"a": True, "b": False, "c": True, "e": True}
    assert compared_outputs({"params": {}}) == {}  # of a training before there were losses


def test_directions_have_length_one() -> None:
    found = directions_of(np.array([[3, 4], [0, 0], [-2, 0]], np.float32))
    assert np.allclose(found, [[0.6, 0.8], [0, 0], [-1, 0]])
