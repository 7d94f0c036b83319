"""A trained classifier as an ONNX file that holds its dtype, layout, normalisation, classes and image recipe."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deepcv.errors import DeepcvError
from deepcv.files import atomic
from deepcv.images import UInt8Array
from deepcv.nn.classifier import Classifier, answering
from deepcv.serving.predictor import INPUT, ExportInfo, Predictor, outputs


class ExportError(DeepcvError):
    """The network has a part that ONNX, or torch's way there, does not know."""


class ParityError(DeepcvError):
    """The exported model does not compute what the trained one does."""


class _Deployed(nn.Module):
    """uint8 images (n, height, width, channels), as files decode, to the outputs of `predictor.outputs`."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images_nhwc: Tensor) -> tuple[Tensor, ...]:
        made = self.classifier(images_nhwc.permute(0, 3, 1, 2))
        logits = made["logits"]
        further = [
            made[output] if target.task.kind == "regression" else torch.sigmoid(made[output])
            for output, target in answering(self.classifier.further).items()
        ]
        match self.classifier.task.kind:
            case "classification":
                return logits, torch.softmax(logits, dim=1), *further
            case "multi_label":
                return logits, torch.sigmoid(logits), *further
            case "regression":
                return logits, *further


def export(classifier: Classifier, info: ExportInfo, path: Path) -> None:
    """Write `path`; equal classifiers give equal bytes, and nothing in it tells where it was made. Raises ExportError."""
    recipe = info.recipe
    example = torch.zeros(2, recipe.height, recipe.width, recipe.channels, dtype=torch.uint8)
    try:
        program = torch.onnx.export(
            _Deployed(classifier).eval(), (example,), dynamo=True, verbose=False,
            input_names=[INPUT], output_names=outputs(info.task, info.further),
            dynamic_shapes={"images_nhwc": {0: torch.export.Dim("n", min=1)}},
        )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(
            f"the network cannot be written as ONNX: {_reason(error)}. Every op of `deepcv ops` can, but networks of timm and "
            "torchvision may hold what cannot: take another of them, or go without the file; the trained model is whole"
        ) from error
    model = cast("torch.onnx.ONNXProgram", program).model_proto
    _strip(model)
    onnx.helper.set_model_props(model, info.to_metadata())
    onnx.checker.check_model(model, full_check=True)
    with atomic(path) as aside:
        aside.write_bytes(model.SerializeToString(deterministic=True))


def _reason(error: BaseException) -> str:
    """The first line of what an error began with: torch wraps it into advice for those who write exporters."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).partition("\n")[0].rstrip(". ")


def check(classifier: Classifier, path: Path, images_nhwc: UInt8Array, tolerance: float) -> float:
    """Compare the file's outputs, run by onnxruntime, with torch's on the same images; return the largest error.

    The error of each value y is |difference| / max(1, |y|). Raises ParityError above `tolerance`.
    """
    with torch.inference_mode():
        expected = _Deployed(classifier).eval()(torch.from_numpy(np.array(images_nhwc)))
    found = Predictor(path).run(np.array(images_nhwc))
    names = {"logits": "logits", **{output: target.of for output, target in answering(classifier.further).items()}}
    # Numbers in standard deviations: their unit may be small.
    scales = {names[name]: (mean.numpy(), std.numpy()) for name, mean, std in classifier.scales() if name in names}
    errors = []
    for (name, answer), other in zip(found.items(), expected, strict=True):
        mean, std = scales.get(name, (0, 1))
        errors.append(_relative((answer - mean) / std, (other.numpy() - mean) / std))
    error = float(np.max(errors))  # NaN where one is
    if not error <= tolerance:  # also true for NaN
        raise ParityError(
            f"{path}: onnxruntime differs from torch by {error:.2e}, more than export.tolerance {tolerance:.0e}"
        )
    return error


def _relative(found: NDArray[Any], expected: NDArray[Any]) -> float:
    return float((np.abs(found - expected) / np.maximum(1, np.abs(expected))).max())


def _strip(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes: they hold stack traces with the paths of this machine."""
    del model.metadata_props[:]
    model.doc_string = ""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer]:
        del value.metadata_props[:]
        value.doc_string = ""
    del model.graph.metadata_props[:]
    for function in model.functions:
        del function.metadata_props[:]
        for node in function.node:
            del node.metadata_props[:]
