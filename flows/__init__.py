"""Prefect flows over the graph of dvc.yaml.

Prefect and DVC read their environment when they are imported, so importing this package is what sets it: telemetry
off, Prefect's home inside the project's state folder, whatever the environment says, and no proxy before the servers
of this machine.
"""

import os

from deepcv.home import no_proxy_environment, quiet_environment


def _set_environment() -> None:
    try:
        os.environ.update(quiet_environment())
    except FileNotFoundError:  # outside a project: `flows` stays importable, a flow then says what is missing
        return
    os.environ.update(no_proxy_environment())
    # An ephemeral server (no `make ui`) takes 10-16 s to start, and longer than Prefect's 20 s on a busy machine.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")


_set_environment()
