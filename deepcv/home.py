"""Where a project keeps its state: MLflow's database and artifacts, checkpoints, Prefect's home, logs.

State is what DVC does not version. It lies in `<project>/.deepcv`, or in `$DEEPCV_HOME` where that is set.
"""

import os
from pathlib import Path

from deepcv.errors import DeepcvError

# `dvc exp run --temp` and `--queue` work in a copy of the project below this folder of the project itself.
_EXPERIMENT_COPIES = "/.dvc/tmp/exps/"


class NoProjectError(DeepcvError, FileNotFoundError):
    """The working directory belongs to no DeepCV project."""


def project_dir(start: Path | None = None) -> Path:
    """Return the nearest folder at or above `start` (the working directory) that holds a dvc.yaml.

    A DVC experiment's temporary copy counts as the project that it was copied from. Raises NoProjectError.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file():
            return Path(str(folder).split(_EXPERIMENT_COPIES, maxsplit=1)[0])
    raise NoProjectError(f"no dvc.yaml in {here} or above it: run this inside a DeepCV project")


def state_dir() -> Path:
    """Return the project's state folder; it is created if missing."""
    configured = os.environ.get("DEEPCV_HOME")
    folder = Path(configured).expanduser().resolve() if configured else project_dir() / ".deepcv"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def no_proxy_environment() -> dict[str, str]:
    """Environment variables that keep a proxy of the environment away from this machine's own servers."""
    hosts = [os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "localhost,127.0.0.1"]
    return dict.fromkeys(("no_proxy", "NO_PROXY"), ",".join(filter(None, hosts)))


def quiet_environment() -> dict[str, str]:
    """Environment variables that switch off the telemetry of the tools and keep their files inside the state folder."""
    return {
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "true",
        "GX_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_HOME": str(state_dir() / "prefect"),
    }
