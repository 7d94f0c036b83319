"""Where the project's servers listen: `make ui` writes it down, flows and deployments read it."""

import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from deepcv.files import write_text
from deepcv.home import state_dir

HOST = "127.0.0.1"


class PortError(ValueError):
    """An environment variable should hold a port and does not; the message is complete."""


def prefect_port() -> int:
    """Port of the Prefect server."""
    return _port("DEEPCV_PREFECT_PORT", 4200)


def mlflow_port() -> int:
    """Port of the MLflow server."""
    return _port("DEEPCV_MLFLOW_PORT", 5000)


def _port(variable: str, default: int) -> int:
    text = os.environ.get(variable) or str(default)
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise PortError(f"{variable} must be a port (1 to 65535), got {text!r}")
    return int(text)


def prefect_api(port: int) -> str:
    """Address of the API of a Prefect server on this machine."""
    return f"http://{HOST}:{port}/api"


def answers(url: str, timeout_s: float = 2.0) -> bool:
    """Whether an HTTP server answers at `url` with success."""
    try:
        # A proxy of the environment has no business with loopback addresses.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=timeout_s) as reply:
            return bool(reply.status < 400)
    except (urllib.error.URLError, OSError, ValueError):
        return False


def _record() -> Path:
    return state_dir() / "prefect" / "server.json"


def record_servers(prefect: int, mlflow: int) -> None:
    """Write down at which ports this project's servers listen."""
    write_text(_record(), json.dumps({"api": prefect_api(prefect), "mlflow": mlflow}))


def forget_servers() -> None:
    """Remove the record."""
    _record().unlink(missing_ok=True)


def running_server() -> str | None:
    """Return the API address of this project's Prefect server, or None where it does not run."""
    api = str(_recorded().get("api", ""))
    return api if api and answers(f"{api}/health") else None


def mlflow_address() -> str:
    """Where this project's MLflow server listens, or would."""
    return f"http://{HOST}:{_recorded().get('mlflow') or mlflow_port()}"


def _recorded() -> dict[str, Any]:
    try:
        return dict(json.loads(_record().read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}
