"""Stage `train`: fit the network that `train.network` describes; every epoch goes to MLflow."""

import csv
import hashlib
import io
import json
import shutil
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from deepcv import tracking
from deepcv.data.shards import Dataset, open_shards
from deepcv.files import sha256, write_text
from deepcv.home import state_dir
from deepcv.nn import classifier, spec
from deepcv.params.base import load_section
from deepcv.params.train import TrainParams
from deepcv.stages import entry
from deepcv.training.fit import EpochRecord, TrainConfig, fit

SHARDS = Path("data/shards")
MODEL = Path("data/model")
_KEPT_TRAININGS = 3


def main() -> None:
    """Read data/shards and the network file, write data/model."""
    params = load_section(TrainParams)
    shards = open_shards(SHARDS)
    network = spec.load(Path(params.network), params.network_parameters)
    spec.build(network, input_shape=shards.input_shape, classes=len(shards.classes))  # a misfit opens no run
    config = TrainConfig(**params.model_dump(exclude={"network", "network_parameters"}))
    key = training_key(params, shards)
    log = TrainingLog(tracking.experiment_of(shards.name), key, params.model_dump())
    fitted = fit(network, shards, config, checkpoints=checkpoint_folder(key), on_epoch=log.epoch, progress=True)
    write_outputs(fitted, network.canonical(), params)
    log.end(sha256(MODEL / "model.pt"))


def write_outputs(fitted: Any, canonical_spec: dict[str, Any], params: TrainParams) -> None:
    """Write the model file, the learning curve and what `auto` became."""
    MODEL.mkdir(parents=True, exist_ok=True)
    table = io.StringIO()
    writer = csv.DictWriter(table, [field.name for field in fields(EpochRecord)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(record) for record in fitted.history)
    write_text(MODEL / "history.csv", table.getvalue())
    training = {
        "dataset": fitted.info.dataset,
        "params": params.model_dump(),
        "hardware": asdict(fitted.hardware),
    }
    write_text(MODEL / "training.json", json.dumps(training, indent=2) + "\n")
    classifier.save(MODEL / "model.pt", fitted.classifier, canonical_spec, fitted.info)


def training_key(params: TrainParams, shards: Dataset) -> str:
    """Digest of everything that decides the result: params, network file, data, code that is loaded, library versions."""
    digest = hashlib.sha256(json.dumps([params.model_dump(), shards.digest], sort_keys=True).encode())
    sources = [module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "deepcv"]
    for path in [params.network, "versions.yaml", *sorted(source for source in sources if source)]:
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()[:16]


def checkpoint_folder(key: str) -> Path:
    """Folder of this training's checkpoints; those of older trainings but the last few are removed."""
    folder = state_dir() / "checkpoints" / key
    folder.mkdir(parents=True, exist_ok=True)
    folder.touch()
    others = sorted((f for f in folder.parent.iterdir() if f != folder), key=lambda f: f.stat().st_mtime, reverse=True)
    for old in others[_KEPT_TRAININGS - 1 :]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


class TrainingLog:
    """The MLflow run of this training. A store that fails does not stop the training: `register` writes what is missing."""

    def __init__(self, experiment: str, key: str, params: dict[str, Any]) -> None:
        self._run_id: str | None = None
        self._logged_epochs = 0
        try:
            interrupted = tracking.find_run(experiment, tracking.TRAINING_TAG, key, status="RUNNING")
            self._logged_epochs = tracking.last_step(interrupted, "val_accuracy") if interrupted else 0
            self._run_id = interrupted or tracking.start_run(experiment, "train", params, {tracking.TRAINING_TAG: key})
        except tracking.TrackingError as error:
            self._lost(error)

    def epoch(self, record: EpochRecord) -> None:
        """Log one epoch, unless an earlier process of this training already did."""
        if self._run_id is None or record.epoch <= self._logged_epochs:
            return
        try:
            values = {key: value for key, value in asdict(record).items() if key != "epoch"}
            tracking.log_metrics(self._run_id, values, step=record.epoch)
        except tracking.TrackingError as error:
            self._lost(error)

    def end(self, model_sha256: str) -> None:
        """Tag the run with the model that it made, and close it."""
        if self._run_id is None:
            return
        try:
            tracking.set_tags(self._run_id, {tracking.MODEL_TAG: model_sha256})
            tracking.finish(self._run_id)
        except tracking.TrackingError as error:
            self._lost(error)

    def _lost(self, error: Exception) -> None:
        self._run_id = None
        print(
            f"train: MLflow does not answer ({tracking.reason(error)}); training goes on, `register` will log it again",
            file=sys.stderr,
        )


if __name__ == "__main__":
    entry.run(main)
