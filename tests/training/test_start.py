"""Trainings that start from weights, and trainings of which parts learn nothing."""

import hashlib
from pathlib import Path

import pytest
import torch
import toys
from torch import Tensor

from deepcv.data.shards import Dataset
from deepcv.nn import DeepcvModule, network_file
from deepcv.nn.classifier import ModelInfo, create, save
from deepcv.nn.parts import PartError
from deepcv.nn.pretrained import from_file
from deepcv.nn.spec import NetworkSpec
from deepcv.nn.weights import Preprocessing, Weights, WeightsError
from deepcv.nn.weights_file import read
from deepcv.training.fit import Fitted, fit
from deepcv.training.start import Start

SHAPE = (1, 8, 8)


def nowhere(model: str) -> Weights:
    raise AssertionError(f"{model} was asked for")


@pytest.fixture
def start(network: NetworkSpec, tmp_path: Path) -> Start:
    """Weights of a network for three classes, in a file beside the one that names it."""
    torch.manual_seed(7)
    network_file.save(tmp_path / "net.pt", DeepcvModule.from_spec(network, SHAPE, 3))
    digest = hashlib.sha256((tmp_path / "net.pt").read_bytes()).hexdigest()
    (tmp_path / "start.yaml").write_text(f"source: file\npath: net.pt\nsha256: '{digest}'\nhead: [head]\n")
    found = Start.read(tmp_path / "start.yaml", nowhere)
    assert found is not None
    return found


def expecting(tmp_path: Path, network: NetworkSpec, preprocessing: Preprocessing) -> Start:
    (tmp_path / "start.yaml").write_text("source: timm\nname: resnet18.a1_in1k\n")
    state = DeepcvModule.from_spec(network, SHAPE, 2).state_dict()
    return Start(read(tmp_path / "start.yaml"), Weights(state, "weights of a test", preprocessing))


def state_of(fitted: Fitted, part: str) -> dict[str, Tensor]:
    state = fitted.classifier.network.state_dict()
    return {key: value for key, value in state.items() if key.startswith(f"{part}.")}


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_frozen_parts_keep_the_weights_that_they_were_given(
    network: NetworkSpec, shards: Dataset, start: Start
) -> None:
    """Batch norm statistics too; the rest learns."""
    fitted = fit(network, shards, toys.config(freeze=("stem",)), start=start)
    given = {key: value for key, value in start.weights.state.items() if key.startswith("stem.")}
    assert len(given) > 2
    assert equal(state_of(fitted, "stem"), given)
    again = fit(network, shards, toys.config(freeze=("stem",)), start=start)
    assert equal(fitted.classifier.state_dict(), again.classifier.state_dict())
    free = fit(network, shards, toys.config(), start=start)
    assert not torch.equal(free.classifier.network.get_parameter("stem.conv.weight"), given["stem.conv.weight"])
    drawn = fit(network, shards, toys.config(freeze=("stem",)))
    assert not torch.equal(drawn.classifier.network.get_parameter("stem.conv.weight"), given["stem.conv.weight"])


def test_a_killed_training_from_weights_goes_on_bit_for_bit(
    network: NetworkSpec, shards: Dataset, start: Start, tmp_path: Path
) -> None:
    config = toys.config(freeze=("stem",))
    whole = fit(network, shards, config, start=start)

    def killed(record: object) -> None:
        if getattr(record, "epoch", 0) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(network, shards, config, start=start, checkpoints=tmp_path / "checkpoints", on_epoch=killed)
    resumed = fit(network, shards, config, start=start, checkpoints=tmp_path / "checkpoints")
    assert equal(whole.classifier.state_dict(), resumed.classifier.state_dict())
    assert whole.history == resumed.history


@pytest.mark.parametrize(
    ("names", "message"), [(("stm",), "no part 'stm' with parameters"), (("*",), "no parameter is left that learns")]
)
def test_what_cannot_be_frozen_is_said(
    names: tuple[str, ...], message: str, network: NetworkSpec, shards: Dataset
) -> None:
    with pytest.raises(PartError, match=message):
        fit(network, shards, toys.config(freeze=names))


