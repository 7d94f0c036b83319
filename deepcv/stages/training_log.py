"""The MLflow run of a training, written beside it: a store that goes away costs the training neither time nor points."""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

from deepcv import tracking
from deepcv.errors import DeepcvError
from deepcv.task import CLASSIFICATION, Task
from deepcv.training.history import EpochRecord, Point

_PAUSE_S = 2.0  # between two tries
_GATHER_S = 5.0  # points for one write, of which each costs 20 ms
_PATIENCE_S = 30.0  # at the end of the training


class TrainingLog:
    """Writes each epoch and point once and in order, from a thread of its own; what the store does not take is tried again.

    A process that goes on with a training goes on with its run; `goes_on` says that there are checkpoints, so that a run which was
    closed just before a kill is this one too. Where the store is still away `_PATIENCE_S` after the end,
    `register` writes the run again from the stage's outputs.
    """

    def __init__(
        self, experiment: str, key: str, training: dict[str, Any], task: Task = CLASSIFICATION, goes_on: bool = False
    ) -> None:
        self._experiment = experiment
        self._task = task
        self._params = tracking.run_params(training)
        self._tags = {tracking.TRAINING_TAG: key, "mlflow.source.git.commit": _git_commit()}
        self._statuses = ["RUNNING", "FINISHED"] if goes_on else ["RUNNING"]
        self._run_id = ""
        self._last_epoch: int | None = None  # that the store has; None: it must be asked
        self._last_step: int | None = None  # of a point, likewise
        self._points: list[tuple[Point, float]] = []  # which wait for others, and when they were told
        self._sent_s = time.monotonic()
        self._failure = ""
        self._last_write: Callable[[], None] = self._open
        self._closed = False
        self._writes: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._writes.put(self._open)
        self._writes.put(self._watch)
        # Whoever leaves without `end` does not wait for it: the next process asks the store what is there.
        self._thread = Thread(target=self._work, name="training log", daemon=True)
        self._thread.start()

    def epoch(self, record: EpochRecord) -> None:
        """Log one epoch, unless an earlier process of this training already did."""
        self._writes.put(partial(self._write, record, time.time()))
        self._send_if_due()

    def point(self, point: Point) -> None:
        """Log a point within an epoch soon, with others, unless an earlier process of this training already did."""
        self._points.append((point, time.time()))
        self._send_if_due()

    def note(self, values: Mapping[str, float]) -> None:
        """Tag the run with numbers about how the training went."""
        self._writes.put(lambda: tracking.note(self._run_id, values))

    def pictures(self, draw: Callable[[Path], None]) -> None:
        """Log what `draw` writes into a folder, as the run's artifacts `preview/`."""
        folder = Path(tempfile.mkdtemp(prefix="deepcv-preview-"))
        draw(folder)
        self._writes.put(partial(self._log_pictures, folder))

    def run_id(self) -> str:
        """The run, with all in it that was told so far. Raises DeepcvError where the store stays away for `_PATIENCE_S`."""
        self._send()
        written = Event()
        self._writes.put(written.set)
        if not written.wait(_PATIENCE_S):
            raise DeepcvError(
                f"MLflow does not answer{self._failure}, so that the checkpoints cannot be copied there "
                "(train.archive); they stay where they are, and the next `dvc repro` tries again"
            )
        return self._run_id

    def end(self, status: tracking.Status, tags: Mapping[str, str] | None = None) -> None:
        """Tag the run and close it, waiting a while for a store that is away."""
        self._send()
        self._writes.put(partial(self._close, status, tags or {}))
        self._writes.put(None)
        self._thread.join(_PATIENCE_S)
        if not self._closed:
            self._say(f"MLflow does not answer{self._failure}; `register` will log this training again")

    def _send_if_due(self) -> None:
        if time.monotonic() - self._sent_s >= _GATHER_S:
            self._send()

    def _send(self) -> None:
        self._sent_s = time.monotonic()
        if self._points:
            self._writes.put(partial(self._write_points, self._points))
            self._points = []

    def _work(self) -> None:
        for write in iter(self._writes.get, None):
            while not self._done(write):
                time.sleep(_PAUSE_S)

    def _done(self, write: Callable[[], None]) -> bool:
        """Try it. After an error the store may have it all the same: only the answer was lost.

        Or it lacks what it said to have: SQLite undoes a transaction whose journal was moved away with the store at its end.
        """
        try:
            if self._failure:
                self._last_write()
            write()
        except (tracking.TrackingError, OSError) as error:
            self._last_epoch = self._last_step = None
            if not self._failure:
                self._failure = f" ({tracking.reason(error)})"
                self._say(f"MLflow does not answer{self._failure}; training goes on, its curve is written when it does")
            return False
        if self._failure:
            self._failure = ""
            self._say("MLflow answers again")
        return True

    def _open(self) -> None:
        key = self._tags[tracking.TRAINING_TAG]
        for status in self._statuses:
            if found := tracking.find_run(self._experiment, tracking.TRAINING_TAG, key, status):
                tracking.log_params(found, self._params)  # who opened it may have come no further
                self._run_id = found
                return
        self._run_id = tracking.start_run(self._experiment, "train", self._params, self._tags)

    def _watch(self) -> None:
        try:
            tracking.watch_machine(self._run_id)
        except Exception as error:  # whatever it is, the curve is worth more
            self._say(f"no system metrics: {tracking.reason(error)}")

    def _write(self, record: EpochRecord, at_s: float) -> None:
        if self._last_epoch is None:
            self._last_epoch = tracking.last_step(self._run_id, "val_loss")
        if record.epoch > self._last_epoch:
            tracking.log_metrics(self._run_id, record.metrics(self._task), step=record.epoch, at_s=at_s)
            self._last_epoch = record.epoch
            self._last_write = partial(self._write, record, at_s)

    def _write_points(self, points: list[tuple[Point, float]]) -> None:
        if self._last_step is None:
            self._last_step = tracking.last_step(self._run_id, f"{tracking.POINT}train_loss")
        if new := [(point, at_s) for point, at_s in points if point.step > self._last_step]:
            rows = [{"step": point.step, **point.metrics()} for point, _ in new]
            tracking.log_points(self._run_id, rows, [at_s for _, at_s in new])
            self._last_step = new[-1][0].step
            self._last_write = partial(self._write_points, points)

    def _log_pictures(self, folder: Path) -> None:
        tracking.log_artifacts(self._run_id, folder, "preview")
        shutil.rmtree(folder)

    def _close(self, status: tracking.Status, tags: Mapping[str, str]) -> None:
        tracking.set_tags(self._run_id, tags)
        tracking.finish(self._run_id, status)
        self._closed = True

    def _say(self, text: str) -> None:
        print(f"train: {text}", file=sys.stderr)


def _git_commit() -> str:
    """Hash of HEAD, empty outside of git."""
    command = ["git", "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603 - a fixed command
