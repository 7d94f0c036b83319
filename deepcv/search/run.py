"""`deepcv search`: current shards, one NNI experiment, nested MLflow runs, the best parameters written out."""

import csv
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import yaml

from deepcv import tracking
from deepcv.files import write_text
from deepcv.home import quiet_environment, state_dir
from deepcv.params import document, edit
from deepcv.params.search import SearchParams
from deepcv.params.train import Scalar
from deepcv.search import snapshot
from deepcv.search.channel import EXPERIMENT_VARIABLE, PARENT_RUN_VARIABLE, SNAPSHOT_VARIABLE
from deepcv.search.experiment import TrialResult, run_experiment
from deepcv.search.manager import SearchError, sigterm_exits, stop
from deepcv.search.space import to_nni, to_values
from deepcv.search.tuned import with_tuned

TRIAL_COMMAND = (sys.executable, "-m", "deepcv.search.trial")


def search(
    params: SearchParams, *, experiment: str, epochs: int, params_path: Path, apply: bool, say: Callable[[str], None]
) -> dict[str, Scalar]:
    """Search, print through `say`, and return the best parameters among the trials that ran to their end.

    Runs in the project folder. `experiment` names the MLflow experiment, `epochs` is train.epochs (a trial is not
    stopped in its first quarter). Leaves best.yaml and trials.csv in `<state>/search`. `apply` puts the best parameters
    into `params_path`; where a finished search had the same params.yaml, network files and data, it takes that one's
    best.yaml and does not search. Raises SearchError.
    """
    if not params.space:
        raise SearchError(f"{params_path}: search.space is empty: there is nothing to search")
    text = document.read(params_path)
    snapshot.check_files(params, params_path)
    with sigterm_exits():
        _prepare_images()
        if document.read(params_path) != text:  # `params` are those from before
            raise SearchError(f"{params_path} was edited while the images were prepared: search again")
        parent = state_dir() / "search"
        folder = snapshot.finished(parent, params, params_path) if apply else None
        if folder is not None:
            values: dict[str, Scalar] = yaml.safe_load((folder / snapshot.BEST).read_text(encoding="utf-8"))
            say(
                f"no new search: {params_path}, the network and the data are those of {folder}, which found\n"
                + "".join(f"  {key}: {value}\n" for key, value in values.items())
                + "(`deepcv search` without --apply searches in any case)"
            )
        else:
            folder = _new_folder(parent)
            snapshot.take(folder, params, params_path)
            values = _search(params, experiment, epochs, folder, say)
    if apply:
        edit.write(params_path, with_tuned(document.read(params_path), values, str(params_path)))
        say(
            f"{params_path} has them now; `dvc repro` trains with them. "
            "Where that changed the file, another `deepcv search --apply` searches anew."
        )
    return values


def _prepare_images() -> None:
    """Bring data/shards up to date with DVC, which is interrupted politely where we are: killed, it would leave its locks."""
    command = [sys.executable, "-m", "dvc", "repro", "preprocess"]
    environment = {**os.environ, **quiet_environment()}
    # A group of its own, so that DVC and the stage that it waits for are told by us alone, whatever signal came to us.
    dvc = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, process_group=0)  # noqa: S603 - DVC itself
    try:
        status = dvc.wait()
    except BaseException:  # Ctrl-C, SIGTERM
        stop(dvc)
        raise
    if status != 0:
        raise SearchError("`dvc repro preprocess` failed: its message stands above")


