"""What an exported model sees in an image: the input of its last linear layer, the penultimate features."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from deepcv.errors import DeepcvError
from deepcv.images import UInt8Array
from deepcv.serving.predictor import INPUT, LOGITS, ExportInfo

# What may stand between the last linear layer and the logits.
_PASSED = {"Add", "Cast", "Div", "Flatten", "Identity", "Mul", "Reshape", "Squeeze", "Sub"}


class FeatureExtractor:
    """An exported model that stops before its last linear layer, on the CPU; `recipe` is how images are prepared.

    A network without such a layer gives its logits. Raises DeepcvError for another file.
    """

    def __init__(self, onnx_file: Path) -> None:
        try:
            model = onnx.load(onnx_file)
            info = ExportInfo.from_metadata({entry.key: entry.value for entry in model.metadata_props})
        except Exception as error:  # onnx raises several kinds for a damaged file
            raise DeepcvError(f"{onnx_file}: not a model that DeepCV exported ({error}); run `dvc repro`") from error
        self.recipe = info.recipe
        self.output = penultimate(model.graph)
        if self.output not in {output.name for output in model.graph.output}:
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(self.output))
        self._session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    def features(self, images_nhwc: UInt8Array) -> NDArray[np.float32]:
        """Features (n, f) of prepared uint8 images (n, height, width, channels)."""
        (values,) = self._session.run([self.output], {INPUT: images_nhwc})
        return np.asarray(values, np.float32).reshape(len(images_nhwc), -1)


def penultimate(graph: onnx.GraphProto) -> str:
    """Name of the value that the last linear layer before the logits takes; that of the logits where there is none."""
    makers = {name: node for node in graph.node for name in node.output}
    constant = {weight.name for weight in graph.initializer}
    for node in graph.node:  # in topological order
        if all(name in constant for name in node.input):
            constant.update(node.output)
    name = LOGITS
    while (node := makers.get(name)) is not None:
        varying = [source for source in node.input if source not in constant]
        if len(varying) == 1 and node.op_type in {"Gemm", "MatMul"}:
            return str(varying[0])
        if len(varying) != 1 or node.op_type not in _PASSED:
            break
        name = varying[0]
    return LOGITS
