"""What a person sees of a stage in Prefect: its output in the run's log, its progress and its pictures as artifacts."""

import base64
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast
from uuid import UUID

from prefect.artifacts import Artifact, create_image_artifact, create_progress_artifact, update_progress_artifact
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger

PROGRESS_PERIOD_S = 2.0
MAX_PICTURE_BYTES = 4 * 2**20  # they are rows of Prefect's database
_PERCENT = re.compile(r"(\d{1,3})%\|")  # tqdm: `train:  40%|████      | 4/10 [00:02<00:03]`


class StageLog:
    """Writes a stage's output to the log of the task run it is used in; all lines, few progress lines."""

    def __init__(self, stage: str, commands: int) -> None:
        self._logger = get_run_logger()
        self._stage = stage
        self._commands = max(1, commands)
        self._started = 0
        self._artifact: UUID | None = None
        self._answers = True
        self._progress_at = -PROGRESS_PERIOD_S

    def command(self) -> None:
        """A command of the stage starts; the first one opens the progress artifact."""
        self._started += 1
        if self._started == 1:
            with self._tolerant():
                key = f"stage-{_slug(self._stage)}"
                self._artifact = cast(UUID, create_progress_artifact(0.0, key=key, description=self._stage))

    def line(self, text: str) -> None:
        """Log a line."""
        self._logger.info("%s", text)

    def progress(self, text: str) -> None:
        """Log a progress line and set the artifact, at most once per period."""
        now = time.monotonic()
        if now - self._progress_at < PROGRESS_PERIOD_S:
            return
        self._progress_at = now
        self._logger.info("%s", text)
        if percents := _PERCENT.findall(text):
            self._set_percent((self._started - 1 + min(int(percents[0]), 100) / 100) / self._commands * 100)

    def ran(self) -> None:
        """The stage came to a good end."""
        self._set_percent(100.0)

    def picture(self, path: Path, *, name: str, again: bool) -> None:
        """Show a PNG with the current task run; one that is shown already only where it is to be shown `again`.

        The artifact holds the picture itself: a browser opens no file for a page from a server.
        """
        if not self._answers or path.stat().st_size > MAX_PICTURE_BYTES:
            return
        with self._tolerant():
            key = f"stage-{_slug(self._stage)}-{_slug(path.stem)}"
            data = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
            newest = None if again else cast(Artifact | None, Artifact.get(key))
            if newest is None or newest.data != data:
                create_image_artifact(data, key=key, description=name)

    def _set_percent(self, percent: float) -> None:
        if self._artifact is not None:
            with self._tolerant():
                update_progress_artifact(self._artifact, percent)

    @contextmanager
    def _tolerant(self) -> Iterator[None]:
        """Go on without the artifact where the server does not take it: it died, and a stage may be hours into its work."""
        try:
            yield
        except Exception as error:  # whatever Prefect's client makes of a server that is not there
            self._artifact, self._answers = None, False  # each attempt of Prefect's client takes a minute
            self._logger.warning("%s: progress is no longer shown: %s", self._stage, error)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


class _RunLogHandler(logging.Handler):
    """Passes what DVC says about stages, and all its warnings, to the log of the current flow or task run."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage().strip()
        if message and (record.name.startswith("dvc.stage") or record.levelno >= logging.WARNING):
            try:
                get_run_logger().log(record.levelno, "%s", message)
            except MissingContextError:  # another thread of DVC
                logging.getLogger("prefect.flow_runs").log(record.levelno, "%s", message)


@contextmanager
def dvc_messages_to_run_log() -> Iterator[None]:
    """Show what DVC says in the run's log instead of on the terminal."""
    logger = logging.getLogger("dvc")
    handlers, propagate = logger.handlers[:], logger.propagate
    logger.handlers[:] = [_RunLogHandler()]
    logger.propagate = False
    try:
        yield
    finally:
        logger.handlers[:] = handlers
        logger.propagate = propagate
