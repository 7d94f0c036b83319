"""Image files to class probabilities with an exported model; what a registered model runs."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
from numpy.typing import NDArray

from deepcv.images import ImageRecipe, UInt8Array, prepare

INPUT = "images"
LOGITS = "logits"
PROBABILITIES = "probabilities"
_BATCH = 256


@dataclass(frozen=True)
class ExportInfo:
    """What an exported model says about itself; stored in the ONNX file's metadata."""

    dataset: str
    classes: tuple[str, ...]
    recipe: ImageRecipe
    model_sha256: str

    def to_metadata(self) -> dict[str, str]:
        """As the key-value strings that ONNX stores."""
        return {f"deepcv.{key}": json.dumps(value) for key, value in asdict(self).items()}

    @classmethod
    def from_metadata(cls, metadata: dict[str, str]) -> "ExportInfo":
        """Read what `to_metadata` gave; ValueError where it is not there."""
        try:
            values = {
                key: json.loads(metadata[f"deepcv.{key}"]) for key in ("dataset", "classes", "recipe", "model_sha256")
            }
        except KeyError as error:
            raise ValueError(f"not a model that DeepCV exported: its metadata has no {error}") from error
        return cls(values["dataset"], tuple(values["classes"]), ImageRecipe(**values["recipe"]), values["model_sha256"])


class Predictor:
    """An exported model, ready to run on the CPU."""

    def __init__(self, onnx_file: Path) -> None:
        self._session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
        self.info = ExportInfo.from_metadata(self._session.get_modelmeta().custom_metadata_map)

    def probabilities(self, images_nhwc: UInt8Array) -> NDArray[np.float32]:
        """Class probabilities (n, classes) of prepared uint8 images (n, height, width, channels)."""
        return self.run(images_nhwc)[PROBABILITIES]

    def run(self, images_nhwc: UInt8Array) -> dict[str, NDArray[np.float32]]:
        """All outputs of the model by name."""
        return dict(
            zip([LOGITS, PROBABILITIES], self._session.run([LOGITS, PROBABILITIES], {INPUT: images_nhwc}), strict=True)
        )

    def probabilities_of_files(self, encoded: Iterable[bytes]) -> NDArray[np.float32]:
        """Class probabilities (n, classes) of image files' bytes, in order. Raises images.DecodeError."""
        parts = [
            self.probabilities(np.stack([prepare(content, self.info.recipe) for content in batch]))
            for batch in _batched(encoded)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.info.classes)), np.float32)

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:  # noqa: ARG002 - MLflow's signature
        """Predict for MLflow: column `image` (bytes of image files) to `label`, `probability`, `probabilities`."""
        probabilities = self.probabilities_of_files(model_input["image"])
        best = probabilities.argmax(axis=1)
        return pd.DataFrame(
            {
                "label": [self.info.classes[number] for number in best],
                "probability": probabilities[np.arange(len(best)), best].astype(float),
                "probabilities": [row.astype(float).tolist() for row in probabilities],
            },
            index=model_input.index,
        )


def _load_pyfunc(path: str) -> Predictor:
    """MLflow's entry point for a model whose `loader_module` is this one."""
    return Predictor(Path(path))


def _batched(encoded: Iterable[bytes]) -> Iterator[list[bytes]]:
    remaining = iter(encoded)
    while batch := list(islice(remaining, _BATCH)):
        yield batch