def test_images_are_normalised_as_the_weights_expect(network: NetworkSpec, shards: Dataset, tmp_path: Path) -> None:
    start = expecting(tmp_path, network, Preprocessing((0.25,), (0.125,), (224, 224), "bicubic", 0.95))
    fitted = fit(network, shards, toys.config(epochs=1), start=start)
    assert (fitted.info.mean, fitted.info.std) == ((0.25,), (0.125,))
    assert fitted.classifier.mean.item() == 0.25
    assert [sentence.partition(",")[0] for sentence in start.differences(shards)] == [
        "the weights expect images of 224×224 pixels",
        "the weights expect the centre of the image (preprocess.resize: crop)",
        "the weights expect the central 0.950 of each side (preprocess.keep)",
        "the weights expect bicubic interpolation; preprocess averages areas or interpolates linearly",
    ]


def test_a_model_of_our_own_tells_its_images(network: NetworkSpec, shards: Dataset, tmp_path: Path) -> None:
    """Its mean and std stay those that it was trained with, whatever the new images' are."""
    info = ModelInfo("before", shards.classes, {**shards.recipe, "resize": "pad", "width": 9}, (0.25,), (0.125,))
    save(tmp_path / "model.pt", create(network.canonical(), info), network.canonical(), info)
    digest = hashlib.sha256((tmp_path / "model.pt").read_bytes()).hexdigest()
    (tmp_path / "start.yaml").write_text(f"source: file\npath: model.pt\nsha256: '{digest}'\n")
    start = Start.read(tmp_path / "start.yaml", nowhere)
    assert start is not None
    assert start.differences(shards) == [
        "the weights expect images of 8×9 pixels, preprocess makes 8×8",
        "the weights expect images prepared in another way (preprocess.resize: pad), not 'stretch'",
    ]
    fitted = fit(network, shards, toys.config(epochs=1), start=start)
    assert (fitted.info.mean, fitted.info.std) == ((0.25,), (0.125,)) != (shards.mean, shards.std)
    (tmp_path / "start.yaml").write_text(
        f"source: file\npath: model.pt\nsha256: '{digest}'\npreprocessing: timm/resnet18.a1_in1k\n"
    )
    told = Start.read(tmp_path / "start.yaml", nowhere)  # what the file says comes first
    assert told is not None
    assert told.weights.preprocessing is not None
    assert told.weights.preprocessing.interpolation == "bicubic"


def test_anothers_file_that_holds_an_info_says_nothing_of_images(tmp_path: Path) -> None:
    torch.save({"info": "of last week", "spec": 1, "state_dict": {"x": torch.zeros(1)}}, tmp_path / "net.pt")
    assert from_file(tmp_path / "net.pt").preprocessing is None


def test_weights_of_other_channels_are_refused(network: NetworkSpec, shards: Dataset, tmp_path: Path) -> None:
    start = expecting(tmp_path, network, Preprocessing((0.5,) * 3, (0.2,) * 3, (8, 8), "bilinear"))
    with pytest.raises(
        WeightsError, match=r"images of 3 channels, the prepared images have 1; set preprocess\.channels"
    ):
        fit(network, shards, toys.config(), start=start)


def test_a_file_that_says_none_gives_none() -> None:
    assert Start.read(toys.REPOSITORY / "networks/weights/none.yaml", nowhere) is None


def test_a_copy_of_the_file_finds_what_lies_beside_the_original(start: Start, tmp_path: Path) -> None:
    (tmp_path / "copies").mkdir()
    copy = tmp_path / "copies/start.yaml"
    copy.write_bytes(start.file.origin.read_bytes())
    found = Start.read(copy, nowhere, relative_to=tmp_path)
    assert found is not None
    assert equal(dict(found.weights.state), dict(start.weights.state))