def _search(
    params: SearchParams, experiment: str, epochs: int, folder: Path, say: Callable[[str], None]
) -> dict[str, Scalar]:
    """Run the trials on the snapshot in `folder`; write down and return the best parameters."""
    run_id = tracking.start_search_run(experiment, params.model_dump())
    try:
        results = run_experiment(
            to_nni(params),
            trials=params.trials,
            concurrency=params.concurrency,
            seed=params.seed,
            trial_command=TRIAL_COMMAND,
            folder=folder / "experiment",
            environment={
                **quiet_environment(),
                EXPERIMENT_VARIABLE: experiment,
                PARENT_RUN_VARIABLE: run_id,
                SNAPSHOT_VARIABLE: str(folder),
            },
            grace_steps=max(1, epochs // 4),
            on_progress=_Progress(params, say),
        )
        best = best_of(results)
        values = to_values(params, best.parameters)
        say(table(params, results, best))
        write_text(folder.parent / "trials.csv", as_csv(params, results))
        for place in (folder.parent, folder):
            write_text(place / snapshot.BEST, yaml.safe_dump(values, sort_keys=False))
        tracking.log_params(run_id, {"best": values})
        tracking.log_metrics(run_id, {"val_accuracy": value_of(best)})
    except Exception:
        tracking.finish(run_id, "FAILED")
        raise
    except BaseException:  # Ctrl-C, SIGTERM
        tracking.finish(run_id, "KILLED")
        say(f"search stopped before its end: no best.yaml; its trials so far are in MLflow, below run {run_id}")
        raise
    tracking.finish(run_id, "FINISHED")
    say(f"best parameters: {folder.parent / snapshot.BEST}; all trials: {folder.parent / 'trials.csv'}")
    return values


def best_of(results: Sequence[TrialResult]) -> TrialResult:
    """Return the trial with the highest final value among those that ran to their end, the earliest of equals."""
    ended = [result for result in results if result.status == "succeeded"]
    if ended:
        return max(ended, key=value_of)
    failed = [result for result in results if result.status == "failed"]
    message = f"no trial ran to its end: {len(failed)} of {len(results)} failed"
    if failed:
        log = failed[-1].log
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
        message = "\n".join([f"{message}; {log} ends with:", *lines[-5:]])
    raise SearchError(message)


def value_of(result: TrialResult) -> float:
    """Return the final value of a trial, else its best value so far, else minus infinity."""
    return result.final if result.final is not None else max(result.intermediate, default=float("-inf"))


def table(params: SearchParams, results: Sequence[TrialResult], best: TrialResult) -> str:
    """Return the trials as aligned text, one line each."""
    rows = [["trial", "status", "epochs", "val accuracy", *params.space, ""]]
    for result in results:
        values = to_values(params, result.parameters)
        rows.append(
            [
                str(result.number),
                result.status.replace("_", " "),
                str(len(result.intermediate)),
                _accuracy(result),
                *(_short(values[key]) for key in params.space),
                "<- best" if result is best else "",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def as_csv(params: SearchParams, results: Sequence[TrialResult]) -> str:
    """Return the trials as CSV with every digit."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "id", "status", "epochs", "val_accuracy", *params.space])
    for result in results:
        values = to_values(params, result.parameters)
        value = value_of(result) if result.intermediate or result.final is not None else ""
        row = [result.number, result.id, result.status, len(result.intermediate), value]
        writer.writerow([*row, *(values[key] for key in params.space)])
    return text.getvalue()


class _Progress:
    """Prints a line for every trial that ends: its value, its parameters, the best so far, the time left."""

    def __init__(self, params: SearchParams, say: Callable[[str], None]) -> None:
        self._params = params
        self._say = say
        self._started = time.monotonic()
        self._ended: list[TrialResult] = []

    def __call__(self, result: TrialResult) -> None:
        self._ended.append(result)
        done, trials = len(self._ended), self._params.trials
        whole = [value_of(trial) for trial in self._ended if trial.status == "succeeded"]
        left_s = (time.monotonic() - self._started) / done * (trials - done)
        values = to_values(self._params, result.parameters)
        outcome = {
            "succeeded": _accuracy(result),
            "early_stopped": f"{_accuracy(result)}, stopped after {len(result.intermediate)} epochs",
            "failed": f"failed, see {result.log}",
        }[result.status]
        settings = " ".join(f"{key}={_short(value)}" for key, value in values.items())
        best = f"best {max(whole):.4f}" if whole else "no best yet"
        self._say(f"trial {result.number} ({done}/{trials}): {outcome} | {settings} | {best} | {left_s:.0f} s left")


def _new_folder(parent: Path) -> Path:
    """Create a folder named by the UTC time, so that folders sort by age."""
    while True:
        folder = parent / datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder


def _accuracy(result: TrialResult) -> str:
    return f"{value_of(result):.4f}" if result.intermediate or result.final is not None else "-"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
