"""Registered models: versions found by content, and the aliases `champion` and `challenger`."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.schema import Array

from deepcv import tracking
from deepcv.files import sha256
from deepcv.task import CLASSIFICATION, FurtherTarget, Kind, Task

Alias = Literal["champion", "challenger"]
CHAMPION: Alias = "champion"
CHALLENGER: Alias = "challenger"

_ONNX_TAG = "deepcv.onnx_sha256"
_TEST_TAG = "deepcv.test_digest"
_FURTHER_TAG = "deepcv.further_columns"  # of a prediction, a JSON list
_REFERENCE_TAG = "deepcv.reference_sha256"

_NOT_THERE = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}  # of a missing model, of a missing alias


@dataclass(frozen=True)
class Candidate:
    """A model to register under `name`, with the metrics that it reached on the test images of `test_digest`.

    `classes` are the names of what `task` learns: of classes, labels or numbers. It answers the `further` targets too.
    """

    name: str
    run_id: str
    onnx_file: Path
    model_sha256: str
    onnx_sha256: str
    test_digest: str
    metrics: Mapping[str, float]
    classes: tuple[str, ...] = ()
    task: Task = CLASSIFICATION
    further: tuple[FurtherTarget, ...] = ()

    @property
    def signature(self) -> ModelSignature:
        """What the model takes and answers, as `serving.predictor` gives it."""
        answers: list[ColSpec | TensorSpec] = [*_specs(self.task.kind, self.task.columns(self.classes))]
        for target in self.further:
            answers += _specs(target.task.kind, target.columns)
        return ModelSignature(inputs=Schema([ColSpec(DataType.binary, "image")]), outputs=Schema(answers))


def _specs(kind: Kind, columns: Sequence[str]) -> list[ColSpec]:
    """The columns of a prediction for a target of this kind, with their types."""
    types: dict[Kind, list[DataType | Array]] = {
        "classification": [DataType.string, DataType.double, Array(DataType.double)],
        "multi_label": [DataType.string, Array(DataType.double)],
        "regression": [DataType.double] * len(columns),
    }
    return [ColSpec(of, name) for of, name in zip(types[kind], columns, strict=True)]


def register(candidate: Candidate, loader_module: str, requirements: list[str]) -> str:
    """Return the version number of the candidate's content; it is created if the registry has none.

    The version loads through `mlflow.pyfunc`, with `loader_module` as its loader: no pickle is involved.
    """
    client = tracking.connect()
    content = (
        f"tags.`{tracking.MODEL_TAG}` = '{candidate.model_sha256}' and tags.`{_ONNX_TAG}` = '{candidate.onnx_sha256}'"
    )
    known = [
        version
        for version in client.search_model_versions(f"name = '{candidate.name}' and {content}")
        if version.tags.get(_TEST_TAG) == candidate.test_digest and _has_files(version)
    ]
    if known:
        version_number = str(known[0].version)
        for key, value in _tags(candidate).items():  # a changed `evaluate` may have measured anew
            client.set_model_version_tag(candidate.name, version_number, key, value)
        return version_number
    with mlflow.start_run(run_id=candidate.run_id), warnings.catch_warnings():
        # An example would have MLflow run the model in a server of its own; the signature says what goes in.
        warnings.filterwarnings("ignore", message=".*input example was not provided")
        logged = mlflow.pyfunc.log_model(
            name="model", loader_module=loader_module, data_path=str(candidate.onnx_file),
            signature=candidate.signature, pip_requirements=requirements,
        )  # fmt: skip
    tags = {
        tracking.MODEL_TAG: candidate.model_sha256,
        _ONNX_TAG: candidate.onnx_sha256,
        _TEST_TAG: candidate.test_digest,
        **_tags(candidate),
    }
    version: ModelVersion = mlflow.register_model(logged.model_uri, candidate.name, tags=tags)
    return str(version.version)


def run_of(name: str, version: str) -> str:
    """Id of the run that a version was registered from: it need not be the newest that trained the same model."""
    return str(tracking.connect().get_model_version(name, version).run_id)


def keep_reference(name: str, version: str, table: Path) -> None:
    """Keep what a version's data looked like beside its model: a file of its run, told by its digest, which is a tag."""
    client = tracking.connect()
    of_version = client.get_model_version(name, version)
    digest = sha256(table)
    if of_version.tags.get(_REFERENCE_TAG) != digest or reference_of(of_version) is None:
        tracking.log_artifact(str(of_version.run_id), table, f"reference/{digest}")
        client.set_model_version_tag(name, version, _REFERENCE_TAG, digest)


