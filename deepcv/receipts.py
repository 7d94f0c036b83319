"""Receipts that `register` leaves for DVC; they lie beside MLflow's database and go with it.

The output of `register` is a link with an absolute path to its receipt. Where the registry is wiped or moved, the link
points nowhere: DVC sees that the output is gone and registers again.
"""

from pathlib import Path

from deepcv.home import NoProjectError, project_dir, state_dir

LINK = Path(".deepcv/mlflow/registered.json")  # the output of `register`, relative to the project


def store_dir() -> Path:
    """Return the folder of MLflow's database and artifacts."""
    return state_dir() / "mlflow"


def database_file() -> Path:
    """Return the file of MLflow's database."""
    return store_dir() / "mlflow.db"


def receipts_dir() -> Path:
    """Return the folder of the receipts."""
    return store_dir() / "receipts"


def drop_orphans() -> None:
    """Remove receipts whose database is gone, and the link of a project that is a copy of another one.

    DVC then sees that the output of `register` is missing, and `dvc repro` registers again.
    """
    if not database_file().exists():
        for receipt in receipts_dir().glob("*.json"):
            receipt.unlink()
    try:
        link = project_dir() / LINK
    except NoProjectError:
        return  # a model may be loaded anywhere
    if link.is_symlink() and (not link.exists() or link.readlink().parent != receipts_dir()):
        link.unlink()
