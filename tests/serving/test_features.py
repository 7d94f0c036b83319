from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import toys
from onnx import TensorProto, helper

from deepcv.errors import DeepcvError
from deepcv.images import ImageRecipe
from deepcv.nn.classifier import ModelInfo, create
from deepcv.nn.spec import load
from deepcv.serving.features import FeatureExtractor, penultimate
from deepcv.serving.onnx_export import export
from deepcv.serving.predictor import ExportInfo

RECIPE = ImageRecipe(16, 16, 3)


@pytest.mark.parametrize("network", ["networks/digits.yaml", "networks/small.yaml"])
def test_features_are_what_the_last_linear_layer_takes(network: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    info = ModelInfo("toy", ("dark", "light"), vars(RECIPE), (0.5,) * 3, (0.2,) * 3)
    model = create(load(toys.REPOSITORY / network, {}).canonical(), info).eval()
    export(model, ExportInfo("toy", info.classes, RECIPE, "f" * 64), tmp_path / "model.onnx")
    taken: list[torch.Tensor] = []
    model.network.get_submodule("head").register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0].detach()))
    images = np.stack([toys.picture(seed, 16, 16, 3) for seed in range(5)])
    with torch.inference_mode():
        model(torch.from_numpy(images).permute(0, 3, 1, 2))
    extractor = FeatureExtractor(tmp_path / "model.onnx")
    assert extractor.recipe == RECIPE
    np.testing.assert_allclose(extractor.features(images), taken[0].numpy(), rtol=1e-4, atol=1e-5)


def graph(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    weights = [helper.make_tensor(name, TensorProto.FLOAT, [1], [1.0]) for name in ("w", "b")]
    return helper.make_graph(list(nodes), "g", [], [], initializer=weights)


def test_where_the_features_are() -> None:
    linear = helper.make_node("Gemm", ["features", "w", "b"], ["scores"])
    scaled = helper.make_node("Mul", ["w", "scores"], ["logits"])
    assert penultimate(graph(linear, scaled)) == "features"
    turned = helper.make_node("Transpose", ["w"], ["w2"])  # a weight that is computed
    assert penultimate(graph(turned, helper.make_node("MatMul", ["features", "w2"], ["logits"]))) == "features"


def test_a_network_that_ends_otherwise_gives_its_logits() -> None:
    linear = [helper.make_node("Gemm", ["features", "w", "b"], [name]) for name in ("one", "two")]
    assert penultimate(graph(*linear, helper.make_node("Add", ["one", "two"], ["logits"]))) == "logits"
    assert penultimate(graph(helper.make_node("GlobalAveragePool", ["map"], ["logits"]))) == "logits"
    assert penultimate(graph()) == "logits"


@pytest.mark.parametrize("content", [b"", b"no model"])
def test_no_model(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(DeepcvError, match="not a model that DeepCV exported"):
        FeatureExtractor(tmp_path / "x.onnx")
