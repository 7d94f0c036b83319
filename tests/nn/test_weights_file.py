"""Files that say which weights a training starts from."""

import hashlib
from pathlib import Path

import pytest
import torch

from deepcv import network_registry
from deepcv.nn import DeepcvModule, network_file
from deepcv.nn.weights import Weights, WeightsError
from deepcv.nn.weights_file import WeightsFile, read

ROOT = Path(__file__).parents[2]
SHAPE = (1, 8, 8)


def digits(classes: int = 10, seed: int = 0) -> DeepcvModule:
    torch.manual_seed(seed)
    return DeepcvModule.from_file(ROOT / "networks/digits.yaml", SHAPE, classes, width=4)


def written(folder: Path, text: str) -> WeightsFile:
    (folder / "weights.yaml").write_text(text)
    return read(folder / "weights.yaml")


def nowhere(model: str) -> Weights:
    raise AssertionError(f"{model} was asked for")


def test_the_shipped_file_says_none(tmp_path: Path) -> None:
    assert written(tmp_path, "source: none\n").fetch(nowhere) is None


def test_a_file_beside_it_held_to_its_digest(tmp_path: Path) -> None:
    other, network = digits(seed=1), digits(classes=3)
    network_file.save(tmp_path / "net.pt", other)
    digest = hashlib.sha256((tmp_path / "net.pt").read_bytes()).hexdigest()
    text = f"source: file\npath: net.pt\nsha256: '{digest}'\nrename: [[down., null], ['', x.], [x., '']]\nhead: [head]\nstrict: false\n"
    file = written(tmp_path, text)
    weights = file.fetch(nowhere)
    assert weights is not None
    report = file.load_into(network, weights)
    assert report.head == ("head.weight", "head.bias")
    assert {key.partition(".")[0] for key in report.missing} == {"down"}
    assert torch.equal(network.get_parameter("stem.conv.weight"), other.get_parameter("stem.conv.weight"))
    with pytest.raises(WeightsError, match="do not fit"):
        written(tmp_path, text.replace("strict: false", "strict: true")).load_into(network, weights)
    network_file.save(tmp_path / "net.pt", network)
    with pytest.raises(WeightsError, match=rf"expected .*net.pt with the SHA-256 {digest}, it has"):
        file.fetch(nowhere)


@pytest.mark.parametrize(("name", "mean"), [
    ("timm/tf_efficientnet_lite0.in1k", 0.5), ("torchvision/resnet18/IMAGENET1K_V1", 0.485),
])  # fmt: skip
def test_a_file_that_was_brought_expects_the_images_of_its_source(name: str, mean: float, tmp_path: Path) -> None:
    network_file.save(tmp_path / "net.pt", digits())
    digest = hashlib.sha256((tmp_path / "net.pt").read_bytes()).hexdigest()
    text = f"source: file\npath: net.pt\nsha256: '{digest}'\n"
    weights = written(tmp_path, f"{text}preprocessing: {name}\n").fetch(nowhere)
    assert weights is not None
    assert weights.preprocessing is not None
    assert weights.preprocessing.mean[0] == mean
    assert weights.preprocessing.size == (224, 224)
    plain = written(tmp_path, text).fetch(nowhere)
    assert plain is not None
    assert plain.preprocessing is None


@pytest.mark.usefixtures("store")
def test_a_registered_model_by_its_version(tmp_path: Path) -> None:
    other, network = digits(seed=1), digits()
    version = network_registry.register_network("deepcv-toy", other)
    file = written(tmp_path, f"source: registered\nmodel: models:/deepcv-toy/{version}\n")
    weights = file.fetch(network_registry.weights)
    assert weights is not None
    assert file.load_into(network, weights).fits
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))


WRONG = [
    ("", "expected `source:` with one of none, file, url, torchvision, timm, registered, got None"),
    ("source: [none]", "expected `source:`"),
    ("source: hub", "got 'hub'"),
    ("source: !!python/name:os.system", "cannot be read"),
    ("source: timm\nnmae: x", "unknown key 'nmae'; the closest is 'name'"),
    ("source: none\nhead: [x]", "unknown key 'head'; there are none"),
    ("source: timm", "expected `name: <text>`, got None"),
    ("source: file\npath: a.pt", "expected `sha256: <text>`"),
    ("source: registered\nmodel: models:/a@champion", "expected `model: models:/NAME/VERSION`"),
    ("source: timm\nname: x\nrename: {a: b}", "expected `rename: "),
    ("source: timm\nname: x\nrename: [[a, 3]]", "expected `rename: "),
    ("source: timm\nname: x\nhead: net", "expected `head: "),
    ("source: timm\nname: x\nstrict: 1", "expected `strict: true`"),
    ("source: timm\nname: x\npreprocessing: timm/x", "unknown key 'preprocessing'"),
    ("source: url\nurl: x\nsha256: x\npreprocessing: timm/resnet81", "preprocessing: timm has no weights 'resnet81'"),
    ("source: url\nurl: x\nsha256: x\npreprocessing: torchvision/resnet18/V7", "it has IMAGENET1K_V1"),
    ("source: url\nurl: x\nsha256: x\npreprocessing: resnet18", "expected timm/NAME or torchvision/NAME/VERSION"),
    ("source: url\nurl: x\nsha256: x\npreprocessing: 5", "expected `preprocessing: <text>`, got 5"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_a_wrong_file_is_told(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"weights\.yaml: ") as caught:
        written(tmp_path, text)
    assert message in str(caught.value)
