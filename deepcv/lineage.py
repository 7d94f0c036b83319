"""Which MLflow run belongs to a model, by content: the stages after `train` write to it, wherever they run."""

import hashlib
import json
import sys
from pathlib import Path

from deepcv import tracking
from deepcv.evaluation.history import read_history
from deepcv.files import sha256


def run_of(model_folder: Path) -> str:
    """Return the run of the model in `model_folder`, written again from its files where the store has none."""
    training = json.loads((model_folder / "training.json").read_text(encoding="utf-8"))
    notes = {key: training[key] for key in ("pieces",) if key in training}
    return tracking.run_of_model(
        tracking.experiment_of(training["dataset"]),
        sha256(model_folder / "model.pt"),
        tracking.run_params(training),
        read_history(model_folder / "history.csv"),
        read_history(steps) if (steps := model_folder / "steps.csv").exists() else [],
        notes,
    )


def write_evaluation(model_folder: Path, evaluation_folder: Path) -> str:
    """Write an evaluation's metrics and files to its model's run, once per content; return the run's id."""
    run_id = run_of(model_folder)
    digest = folder_digest(evaluation_folder)
    if not tracking.has_tag(run_id, tracking.EVALUATION_TAG, digest):
        scores: dict[str, float] = json.loads((evaluation_folder / "metrics.json").read_text(encoding="utf-8"))
        tracking.log_metrics(run_id, {f"test_{key}": value for key, value in scores.items()})
        tracking.log_artifacts(run_id, evaluation_folder, "evaluation")
        tracking.set_tags(run_id, {tracking.EVALUATION_TAG: digest})
    return run_id


def write_training(model_folder: Path, run_id: str) -> None:
    """Write a model's file and learning curve to its run, once per content: `network_registry.network` reads them there."""
    digest = folder_digest(model_folder)
    if not tracking.has_tag(run_id, tracking.TRAINED_TAG, digest):
        tracking.log_artifacts(run_id, model_folder, "training")
        tracking.set_tags(run_id, {tracking.TRAINED_TAG: digest})


def log_evaluation(model_folder: Path, evaluation_folder: Path) -> None:
    """Do what `write_evaluation` does; a store that does not answer is only reported: `register` writes it again."""
    try:
        write_evaluation(model_folder, evaluation_folder)
    except tracking.TrackingError as error:
        print(f"MLflow does not answer ({tracking.reason(error)}); `register` will log the evaluation", file=sys.stderr)  # noqa: T201


def folder_digest(folder: Path) -> str:
    """Sha256 over the names and contents of a folder's files."""
    parts = [f"{path.relative_to(folder)}:{sha256(path)}" for path in sorted(folder.rglob("*")) if path.is_file()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
