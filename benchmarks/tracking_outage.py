"""MLflow's store goes away in the middle of a training: the training goes on meanwhile, and no point is missing or doubled.

    python -m benchmarks.tracking_outage [--quick]

DeepCV's store is a SQLite file in the project's state folder, by design, and no server: what can go away is that file. In one
training another process locks the database exclusively for 60 s (`--quick`: 5 s), so that nobody can even read it; in a second one
it moves the whole store folder aside for as long, as where a mount is lost. `value` is the median wall time of the epochs of the
digits network while the database is locked, `baseline` that of the epochs before and after; keys that begin with `moved_` are of the
second training.
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
from typing import Any

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
from deepcv.training.history import EpochRecord, Point

_NAME = "outage"
_SLOWER = 1.1
# What takes the store away; the arguments are its database and for how many seconds.
_LOCKED = """
import sqlite3, sys, time
database = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
database.execute("BEGIN EXCLUSIVE")
print(flush=True)
time.sleep(float(sys.argv[2]))
database.execute("ROLLBACK")
"""
_MOVED = """
import sys, time
from pathlib import Path
store = Path(sys.argv[1]).parent
aside = store.rename(store.with_name("aside"))
print(flush=True)
time.sleep(float(sys.argv[2]))
aside.rename(store)  # an error where somebody made another store meanwhile
"""
_OUTAGES = {"locked": _LOCKED, "moved": _MOVED}


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
    """Calls the log at each epoch; `script` takes the store away from `before_s` to `before_s + outage_s` of the training."""

    def __init__(self, log: TrainingLog, script: str, outage_s: float) -> None:
        self.log, self.script, self.outage_s, self.before_s = log, script, outage_s, max(3.0, outage_s / 6)
        self.start_s = self.last_s = time.monotonic()
        self.process: subprocess.Popen[bytes] | None = None
        self.epochs_s: dict[bool, list[float]] = {False: [], True: []}  # of those within the outage, and of the others
        self.wait_s: list[float] = []
        self.records: list[EpochRecord] = []
        self.points: list[Point] = []

    def point(self, point: Point) -> None:
        """What `fit` calls at each point within an epoch."""
        self.points.append(point)
        self.log.point(point)

    def epoch(self, record: EpochRecord) -> None:
        """What `fit` calls at the end of each epoch."""
        now_s = time.monotonic()
        away = self.process is not None and self.process.poll() is None
        if self.records:  # the first has warmed up
            self.epochs_s[away].append(now_s - self.last_s)
        self.records.append(record)
        self.log.epoch(record)
        self.wait_s.append(time.monotonic() - now_s)
        if now_s - self.start_s > self.before_s and self.process is None:
            command = [sys.executable, "-c", self.script, str(database_file()), str(self.outage_s)]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
            if self.process.stdout:
                self.process.stdout.readline()  # the store is away
        if self.process and self.process.poll():
            raise SystemExit("the store could not be given back")
        if now_s - self.start_s > 2 * self.before_s + self.outage_s and not away:
            raise EnoughError
        self.last_s = time.monotonic()


def trained(script: str, folder: Path, outage_s: float) -> dict[str, Any]:
    """What came of an outage: epochs within it and else, the points of the run against those of the training."""
    os.environ["DEEPCV_HOME"] = str(folder / "state")
    tracking.connect()
    (folder / "shards").mkdir()
    params = load_section(TrainParams, ROOT / "params.yaml")
    config = replace(TrainConfig.of(params.configuration()), epochs=100_000, batch_size=32)
    network = spec.load(ROOT / params.network, params.network_parameters, params.network_choices)
    log = TrainingLog(
        _NAME, _NAME, {"params": params.model_dump(), "hardware": {}, "data_digest": "", "network_sha256": ""}
    )
    outage = Outage(log, script, outage_s)
    try:
        fit(network, digits(folder / "shards"), config, on_epoch=outage.epoch, on_point=outage.point)
    except EnoughError:
        log.end("FINISHED")
    run_id = tracking.find_run(_NAME, tracking.TRAINING_TAG, _NAME, "FINISHED")
    told = {
        "val_accuracy": [(record.epoch, record.val_accuracy) for record in outage.records],
        f"{tracking.POINT}train_loss": [(point.step, point.train_loss) for point in outage.points],
    }
    found = {
        name: [(one.step, one.value) for one in MlflowClient().get_metric_history(run_id, name)] if run_id else []
        for name in told
    }
    runs = len(MlflowClient().search_runs([tracking.open_experiment(_NAME)]))
    during_s, otherwise_s = (statistics.median(outage.epochs_s[away]) for away in (True, False))
    return {
        "during_s": during_s, "otherwise_s": otherwise_s, "epochs": len(outage.records),
        "epochs_in_outage": len(outage.epochs_s[True]), "runs": runs, "longest_wait_s": max(outage.wait_s),
        "missing": sum(len(dict(told[name]).keys() - dict(found[name]).keys()) for name in told),
        "doubled": sum(len(points) - len(dict(points)) for points in found.values()),
        "whole": runs == 1 and found == told,
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 s instead of 60")
    outage_s = 5.0 if parser.parse_args().quick else 60.0
    with tempfile.TemporaryDirectory() as name:
        locked, moved = (trained(script, Path(name, kind), outage_s) for kind, script in _OUTAGES.items())
    during_s, otherwise_s = locked.pop("during_s"), locked.pop("otherwise_s")
    fast = all(a <= _SLOWER * b for a, b in ((during_s, otherwise_s), (moved["during_s"], moved["otherwise_s"])))
    emit(
        "tracking-outage", value=during_s, baseline=otherwise_s,
        target=f"epochs at most {_SLOWER} times as long, every point there once",
        holds=locked["whole"] and moved["whole"] and fast, n=locked["epochs"], outage_s=outage_s, **locked,
        **{f"moved_{key}": value for key, value in moved.items()},
    )  # fmt: skip


if __name__ == "__main__":
    main()
