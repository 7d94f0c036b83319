"""Training state on disk, so that an interrupted run goes on where it was, bit for bit.

One folder per training, named by everything that decides its result; two checkpoints are kept, written aside and renamed by
ignite's DiskSaver.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver

from deepcv.files import check_archive

_KEPT = 2


def save_every_epoch(trainer: Engine, folder: Path, state: Mapping[str, Any]) -> None:
    """Write `state` (objects with state_dict) to `folder` after each epoch."""
    handler = Checkpoint(
        to_save=dict(state),
        save_handler=DiskSaver(str(folder), create_dir=True, require_empty=False),
        n_saved=_KEPT,
        global_step_transform=lambda engine, _event: engine.state.epoch,
    )
    trainer.add_event_handler(Events.EPOCH_COMPLETED, handler)


def restore_latest(folder: Path, state: Mapping[str, Any]) -> int:
    """Load the newest readable checkpoint into `state` and return its epoch, 0 where there is none.

    A damaged checkpoint is reported on stderr and set aside; the one before it serves.
    """
    for path in sorted(folder.glob("*.pt"), key=_epoch, reverse=True):
        try:
            check_archive(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
            if missing := state.keys() - content.keys():  # before a part of it is loaded
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
            Checkpoint.load_objects(to_load=dict(state), checkpoint=content)
        except Exception as error:  # torch raises several kinds for a damaged archive
            aside = path.with_suffix(".damaged")
            path.replace(aside)
            print(f"checkpoint {path} cannot be read ({error}); set aside as {aside.name}", file=sys.stderr)  # noqa: T201 - a warning for the person who waits
        else:
            return _epoch(path)
    return 0


def _epoch(path: Path) -> int:
    return int(path.stem.rsplit("_", maxsplit=1)[-1])
