"""A trial's line to NNI, with the standard library: importing NNI in every trial would cost 2.7 CPU-seconds each."""

import json
import os
import time
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

# Set by the search for its trials. (MLFLOW_RUN_ID would make a trial write into the parent's run.)
EXPERIMENT_VARIABLE = "DEEPCV_SEARCH_EXPERIMENT"
PARENT_RUN_VARIABLE = "DEEPCV_SEARCH_PARENT_RUN"
SNAPSHOT_VARIABLE = "DEEPCV_SEARCH_SNAPSHOT"

_RECORD_TIMEOUT_S = 30.0

# A proxy of the environment must never stand between processes of one machine.
_opener = build_opener(ProxyHandler({}))


def request(method: str, url: str, body: object = None, timeout_s: float = 30.0) -> Any:
    """Send a JSON request to a loopback server and return the decoded JSON answer, None for an empty one."""
    data = None if body is None else json.dumps(body, allow_nan=False).encode()
    headers = {"Content-Type": "application/json"}
    with _opener.open(Request(url, data=data, headers=headers, method=method), timeout=timeout_s) as answer:  # noqa: S310 - url is our own manager's
        content = answer.read()
    return json.loads(content) if content and method != "PUT" else None


@dataclass(frozen=True)
class Channel:
    """What a trial that NNI started knows about itself."""

    url: str
    trial_id: str
    parameter_id: int
    parameters: dict[str, Any]

    def report_intermediate(self, sequence: int, value: float) -> None:
        """Report the value after a step; `sequence` counts from 0."""
        self._report("PERIODICAL", sequence, value)

    def report_final(self, value: float) -> None:
        """Report the value that the tuner learns from."""
        self._report("FINAL", 0, value)

    def _report(self, kind: str, sequence: int, value: float) -> None:
        # NNI wants JSON inside JSON inside JSON.
        metric = {
            "parameter_id": self.parameter_id,
            "trial_job_id": self.trial_id,
            "type": kind,
            "sequence": sequence,
            "value": json.dumps(value, allow_nan=False),
        }
        request("PUT", self.url, {"type": "metric", "metric": json.dumps(metric)})


def open_channel() -> Channel:
    """Learn this trial's parameters from NNI's record of it; raise OSError where NNI is gone.

    NNI's own request for parameters hands them out in the order in which trials ask: with two at a time they can be
    swapped, and then NNI books an early stop or a failure on the wrong parameters.
    """
    url, trial_id = os.environ["NNI_TRIAL_COMMAND_CHANNEL"], os.environ["NNI_TRIAL_JOB_ID"]
    parts = urlsplit(url)
    deadline = time.monotonic() + _RECORD_TIMEOUT_S
    while True:
        try:
            job = request("GET", f"{parts.scheme}://{parts.netloc}/api/v1/nni/trial-jobs/{trial_id}")
            record = json.loads(job["hyperParameters"][0])
            return Channel(url, trial_id, record["parameter_id"], record["parameters"])
        except (HTTPError, KeyError, TypeError):  # NNI starts a trial first and writes its record then
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)
