"""MLflow runs: where they are kept, how they are found by content, how they are written.

The store is `<state>/mlflow`: `mlflow.db` (SQLite), `artifacts/`, and the receipt that `register` leaves for DVC.
"""

import contextlib
import hashlib
import itertools
import logging
import re
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run
from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from sqlalchemy.exc import SQLAlchemyError

from deepcv.errors import DeepcvError
from deepcv.files import write_text
from deepcv.receipts import MODEL_TAG as MODEL_TAG
from deepcv.receipts import database_file, drop_orphan, store_dir

# MLflow prints a traceback for every error that it also raises; the caller says it in one line.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
logging.getLogger("mlflow.system_metrics").setLevel(
    logging.CRITICAL
)  # it tells of its start, and of GPUs that are not there

TrackingError = MlflowException
Status = Literal["FINISHED", "FAILED", "KILLED"]

EVALUATION_TAG = "deepcv.evaluation_sha256"
TRAINING_TAG = "deepcv.training_key"
PARENT_TAG = "mlflow.parentRunId"  # MLflow's own: a trial has its search's run
TRAINED_TAG = "deepcv.trained_files_sha256"
POINT = "step/"  # begins the names of what is logged within epochs, at the number of the step

_PARAM = re.compile(r"[\w.\- :]+")  # what MLflow takes for the name of a param, but for paths
_NO_METRIC = re.compile(r"[^\w.\- ]")  # not in a metric's name; MLflow takes `/` and `:` too, but not everywhere
_LONGEST_METRIC = 200
_MOST_METRICS = 1000  # that MLflow takes at once
_BUSY_S = 10.0  # how long another process may have the database for itself

# Every column in which MLflow stores an artifact location as an absolute path.
_PATH_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


class RegistryError(DeepcvError):
    """The registry has not what was asked for."""


def experiment_of(dataset: str) -> str:
    """Name of the MLflow experiment and of the registered model for a dataset."""
    return f"deepcv-{dataset}"


def metric_name(name: str) -> str:
    """A metric's name as MLflow takes it: of a further target it has the name of a column, which may be any text.

    What is not kept as it is ends in a digest, so that no two names become one.
    """
    taken = _NO_METRIC.sub("_", name)
    if len(taken) > _LONGEST_METRIC:
        taken = taken[: _LONGEST_METRIC - 50] + taken[-50:]
    return name if taken == name else f"{taken}_{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def run_params(training: Mapping[str, Any]) -> dict[str, Any]:
    """Params of a training's run, from what data/model/training.json says."""
    digests = {key: training[key] for key in ("data_digest", "network_sha256")}
    return {**training["params"], "hardware": training["hardware"], **digests}


def store_uri() -> str:
    """SQLAlchemy address of the database."""
    return f"sqlite:///{database_file()}"


def connect() -> MlflowClient:
    """Open the store, creating it (about 8 s) or mending its paths where that is needed; make it mlflow's default."""
    folder = store_dir()
    folder.mkdir(parents=True, exist_ok=True)
    drop_orphan()
    _check_readable()
    mlflow.set_tracking_uri(store_uri())
    mlflow.set_registry_uri(store_uri())
    try:
        client = MlflowClient()
        client.search_experiments(max_results=1)  # migrates a new or older database
    except SQLAlchemyError as error:  # MLflow wraps errors of its queries, not those of opening the database
        raise TrackingError(f"{database_file()} cannot be opened: {error}") from error
    _mend_paths(folder)
    return client


def open_experiment(name: str) -> str:
    """Return the experiment's id; it is created if missing."""
    client = connect()
    if (found := client.get_experiment_by_name(name)) is not None:
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name, artifact_location=(store_dir() / "artifacts" / name).as_uri()))
    except MlflowException:
        if (found := client.get_experiment_by_name(name)) is None:
            raise
        return str(found.experiment_id)  # another process created it meanwhile


