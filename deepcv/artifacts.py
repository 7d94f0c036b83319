"""The files of registered models; apart from `registry`, so that `register` does not depend on it, nor `train` on `registry`."""

from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

from deepcv import tracking
from deepcv.tracking import RegistryError


def onnx_file(model_uri: str) -> Path:
    """Return the ONNX file of a registered model (`models:/NAME@champion`, `models:/NAME/3`). Raises RegistryError."""
    found = sorted(download(model_uri).rglob("*.onnx"))
    if len(found) != 1:
        raise RegistryError(f"{model_uri}: expected one ONNX file, found {len(found)}; DeepCV registers no such model")
    return found[0]


def download(uri: str) -> Path:
    """Return the folder or file of a registered model or of a run's artifact. Raises RegistryError."""
    tracking.connect()
    try:
        return Path(mlflow.artifacts.download_artifacts(uri))
    except (MlflowException, OSError) as error:
        raise RegistryError(
            f"{uri} cannot be loaded: {error}. `dvc repro` registers a model; `make ui` shows what there is"
        ) from error
