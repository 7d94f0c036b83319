"""The original DeepCV's example architectures learn: each trains one epoch, and its loss falls."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, fx
from torch.nn import functional as F

from deepcv.nn.spec import build, load
from deepcv.nn.spec.expand import ZOO
from deepcv.training.losses import LOSSES, Target, Term, check, total

SHAPE = (1, 16, 16)
IMAGES, BATCH = 480, 16
Loss = Callable[[dict[str, Tensor], Tensor], Tensor]

# A backbone gives feature maps; these files put a head on it.
POOLED = """\
nodes:
  - {{id: body, spec: {name}, parameters: {{width: 8}}}}
  - {{id: pool, op: global_avg_pool, from: {end}}}
  - {{id: head, op: linear, features: $classes}}
outputs: {{logits: head}}
"""
KEYPOINTS = """\
nodes:
  - {id: encoder, spec: keypoint-encoder, parameters: {width: 16}}
  - {id: decoder, spec: keypoint-decoder, parameters: {width: 16, keypoints: 1}}
outputs: {heatmaps: decoder}
"""


def digits() -> tuple[Tensor, Tensor]:
    """Images (n, 1, 16, 16) of zero mean and unit variance, and their classes."""
    images, labels = load_digits(return_X_y=True)
    maps = torch.from_numpy(images[:IMAGES]).float().view(-1, 1, 8, 8)
    maps = F.interpolate(maps, scale_factor=2.0, mode="nearest")
    return (maps - maps.mean()) / maps.std(), torch.from_numpy(labels[:IMAGES])


def classified(outputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs["logits"], labels)


def found(outputs: dict[str, Tensor], places: Tensor) -> Tensor:
    """The heatmap as a distribution over pixels, against the pixel of the keypoint."""
    return F.cross_entropy(outputs["heatmaps"].flatten(1), places)


def epoch(network: fx.GraphModule, images: Tensor, targets: Tensor, loss_of: Loss) -> list[float]:
    """The loss of each step of one epoch."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for x, y in zip(images.split(BATCH), targets.split(BATCH), strict=True):
        loss = loss_of(network(x), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return losses


def written(folder: Path, text: str) -> Path:
    path = folder / "net.yaml"
    path.write_text(text)
    return path


def falls(losses: list[float]) -> bool:
    """The mean of the last five steps is well below that of the first five."""
    return sum(losses[-5:]) < 0.75 * sum(losses[:5])


@pytest.mark.parametrize(
    ("name", "end"), [("basic-backbone", "body"), ("branched-backbone", "body"), ("hrnet-backbone", "body.coarse")]
)
def test_a_backbone_with_a_head_learns(name: str, end: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build(load(written(tmp_path, POOLED.format(name=name, end=end))), SHAPE, 10)
    assert falls(epoch(network, *digits(), classified))


def test_the_image_classifier_learns() -> None:
    torch.manual_seed(0)
    network = build(load(ZOO / "image-classifier.yaml", {"width": 8}), SHAPE, 10)
    assert falls(epoch(network, *digits(), classified))


def test_the_keypoint_encoder_and_decoder_learn(tmp_path: Path) -> None:
    """To find the brightest spot of a noisy image."""
    torch.manual_seed(0)
    network = build(load(written(tmp_path, KEYPOINTS)), SHAPE, 10)
    places = torch.randint(256, (3 * IMAGES,))
    spots = F.one_hot(places, 256).float().view(-1, 1, 16, 16)
    images = 9 * F.avg_pool2d(spots, 3, 1, 1) + 0.1 * torch.randn(3 * IMAGES, 1, 16, 16)
    assert falls(epoch(network, images, places, found))


@pytest.mark.parametrize(
    ("kernel", "link"), [("small", "both"), ("large", "both"), ("pyramid", "res2")], ids=["small", "large", "pyramid"]
)
def test_the_choices_of_the_branched_backbone_can_be_set(kernel: str, link: str) -> None:
    spec = load(ZOO / "branched-backbone.yaml", {"width": 8, "kernel": kernel, "link": link})
    parts = {key.split(".")[1] for key in build(spec, SHAPE, 10).state_dict() if key.startswith("down.")}
    assert parts == {kernel}


def test_exits_share_the_body() -> None:
    """The exits of resnet-9-exits cost two small heads: the last answer is that of resnet-9 itself."""
    torch.manual_seed(0)
    network = build(load(ZOO / "resnet-9-exits.yaml", {"width": 8}), (3, 32, 32), 10).eval()
    alone = build(load(ZOO / "resnet-9.yaml", {"width": 8}), (3, 32, 32), 10).eval()
    prefix = "resnet."
    body = {key.removeprefix(prefix): value for key, value in network.state_dict().items() if key.startswith(prefix)}
    alone.load_state_dict(body)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        outputs = network(x)
        assert list(outputs) == ["exit1", "exit2", "logits"]
        torch.testing.assert_close(outputs["logits"], alone(x)["logits"], rtol=0, atol=0)


def neighbours_of_other_classes(network: fx.GraphModule, images: Tensor, classes: Tensor) -> float:
    """Share of the images whose nearest other image, by their embeddings, is of another class."""
    with torch.no_grad():
        directions = F.normalize(network.eval()(images)["embedding"])
    likeness = (directions @ directions.T).fill_diagonal_(-1)
    return float((classes[likeness.argmax(1)] != classes).float().mean())


def test_the_siamese_encoder_learns_by_the_losses_of_a_training_and_fits_into_the_pair() -> None:
    torch.manual_seed(0)
    network = build(load(ZOO / "siamese-encoder.yaml", {"width": 8}), SHAPE, 10)
    options = {key: option.default for key, option in LOSSES["triplet"].options.items()}
    terms = [Term("triplet", "embedding", options=options), Term("cross_entropy")]
    check(terms, {"logits": (10,), "embedding": (64,)}, {"label": Target("class", (10,))})
    images, classes = digits()
    before = neighbours_of_other_classes(network, images, classes)
    epoch(network.train(), images, classes, lambda outputs, labels: total(terms, outputs, {"label": labels}))
    assert neighbours_of_other_classes(network, images, classes) < 0.5 * before
    pair = build(load(ZOO / "siamese.yaml", {"width": 8}), SHAPE, 10).eval()
    encoder = {key: value for key, value in network.state_dict().items() if not key.startswith("head.")}
    pair.load_state_dict(encoder)
    x, y = torch.randn(2, 3, *SHAPE)
    with torch.no_grad():
        found = pair(x, y)
        assert torch.equal(found["left"], network.eval()(x)["embedding"])
        assert torch.equal(found["right"], network(y)["embedding"])
