"""MLflow's store goes away in the middle of a training: the training goes on meanwhile, and no point is missing or doubled.

    python -m benchmarks.tracking_outage [--quick]

Another process locks the database exclusively for 60 s (`--quick`: 5 s), so that nobody can even read it. `value` is the
median wall time of the epochs of the digits network in the outage, `baseline` that of the epochs before and after it.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from mlflow import MlflowClient
from sklearn.datasets import load_digits

from benchmarks.result import ROOT, emit
from deepcv import tracking
from deepcv.data.shards import Dataset, open_shards, write_description, write_split
from deepcv.nn import spec
from deepcv.params.base import load_section
from deepcv.params.train import TrainParams
from deepcv.receipts import database_file
from deepcv.stages.training_log import TrainingLog
from deepcv.training.config import TrainConfig
from deepcv.training.fit import fit
from deepcv.training.history import EpochRecord

_NAME = "outage"
_SLOWER = 1.1
_LOCK = """
import sqlite3, sys, time
database = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
database.execute("BEGIN EXCLUSIVE")
print(flush=True)
time.sleep(float(sys.argv[2]))
database.execute("ROLLBACK")
print(flush=True)
"""


class EnoughError(Exception):
    """The training has lasted long enough."""


def digits(folder: Path) -> Dataset:
    """Shards of scikit-learn's digits."""
    bunch = load_digits()
    images_nhwc = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    for split, part in {"train": slice(1257), "val": slice(1257, 1437), "test": slice(1437, None)}.items():
        write_split(folder, split, images_nhwc[part], bunch.target[part], images_nhwc[part].shape)
    recipe = {"height": 8, "width": 8, "channels": 1}
    write_description(folder, name=_NAME, classes=tuple("0123456789"), test_digest="", recipe=recipe)
    return open_shards(folder)


class Outage:
    """Calls the log at each epoch, and has the database locked from `before_s` to `before_s + outage_s` of the training."""

    def __init__(self, log: TrainingLog, before_s: float, outage_s: float) -> None:
        self.log, self.before_s, self.outage_s = log, before_s, outage_s
        self.start_s = self.last_s = time.monotonic()
        self.locker: subprocess.Popen[bytes] | None = None
        self.epochs_s: dict[bool, list[float]] = {False: [], True: []}  # of those within the outage, and of the others
        self.wait_s: list[float] = []
        self.records: list[EpochRecord] = []

    def epoch(self, record: EpochRecord) -> None:
        """What `fit` calls at the end of each epoch."""
        now_s = time.monotonic()
        locked = self.locker is not None and self.locker.poll() is None
        if self.records:  # the first has warmed up
            self.epochs_s[locked].append(now_s - self.last_s)
        self.records.append(record)
        self.log.epoch(record)
        self.wait_s.append(time.monotonic() - now_s)
        if now_s - self.start_s > self.before_s and self.locker is None:
            command = [sys.executable, "-c", _LOCK, str(database_file()), str(self.outage_s)]
            self.locker = subprocess.Popen(command, stdout=subprocess.PIPE)
            if self.locker.stdout:
                self.locker.stdout.readline()  # it has the lock
        if now_s - self.start_s > 2 * self.before_s + self.outage_s and not locked:
            raise EnoughError
        self.last_s = time.monotonic()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 s instead of 60")
    outage_s = 5.0 if parser.parse_args().quick else 60.0
    params = load_section(TrainParams, ROOT / "params.yaml")
    config = replace(TrainConfig.of(params.configuration()), epochs=100_000, batch_size=32)
    network = spec.load(ROOT / params.network, params.network_parameters, params.network_choices)
    training = {"params": params.model_dump(), "hardware": {}, "data_digest": "", "network_sha256": ""}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DEEPCV_HOME"] = str(Path(folder, "state"))
        tracking.connect()
        (shards_folder := Path(folder, "shards")).mkdir()
        log = TrainingLog(_NAME, _NAME, training)
        outage = Outage(log, before_s=max(3.0, outage_s / 6), outage_s=outage_s)
        try:
            fit(network, digits(shards_folder), config, on_epoch=outage.epoch)
        except EnoughError:
            log.end("FINISHED")
        run_id = tracking.find_run(_NAME, tracking.TRAINING_TAG, _NAME, "FINISHED")
        points = MlflowClient().get_metric_history(run_id, "val_accuracy") if run_id else []
        found = [(point.step, point.value) for point in points]
        runs = len(MlflowClient().search_runs([tracking.open_experiment(_NAME)]))
    whole = runs == 1 and found == [(record.epoch, record.val_accuracy) for record in outage.records]
    during_s, otherwise_s = statistics.median(outage.epochs_s[True]), statistics.median(outage.epochs_s[False])
    emit(
        "tracking-outage", value=during_s, baseline=otherwise_s,
        target=f"epochs at most {_SLOWER} times as long, every point there once",
        holds=whole and during_s <= _SLOWER * otherwise_s, n=len(outage.records), outage_s=outage_s,
        epochs_in_outage=len(outage.epochs_s[True]), missing=len({r.epoch for r in outage.records} - {s for s, _ in found}),
        doubled=len(found) - len(dict(found)), runs=runs, longest_wait_s=max(outage.wait_s),
    )  # fmt: skip


if __name__ == "__main__":
    main()
