import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_sleep_unless_the_user_says_otherwise(given: str | None, expected: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    if given is not None:
        environment["OMP_WAIT_POLICY"] = given
    # libgomp prints what it has read: os.environ alone would not prove that the variable came in time.
    shown = subprocess.run(
        [sys.executable, "-c", "import deepcv, torch; torch.ones(9).sum()"],
        env=environment | {"OMP_DISPLAY_ENV": "VERBOSE"}, capture_output=True, text=True, check=True,
    ).stderr  # fmt: skip
    assert f"OMP_WAIT_POLICY = '{expected}'" in shown


IMPORTERS_OF_MLFLOW = ("deepcv.tracking", "deepcv.registry", "deepcv.provenance", "deepcv.serving.batch")


@pytest.mark.parametrize("module", IMPORTERS_OF_MLFLOW)
def test_mlflow_tells_nobody(module: str) -> None:
    script = f"import {module}; from mlflow.telemetry import client; print(client.get_telemetry_client())"
    silencers = {"MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK", "CI", "PYTEST_CURRENT_TEST"}  # of whoever runs the tests
    environment = {key: value for key, value in os.environ.items() if key not in silencers}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"
