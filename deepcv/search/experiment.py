"""One NNI experiment from start to end: local trials, TPE, median stopping."""

import json
import os
import shlex
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deepcv.search.manager import Manager, SearchError, running

Status = Literal["succeeded", "early_stopped", "failed"]

# NNI takes the mark of an early stop from a flag that it sets too late, and mostly says USER_CANCELED.
_STATUS: Mapping[str, Status] = {
    "SUCCEEDED": "succeeded",
    "EARLY_STOPPED": "early_stopped",
    "USER_CANCELED": "early_stopped",
    "FAILED": "failed",
    "SYS_CANCELED": "failed",
}
_POLL_S = 0.5
_TUNER_START_S = 150.0  # importing NNI takes 3 CPU-seconds; loopback.js gives the tuner 120 s
_DISPATCHER_SPAWN_S = 3.0
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class TrialResult:
    """A finished trial: `parameters` as NNI has them, `intermediate` values by step, `final` if it reported one."""

    number: int
    id: str
    parameters: dict[str, Any]
    status: Status
    intermediate: list[float]
    final: float | None
    log: Path


def run_experiment(
    space: Mapping[str, Any],
    *,
    trials: int,
    concurrency: int,
    seed: int,
    trial_command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str] | None = None,
    grace_steps: int = 1,
    on_progress: Callable[[TrialResult], None] = lambda _result: None,
) -> list[TrialResult]:
    """Run `trials` trials of `trial_command` and return them by number; fewer where a finite space is exhausted.

    The tuner maximises the final value. A trial is stopped when, after `grace_steps` steps, its best value is below the
    median of the running averages of finished trials. NNI's files lie in `folder`, an absolute path of a new folder;
    trials run in the working directory with `environment` added to theirs. `on_progress` gets every trial as it ends.

    No process outlives the call, however it ends. Raises SearchError if NNI's manager or tuner dies or hangs.
    """
    folder.mkdir(parents=True)
    with running(folder, environment or {}) as manager:
        config = _config(space, trials, concurrency, seed, trial_command, folder, grace_steps)
        _start(manager, config)
        reported: set[str] = set()
        last_sign_of_life = time.monotonic()
        while True:
            manager.check_alive()
            status = manager.get("/check-status")["status"]
            jobs = manager.get("/trial-jobs")
            results = _finished(manager, jobs)
            for result in results:
                if result.id not in reported:
                    reported.add(result.id)
                    on_progress(result)
            busy = len(jobs) > len(results)
            if status == "DONE" or (status == "TUNER_NO_MORE_TRIAL" and not busy):
                return results
            if busy:
                last_sign_of_life = time.monotonic()
            if time.monotonic() - last_sign_of_life > _PATIENCE_S:
                raise SearchError(
                    f"NNI has started no trial for {_PATIENCE_S:.0f} s, after {len(results)} of {trials}; "
                    f"its logs: {manager.logs}"
                )
            time.sleep(_POLL_S)


def _start(manager: Manager, config: Mapping[str, Any]) -> None:
    """Hand the experiment over; NNI answers when the tuner has connected, and does not see a tuner that died first."""
    failures: list[OSError] = []

    def post() -> None:
        try:
            manager.post("/experiment", config, _TUNER_START_S)
        except OSError as error:
            failures.append(error)

    started = time.monotonic()
    thread = threading.Thread(target=post, daemon=True)  # a daemon: it must not hold up an exit
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_S)
        if time.monotonic() - started > _DISPATCHER_SPAWN_S:
            manager.check_alive()
    if failures:
        manager.check_alive()
        raise SearchError(f"NNI refused the experiment ({failures[0]}); its logs: {manager.logs}") from failures[0]


def _config(
    space: Mapping[str, Any],
    trials: int,
    concurrency: int,
    seed: int,
    trial_command: Sequence[str],
    folder: Path,
    grace_steps: int,
) -> dict[str, Any]:
    """Return what nni.experiment.ExperimentConfig would send; a test holds the two together.

    Building it with NNI's class would import NNI here, and NNI decides at its import to write into the real home.
    """
    # `exec`: NNI's signals must reach the trial and not a shell. HOME: NNI's own is a folder of the experiment.
    home = [f"HOME={os.environ['HOME']}"] if "HOME" in os.environ else ["-u", "HOME"]
    command = "exec " + shlex.join(["env", *home, *trial_command])
    code_directory = str(Path.cwd())
    return {
        "experimentType": "hpo",
        "searchSpace": dict(space),
        "trialCommand": command,
        "trialCodeDirectory": code_directory,
        "trialConcurrency": concurrency,
        "maxTrialNumber": trials,
        "useAnnotation": False,
        "debug": False,
        "logLevel": "info",
        "experimentWorkingDirectory": str(folder),
        "tuner": {
            "className": "deepcv.search.nni.TolerantTpe",
            "codeDirectory": str(Path(__file__).parents[2]),
            "classArgs": {"seed": seed, "dispatched": True},
        },
        "assessor": {"name": "Medianstop", "classArgs": {"optimize_mode": "maximize", "start_step": grace_steps}},
        "trainingService": {
            "platform": "local",
            "trialCommand": command,
            "trialCodeDirectory": code_directory,
            "debug": False,
            "maxTrialNumberPerGpu": 1,
            "reuseMode": False,
        },
    }


def _finished(manager: Manager, jobs: list[dict[str, Any]]) -> list[TrialResult]:
    ended = [job for job in jobs if job["status"] in _STATUS]
    if not ended:
        return []
    metrics = manager.get("/metric-data")
    results = []
    for job in ended:
        trial_id = job["trialJobId"]
        own = [metric for metric in metrics if metric["trialJobId"] == trial_id]
        values = {metric["sequence"]: _number(metric) for metric in own if metric["type"] == "PERIODICAL"}
        finals = [_number(metric) for metric in own if metric["type"] == "FINAL"]
        status = _STATUS[job["status"]]
        results.append(
            TrialResult(
                number=job["sequenceId"],
                id=trial_id,
                parameters=json.loads(job["hyperParameters"][0])["parameters"],
                status="failed" if status == "succeeded" and not finals else status,
                intermediate=[values[step] for step in sorted(values)],
                final=finals[0] if finals else None,
                log=manager.trials_folder / trial_id / "trial.stderr",
            )
        )
    return sorted(results, key=lambda result: result.number)


def _number(metric: Mapping[str, Any]) -> float:
    return float(json.loads(json.loads(metric["data"])))
