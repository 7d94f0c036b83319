"""The files of registered models; apart from `registry`, whose pyfunc they do without."""

from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

from deepcv import tracking
from deepcv.tracking import RegistryError


def onnx_file(model_uri: str) -> Path:
    """Return the ONNX file of a registered model (`models:/NAME@champion`, `models:/NAME/3`). Raises RegistryError."""
    tracking.connect()
    try:
        folder = Path(mlflow.artifacts.download_artifacts(model_uri))
    except (MlflowException, OSError) as error:
        raise RegistryError(
            f"{model_uri} cannot be loaded: {error}. `dvc repro` registers a model; `make ui` shows what there is"
        ) from error
    found = sorted(folder.rglob("*.onnx"))
    if len(found) != 1:
        raise RegistryError(f"{model_uri}: expected one ONNX file, found {len(found)}; DeepCV registers no such model")
    return found[0]
