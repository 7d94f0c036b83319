"""A training's curves for TensorBoard: `tensorboard --logdir .deepcv/tensorboard` shows those of all trainings."""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deepcv.home import state_dir
from deepcv.task import CLASSIFICATION, Task
from deepcv.tracking import POINT
from deepcv.training.history import EpochRecord, Point

_FLUSH_S = 1.0  # what a kill takes is told again


def folder_of(dataset: str, key: str) -> Path:
    """Where the curve of the training with this key lies; nothing removes it."""
    return state_dir() / "tensorboard" / f"{dataset}-{key}"


class TensorBoard:
    """Writes each epoch and point that it is told to a file in `folder`; where it cannot, it says so once, and the training goes on.

    A process that goes on with a training is told all of them again. Its file begins with the mark by which TensorBoard
    forgets what earlier files hold of them, so that no point is missing or doubled.
    """

    def __init__(self, folder: Path, task: Task = CLASSIFICATION) -> None:
        self._folder = folder
        self._task = task
        self._file: Any = None
        self._failed = False
        self._flushed_s = 0.0

    def epoch(self, record: EpochRecord) -> None:
        """Write the values of one epoch."""
        self._try(lambda: self._write(record.epoch, record.metrics(self._task)))

    def point(self, point: Point) -> None:
        """Write the values of a point within an epoch, as `step/…`, at the number of its step."""
        self._try(lambda: self._write(point.step, {f"{POINT}{key}": value for key, value in point.metrics().items()}))

    def close(self) -> None:
        """Write what still waits to be written."""
        if self._file is not None:
            self._try(self._file.close)

    def _try(self, write: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            write()
        except Exception as error:  # whatever it is, the training is worth more
            self._failed = True
            print(f"train: no more curves for TensorBoard in {self._folder}: {error}", file=sys.stderr)

    def _write(self, step: int, metrics: Mapping[str, float]) -> None:
        from tensorboardX.event_file_writer import EventsWriter  # a GPU machine may have torch and ignite alone
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        now_s = time.time()
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            # Not a SummaryWriter: its thread fails where nobody sees it. The suffix keeps files of one second apart and in order.
            self._file = EventsWriter(str(self._folder / "events"), f".{time.time_ns()}")
            self._file.write_event(Event(wall_time=now_s, step=1, session_log=SessionLog(status=SessionLog.START)))
        values = [Summary.Value(tag=key, simple_value=value) for key, value in metrics.items()]
        self._file.write_event(Event(wall_time=now_s, step=step, summary=Summary(value=values)))
        if now_s - self._flushed_s > _FLUSH_S:
            self._flushed_s = now_s
            self._file.flush()