def reference_of(version: ModelVersion) -> Path | None:
    """The file that `keep_reference` kept of a version, no copy; None where there is none, or not as it was."""
    digest = version.tags.get(_REFERENCE_TAG)
    if digest is None:
        return None
    run_id = str(version.run_id)
    try:
        kept = [tracking.artifact_file(run_id, path) for path in tracking.artifact_files(run_id, f"reference/{digest}")]
    except (tracking.RegistryError, OSError):
        return None
    except MlflowException as error:
        if error.error_code in _NOT_THERE:
            return None  # its run was erased
        raise
    return next((path for path in kept if sha256(path) == digest), None)


def _has_files(version: ModelVersion) -> bool:
    """Whether a version's model is still there: its run or the artifacts may have been deleted."""
    try:
        return bool(mlflow.artifacts.list_artifacts(f"models:/{version.name}/{version.version}"))
    except (MlflowException, OSError):
        return False


def _tags(candidate: Candidate) -> dict[str, str]:
    """What `challenge` compares: metrics, and the columns of further targets, where there are any."""
    tags = {
        f"deepcv.metric.{tracking.metric_name(key)}": repr(float(value)) for key, value in candidate.metrics.items()
    }
    return tags | ({_FURTHER_TAG: json.dumps(_further_columns(candidate))} if candidate.further else {})


def _further_columns(candidate: Candidate) -> list[str]:
    return [name for target in candidate.further for name in target.columns]


def challenge(
    name: str, version: str, candidate: Candidate, metric: str, rescore: Callable[[str], Mapping[str, float]]
) -> tuple[Alias, str]:
    """Give `version` the alias that it has earned and return it with a sentence that says why.

    A candidate that is worse than the champion on the same test images becomes the challenger. Where the champion was
    judged on other test images, `rescore(model_uri)` judges it on the candidate's. Further targets do not count; the sentence
    names those columns of the champion's predictions that the candidate's lack.
    """
    client = tracking.connect()
    champion = champion_of(name)
    if metric not in candidate.metrics:
        raise tracking.RegistryError(
            f"register.metric: the evaluation has no {metric}; it has {', '.join(candidate.metrics)}, so set it to one of those"
        )
    score = float(candidate.metrics[metric])
    if champion is None:
        alias, reason = CHAMPION, f"the first champion, {metric} {score:.4f}"
    elif str(champion.version) == version:  # MLflow gives an int where its types say str
        return CHAMPION, f"already the champion, {metric} {score:.4f}"
    else:
        caveat = ""
        known = champion.tags.get(f"deepcv.metric.{metric}")
        if champion.tags.get(_TEST_TAG) == candidate.test_digest and known is not None:
            to_beat = float(known)
        else:
            to_beat = float(rescore(f"models:/{name}/{champion.version}")[metric])
            caveat = "; it was judged on others before and may have been trained on some of these"
        alias = CHAMPION if score >= to_beat else CHALLENGER
        reason = (
            f"{metric} {score:.4f} against {to_beat:.4f} of version {champion.version} on the same test images{caveat}"
        )
        there = _further_columns(candidate)
        if lost := [name for name in json.loads(champion.tags.get(_FURTHER_TAG, "[]")) if name not in there]:
            reason += f"; its predictions have no {', '.join(lost)}, which those of version {champion.version} have"
    client.set_registered_model_alias(name, alias, version)
    challenger = _version_with_alias(client, name, CHALLENGER)
    if alias == CHAMPION and challenger is not None and str(challenger.version) == version:
        client.delete_registered_model_alias(name, CHALLENGER)
    return alias, reason


def champion_of(name: str) -> ModelVersion | None:
    """Return the version with the alias `champion`, or None."""
    return _version_with_alias(tracking.connect(), name, CHAMPION)


def load(model_uri: str) -> Any:
    """Load a registered model (`models:/NAME@champion`, `models:/NAME/3`). Raises RegistryError."""
    tracking.connect()
    try:
        return mlflow.pyfunc.load_model(model_uri)
    except (MlflowException, OSError) as error:
        raise tracking.RegistryError(
            f"{model_uri} cannot be loaded: {error}. `dvc repro` registers a model, "
            "`dvc repro --force --single-item register` registers it again; `make ui` shows what there is"
        ) from error


def _version_with_alias(client: MlflowClient, name: str, alias: Alias) -> ModelVersion | None:
    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in _NOT_THERE:
            return None
        raise  # a database that does not answer is no proof that there is no champion
