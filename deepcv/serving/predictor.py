"""Image files to class or label probabilities, or numbers, with an exported model; what a registered model runs."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
from numpy.typing import NDArray

from deepcv.images import ImageRecipe, UInt8Array, prepare
from deepcv.task import CLASSIFICATION, FurtherTarget, Task

INPUT = "images"
LOGITS = "logits"
PROBABILITIES = "probabilities"
_BATCH = 256


@dataclass(frozen=True)
class ExportInfo:
    """What an exported model says about itself; stored in the ONNX file's metadata.

    `classes` are the names of what `task` learns: of classes, labels or numbers. It answers the `further` targets too.
    """

    dataset: str
    classes: tuple[str, ...]
    recipe: ImageRecipe
    model_sha256: str
    task: Task = CLASSIFICATION
    further: tuple[FurtherTarget, ...] = ()

    def to_metadata(self) -> dict[str, str]:
        """As the key-value strings that ONNX stores."""
        values = {
            key: value for key, value in asdict(self).items() if key not in ("task", "further")
        } | self.task.stored()
        values |= {"further": [target.stored() for target in self.further]} if self.further else {}
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
        further = tuple(FurtherTarget.of_description(one) for one in json.loads(metadata.get("deepcv.further", "[]")))
        return cls(values["dataset"], tuple(values["classes"]), recipe, values["model_sha256"], task, further)


class Predictor:
    """An exported model, ready to run on the CPU."""

    def __init__(self, onnx_file: Path) -> None:
        self._session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
        self.info = ExportInfo.from_metadata(self._session.get_modelmeta().custom_metadata_map)

    def answers(self, images_nhwc: UInt8Array) -> NDArray[np.float32]:
        """Probabilities of classes or labels, or numbers (n, k), of prepared uint8 images (n, height, width, channels)."""
        return self.run(images_nhwc)[answer(self.info.task)]

    def run(self, images_nhwc: UInt8Array) -> dict[str, NDArray[np.float32]]:
        """All outputs of the model by name, in the order of `outputs`."""
        names = outputs(self.info.task, self.info.further)
        return dict(zip(names, self._session.run(names, {INPUT: images_nhwc}), strict=True))

    def answers_of_files(self, encoded: Iterable[bytes]) -> NDArray[np.float32]:
        """`answers` of image files' bytes, in order. Raises images.DecodeError."""
        return self._run_files(encoded)[answer(self.info.task)]

    def _run_files(self, encoded: Iterable[bytes]) -> dict[str, NDArray[np.float32]]:
        """What the model answers, and the further targets, of image files' bytes."""
        asked = {answer(self.info.task): len(self.info.classes)}
        asked |= {target.of: len(target.names) for target in self.info.further}
        parts: dict[str, list[NDArray[np.float32]]] = {
            name: [np.zeros((0, size), np.float32)] for name, size in asked.items()
        }
        for batch in _batched(encoded):
            found = self.run(np.stack([prepare(content, self.info.recipe) for content in batch]))
            for name, collected in parts.items():
                collected.append(found[name])
        return {name: np.concatenate(collected) for name, collected in parts.items()}

    def get_raw_model(self) -> "Predictor":
        """Itself, for whoever loads it through MLflow and asks for `info`."""
        return self

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:  # noqa: ARG002 - MLflow's signature
        """Predict for MLflow: column `image` (bytes of image files) to `columns` of the task.

        A class is `label`, `probability` and all `probabilities`; labels are `labels` (`;` between those that are likely) and
        `probabilities`; numbers have a column each. So have further targets, in columns that begin with their name.
        """
        made, task, classes = self._run_files(model_input["image"]), self.info.task, self.info.classes
        found = _columns(task, classes, task.columns(classes), made[answer(task)])
        for target in self.info.further:
            found |= _columns(target.task, target.names, target.columns, made[target.of])
        return pd.DataFrame(found, index=model_input.index)


def outputs(task: Task, further: Sequence[FurtherTarget] = ()) -> list[str]:
    """The outputs of an exported model; those of further targets, called as these, are numbers or probabilities of labels."""
    return [*dict.fromkeys((LOGITS, answer(task))), *(target.of for target in further)]


def answer(task: Task) -> str:
    """The output that is the model's answer."""
    return LOGITS if task.kind == "regression" else PROBABILITIES


def _columns(task: Task, names: Sequence[str], columns: Sequence[str], answers: NDArray[np.float32]) -> dict[str, Any]:
    """The columns of a prediction for a target, from probabilities or numbers (n, k); `names` are what it learns."""
    rows = [row.astype(float).tolist() for row in answers]
    values: list[Any]
    match task.kind:
        case "classification":
            best = answers.argmax(axis=1)
            values = [[names[number] for number in best], answers[np.arange(len(best)), best].astype(float), rows]
        case "multi_label":
            values = [[task.in_words(names, row) for row in rows], rows]
        case "regression":
            values = list(answers.T.astype(float))
    return dict(zip(columns, values, strict=True))


def _load_pyfunc(path: str) -> Predictor:
    """MLflow's entry point for a model whose `loader_module` is this one."""
    return Predictor(Path(path))


def _batched(encoded: Iterable[bytes]) -> Iterator[list[bytes]]:
    remaining = iter(encoded)
    while batch := list(islice(remaining, _BATCH)):
        yield batch
