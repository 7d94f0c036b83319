"""Image files to class or label probabilities, or numbers, with an exported model; what a registered model runs."""

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
from deepcv.task import CLASSIFICATION, Task

INPUT = "images"
LOGITS = "logits"
PROBABILITIES = "probabilities"
_BATCH = 256


@dataclass(frozen=True)
class ExportInfo:
    """What an exported model says about itself; stored in the ONNX file's metadata.

    `classes` are the names of what `task` learns: of classes, labels or numbers.
    """

    dataset: str
    classes: tuple[str, ...]
    recipe: ImageRecipe
    model_sha256: str
    task: Task = CLASSIFICATION

    def to_metadata(self) -> dict[str, str]:
        """As the key-value strings that ONNX stores."""
        values = {key: value for key, value in asdict(self).items() if key != "task"} | self.task.stored()
        return {f"deepcv.{key}": json.dumps(value) for key, value in values.items()}

    @classmethod
    def from_metadata(cls, metadata: dict[str, str]) -> "ExportInfo":
        """Read what `to_metadata` gave; ValueError where it is not there."""
        try:
            values = {
                key: json.loads(metadata[f"deepcv.{key}"]) for key in ("dataset", "classes", "recipe", "model_sha256")
            }
        except KeyError as error:
            raise ValueError(f"not a model that DeepCV exported: its metadata has no {error}") from error
        task = Task.of_description({"task": json.loads(metadata["deepcv.task"])} if "deepcv.task" in metadata else {})
        recipe = ImageRecipe(**values["recipe"])
        return cls(values["dataset"], tuple(values["classes"]), recipe, values["model_sha256"], task)


class Predictor:
    """An exported model, ready to run on the CPU."""

    def __init__(self, onnx_file: Path) -> None:
        self._session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
        self.info = ExportInfo.from_metadata(self._session.get_modelmeta().custom_metadata_map)

    def answers(self, images_nhwc: UInt8Array) -> NDArray[np.float32]:
        """Probabilities of classes or labels, or numbers (n, k), of prepared uint8 images (n, height, width, channels)."""
        return list(self.run(images_nhwc).values())[-1]

    def run(self, images_nhwc: UInt8Array) -> dict[str, NDArray[np.float32]]:
        """All outputs of the model by name, in the order of `outputs`."""
        names = outputs(self.info.task)
        return dict(zip(names, self._session.run(names, {INPUT: images_nhwc}), strict=True))

    def answers_of_files(self, encoded: Iterable[bytes]) -> NDArray[np.float32]:
        """`answers` of image files' bytes, in order. Raises images.DecodeError."""
        parts = [
            self.answers(np.stack([prepare(content, self.info.recipe) for content in batch]))
            for batch in _batched(encoded)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.info.classes)), np.float32)

    def get_raw_model(self) -> "Predictor":
        """Itself, for whoever loads it through MLflow and asks for `info`."""
        return self

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:  # noqa: ARG002 - MLflow's signature
        """Predict for MLflow: column `image` (bytes of image files) to `columns` of the task.

        A class is `label`, `probability` and all `probabilities`; labels are `labels` (`;` between those that are likely) and
        `probabilities`; numbers have a column each.
        """
        answers, names, task = self.answers_of_files(model_input["image"]), self.info.classes, self.info.task
        rows = [row.astype(float).tolist() for row in answers]
        match task.kind:
            case "classification":
                best = answers.argmax(axis=1)
                probability = answers[np.arange(len(best)), best].astype(float)
                found = {"label": [names[number] for number in best], "probability": probability, "probabilities": rows}
            case "multi_label":
                found = {"labels": [task.in_words(names, row) for row in rows], "probabilities": rows}
            case "regression":
                found = {name: answers[:, place].astype(float) for place, name in enumerate(names)}
        return pd.DataFrame(found, index=model_input.index)


def outputs(task: Task) -> list[str]:
    """The outputs of an exported model; the last is what it answers."""
    return [LOGITS] if task.kind == "regression" else [LOGITS, PROBABILITIES]


def _load_pyfunc(path: str) -> Predictor:
    """MLflow's entry point for a model whose `loader_module` is this one."""
    return Predictor(Path(path))


def _batched(encoded: Iterable[bytes]) -> Iterator[list[bytes]]:
    remaining = iter(encoded)
    while batch := list(islice(remaining, _BATCH)):
        yield batch
