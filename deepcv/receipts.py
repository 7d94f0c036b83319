"""The receipt that `register` leaves for DVC: its only output, content only, beside MLflow's database.

DVC does not see the registry. Where the receipt is gone, `dvc repro` registers again.
"""

import json
import os
from pathlib import Path

from deepcv.home import NoProjectError, project_dir, state_dir

# Tag of an MLflow run: the content of the model that it trained. It stands here because flows/ reads it without MLflow.
MODEL_TAG = "deepcv.model_sha256"
RECEIPT = Path(".deepcv/mlflow/registered.json")  # relative to the project


def store_dir() -> Path:
    """Return the folder of MLflow's database and artifacts."""
    return state_dir() / "mlflow"


def database_file() -> Path:
    """Return the file of MLflow's database."""
    return store_dir() / "mlflow.db"


def drop_orphan() -> None:
    """Remove the receipt where its database is gone, or where it is that of an experiment, which moved no alias."""
    try:
        receipt = project_dir() / RECEIPT
    except NoProjectError:
        return  # a model may be loaded anywhere
    if not database_file().exists() or (_is_of_experiment(receipt) and not os.environ.get("DVC_EXP_NAME")):
        receipt.unlink(missing_ok=True)


def _is_of_experiment(receipt: Path) -> bool:
    try:
        return "experiment" in json.loads(receipt.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