def start_run(experiment: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> str:
    """Open a run with flat params and return its id."""
    experiment_id = open_experiment(experiment)
    client = MlflowClient()
    run_id = str(client.create_run(experiment_id, run_name=name, tags=dict(tags)).info.run_id)
    log_params(run_id, params)
    return run_id


def start_search_run(experiment: str, params: Mapping[str, Any]) -> str:
    """Open the run that a search's trials nest under."""
    return start_run(experiment, "search", params, {})


def start_trial_run(experiment: str, parent_run_id: str, params: Mapping[str, Any]) -> str:
    """Open a trial's run, nested under its search's."""
    return start_run(experiment, "trial", params, {PARENT_TAG: parent_run_id})


def log_params(run_id: str, params: Mapping[str, Any]) -> None:
    """Write params; a nested mapping becomes dotted names."""
    MlflowClient().log_batch(run_id, params=[Param(key, value) for key, value in flat(params).items()])


def flat(params: Mapping[str, Any]) -> dict[str, str]:
    """Params as MLflow has them: dotted names and texts; a mapping with keys that it takes for no names is one text."""
    return {key: str(value) for key, value in _flatten("", params)}


def log_metrics(run_id: str, values: Mapping[str, float], step: int = 0, at_s: float | None = None) -> None:
    """Write one step's metrics in one batch; `at_s` (Unix time) is when they were measured, by default now.

    All of them or none are written. The same with the same `at_s` may be written again: MLflow keeps one of equal points.
    """
    at_ms = int(1000 * (time.time() if at_s is None else at_s))
    MlflowClient().log_batch(
        run_id, metrics=[Metric(metric_name(key), float(value), at_ms, step) for key, value in values.items()]
    )


def log_points(run_id: str, points: Sequence[Mapping[str, float]], times_s: Sequence[float] | None = None) -> None:
    """Write points within epochs as metrics `step/…`; each has its number under `step`, and `times_s` (Unix time) are theirs.

    Some may be written where this fails, then they are the first ones.
    """
    made = [
        [Metric(f"{POINT}{key}", float(value), int(1000 * at_s), int(point["step"])) for key, value in point.items() if key != "step"]
        for point, at_s in zip(points, times_s or [time.time()] * len(points), strict=True)
    ]  # fmt: skip
    at_once = _MOST_METRICS // max(map(len, made), default=1)  # a point is there with all of its values, or not at all
    for start in range(0, len(made), at_once):
        MlflowClient().log_batch(run_id, metrics=list(itertools.chain(*made[start : start + at_once])))


def watch_machine(run_id: str) -> None:
    """Log CPU, memory, disk, network and GPUs of this machine every 10 s until the run, this process or the store ends.

    MLflow's environment variables are obeyed; this is on where MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING is not set.
    """
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor  # late: a training alone needs it

    if MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.get() or not MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING.is_set():
        SystemMetricsMonitor(run_id, resume_logging=True).start()


def log_curve(run_id: str, steps: Sequence[Mapping[str, float]]) -> None:
    """Write a whole learning curve; each step has its number under `epoch`."""
    for values in steps:
        log_metrics(run_id, {k: v for k, v in values.items() if k != "epoch"}, step=int(values["epoch"]))


def log_artifacts(run_id: str, folder: Path, artifact_path: str) -> None:
    """Copy a folder's files to the run."""
    MlflowClient().log_artifacts(run_id, str(folder), artifact_path)


def log_artifact(run_id: str, file: Path, artifact_path: str) -> None:
    """Copy one file to a folder of the run; there it is whole or not there."""
    MlflowClient().log_artifact(run_id, str(file), artifact_path)


def log_json(run_id: str, content: Mapping[str, Any], artifact_file: str) -> None:
    """Write plain values to a JSON file of the run."""
    MlflowClient().log_dict(run_id, dict(content), artifact_file)


def artifact_files(run_id: str, folder: str) -> list[str]:
    """Paths of all files below a folder of the run; none where there is no such folder."""
    found: list[str] = []
    for entry in MlflowClient().list_artifacts(run_id, folder):
        found += artifact_files(run_id, entry.path) if entry.is_dir else [str(entry.path)]
    return found


def artifact_file(run_id: str, path: str) -> Path:
    """The file that the run holds under this path: itself, no copy of it. Raises RegistryError."""
    try:
        return Path(_repository(run_id).download_artifacts(path))  # MlflowClient's would leave a copy in /tmp
    except MlflowException as error:
        raise RegistryError(f"MLflow run {run_id}: {path} cannot be read: {reason(error)}") from error


def delete_artifact(run_id: str, path: str) -> None:
    """Remove one file of a run."""
    _repository(run_id).delete_artifacts(path)


def _repository(run_id: str) -> ArtifactRepository:
    return get_artifact_repository(MlflowClient().get_run(run_id).info.artifact_uri)


def set_tags(run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run."""
    for key, value in tags.items():
        MlflowClient().set_tag(run_id, key, value)


def note(run_id: str, values: Mapping[str, float]) -> None:
    """Tag a run with numbers about how its training went, such as `deepcv.pieces`."""
    set_tags(run_id, {f"deepcv.{name}": f"{value:.6g}" for name, value in values.items()})


def finish(run_id: str, status: Status = "FINISHED") -> None:
    """Close a run."""
    MlflowClient().set_terminated(run_id, status)


def find_run(experiment: str, tag: str, value: str, status: str | None = None) -> str | None:
    """Return the id of the newest run with this tag, or None."""
    experiment_id = open_experiment(experiment)
    wanted = f"tags.`{tag}` = '{value}'" + (f" and attributes.status = '{status}'" if status else "")
    found: list[Run] = MlflowClient().search_runs([experiment_id], wanted, max_results=1)
    return str(found[0].info.run_id) if found else None


def read_run(run_id: str) -> Run:
    """Return a run by its id. Raises RegistryError."""
    connect()
    try:
        return MlflowClient().get_run(run_id)
    except MlflowException as error:
        raise RegistryError(f"{reason(error)}; `make ui` shows the runs that there are") from error


def run_of_model(
    experiment: str, model_sha256: str, params: Mapping[str, Any], curve: Sequence[Mapping[str, float]],
    points: Sequence[Mapping[str, float]] = (), notes: Mapping[str, float] | None = None,
) -> str:  # fmt: skip
    """Return the run that trained this model; where the store has none, write one again from the stage's outputs."""
    known = find_run(experiment, MODEL_TAG, model_sha256)
    if known is not None:
        return known
    run_id = start_run(experiment, "train", params, {"deepcv.restored": "true"})
    log_curve(run_id, curve)
    log_points(run_id, points)
    note(run_id, notes or {})
    set_tags(run_id, {MODEL_TAG: model_sha256})  # last: a run that was cut off is not found as a whole one
    finish(run_id)
    return run_id


def last_step(run_id: str, metric: str) -> int:
    """Return the highest step at which a run has this metric, 0 where it has none."""
    return max((int(point.step) for point in MlflowClient().get_metric_history(run_id, metric)), default=0)


def reason(error: Exception) -> str:
    """First line of an error; MLflow's messages go on with SQL."""
    return str(error).partition("\n")[0]


def has_tag(run_id: str, tag: str, value: str) -> bool:
    """Whether a run has this tag value."""
    return bool(MlflowClient().get_run(run_id).data.tags.get(tag) == value)


def _flatten(prefix: str, values: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and all(_PARAM.fullmatch(inner) for inner in value):
            yield from _flatten(f"{name}.", value)
        else:
            yield name, value


def _check_readable() -> None:
    """Raise TrackingError where the database cannot be read now: MLflow would try to open it for minutes."""
    if database_file().exists():
        try:
            address = f"{database_file().as_uri()}?mode=rw"
            with contextlib.closing(sqlite3.connect(address, uri=True, timeout=_BUSY_S)) as database:
                database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.Error as error:
            raise TrackingError(f"{database_file()} cannot be opened: {error}") from error


def _mend_paths(folder: Path) -> None:
    """Rewrite artifact locations after the state folder was moved: MLflow stores them absolutely."""
    marker = folder / "location.txt"
    here = str(folder)
    before = marker.read_text(encoding="utf-8") if marker.exists() else here
    if before != here:
        try:
            with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
                for table, column in _PATH_COLUMNS:
                    for old, new in {f"{before}/": f"{here}/", f"{quote(before)}/": f"{quote(here)}/"}.items():
                        # Table and column come from the constant above, never from outside.
                        database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (old, new))  # noqa: S608
        except sqlite3.Error as error:
            raise TrackingError(f"the artifact paths in {folder / 'mlflow.db'} cannot be mended: {error}") from error
    if not marker.exists() or before != here:
        write_text(marker, here)
