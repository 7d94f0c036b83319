"""DeepCV: from a folder of images to a registered vision model."""

import os

# OpenMP's threads spin while they wait for each other. Beside one busy process on two cores, a training step of two threads
# took 1742 ms; asleep 242 ms. torch's OpenMP reads this when it is loaded, `python -m deepcv.…` loads this file before.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Read when MLflow and Great Expectations are imported, whichever of our modules does so first. DVC and Prefect run in
# processes of their own: `deepcv.home.quiet_environment`.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
