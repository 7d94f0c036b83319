"""The flow with a running server and nothing to do, as Prefect reports its duration, against `dvc repro` alone.

    python -m benchmarks.flow_noop [--quick]

Needs `make ui` (or `python -m flows.servers ui`) and `make deploy` to run, and a project that is up to date.
"""

import argparse
import http
import json
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any

from benchmarks.result import emit
from flows.addresses import running_server

_TIMEOUT_S = 180
_BUSY_S = 10


def call(method: str, url: str, body: dict[str, Any] | None = None) -> Any:
    """One request to Prefect's API; on 503 it asks to be asked again, as Prefect's own clients do."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    deadline = time.monotonic() + _BUSY_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            if error.code != http.HTTPStatus.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
                raise
            time.sleep(1)


def run_deployment(api: str) -> tuple[float, list[str]]:
    """Trigger the deployment; return its duration in seconds and its stages' states."""
    deployment = call("GET", f"{api}/deployments/name/pipeline/pipeline")
    run = call("POST", f"{api}/deployments/{deployment['id']}/create_flow_run", {})
    deadline = time.monotonic() + _TIMEOUT_S
    while (run := call("GET", f"{api}/flow_runs/{run['id']}"))["state_type"] not in {"COMPLETED", "FAILED", "CRASHED"}:
        if time.monotonic() > deadline:
            sys.exit(f"the run is still {run['state_name']} after {_TIMEOUT_S} s; does `make deploy` run?")
        time.sleep(1)
    tasks = call("POST", f"{api}/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    return float(run["total_run_time"]), [task["state_name"] for task in tasks]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 runs instead of 5")
    repeats = 2 if parser.parse_args().quick else 5
    api = running_server() or sys.exit("no server: start `make ui` and `make deploy` first")
    run_deployment(api)  # warm-up
    runs = [run_deployment(api) for _ in range(repeats)]
    repro_s = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "dvc", "repro"], check=True, capture_output=True)
        repro_s.append(time.perf_counter() - start)
    duration_s = statistics.median(seconds for seconds, _ in runs)
    cached = all(states and set(states) == {"Cached"} for _, states in runs)
    emit(
        "flow-noop", value=duration_s, baseline=statistics.median(repro_s), target="<= 2.5 s, every stage Cached",
        holds=duration_s <= 2.5 and cached, n=repeats, every_stage_cached=cached, stages=len(runs[0][1]),
        slowest_s=max(seconds for seconds, _ in runs),
    )  # fmt: skip


if __name__ == "__main__":
    main()
