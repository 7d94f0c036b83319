"""Training state on disk, so that an interrupted run goes on where it was, bit for bit.

One folder per training, named by everything that decides its result. A checkpoint is one file, written aside and renamed by
ignite's DiskSaver; the newest two are kept. `best/` in it holds the models of the best epochs.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver
from torch import Tensor

from deepcv.errors import DeepcvError
from deepcv.files import check_archive
from deepcv.training.distributed import ALONE, World
from deepcv.training.history import EpochRecord

_KEPT = 2
_WORTH_S = (
    30.0  # work of an epoch that is saved in front of its val images too, whose judging a signal may not wait for
)


class InterruptedTrainingError(DeepcvError):
    """The training was asked to end; its state is on disk."""


class CheckpointError(DeepcvError):
    """The state on disk could not be taken over now; it is still there."""


class RandomState:
    """The state of torch's generators: what dropout draws from, in the middle of an epoch; each process of `world` has its own."""

    def __init__(self, device: torch.device, world: World = ALONE) -> None:
        self._device, self._world = device, world
        self._restored: Mapping[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """The state, as tensors."""
        state = {"cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self._device)
        return {name: self._world.gather(value) for name, value in state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep what `state_dict` gave until `apply`: a trainer draws before its first step."""
        self._restored = {name: self._world.own(value) for name, value in state.items()}

    def apply(self) -> None:
        """Put the generators where they were."""
        torch.set_rng_state(self._restored["cpu"])
        if "cuda" in self._restored:
            torch.cuda.set_rng_state(self._restored["cuda"], self._device)


class Saver:
    """Writes `state` (objects with state_dict) to `folder`: call `save` when it holds the work of whole steps."""

    def __init__(self, folder: Path, state: Mapping[str, Any]) -> None:
        self._folder = folder
        self._checkpoint = Checkpoint(
            to_save=dict(state),
            save_handler=DiskSaver(str(folder), create_dir=True, require_empty=False),
            n_saved=None,  # it would not count those of an interrupted process
            global_step_transform=lambda engine, _event: engine.state.iteration,
        )
        self._saved_s = time.monotonic()

    def save(self, trainer: Engine) -> None:
        """Write a checkpoint, in place of one of the same iteration."""
        self._checkpoint.reset()  # or it would remove that one first
        self._checkpoint(trainer)
        self._saved_s = time.monotonic()
        if idist.get_rank() == 0:
            for older in _newest_first(self._folder)[_KEPT:]:
                older.unlink()

    @property
    def age_s(self) -> float:
        """Seconds since the last checkpoint, or since the start."""
        return time.monotonic() - self._saved_s


def attach(
    trainer: Engine, saver: Saver, *, every_s: float, check: Callable[[], None], interrupted: Callable[[], bool],
    world: World = ALONE,
) -> None:  # fmt: skip
    """Save after each epoch, after a step when `every_s` have passed, and when `interrupted`: then raise InterruptedTrainingError.

    An epoch of some length is also saved behind its last step, before it is judged. The trainer's output tells whether an
    iteration ended with a step; `check` raises where the state is not worth keeping. How often is saved changes no result. What
    one process of `world` is asked, all do after the same step.
    """

    def after_step(engine: Engine) -> None:
        ends = engine.state.iteration % engine.state.epoch_length == 0
        asked, due = world.any(interrupted(), saver.age_s > (min(every_s, _WORTH_S) if ends else every_s))
        if not (asked or due) or not engine.state.output:
            return
        check()
        saver.save(engine)
        if asked:
            raise InterruptedTrainingError("interrupted")

    def after_epoch(engine: Engine) -> None:
        saver.save(engine)
        if any(world.any(interrupted())) and engine.state.epoch < engine.state.max_epochs:
            raise InterruptedTrainingError("interrupted")

    trainer.add_event_handler(Events.ITERATION_COMPLETED, after_step)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, after_epoch)


def restore_latest(folder: Path, state: Mapping[str, Any]) -> int:
    """Load the newest readable checkpoint into `state` and return its iteration, 0 where there is none.

    A damaged checkpoint is reported on stderr and set aside; the one before it serves. Raises CheckpointError, and leaves the
    file, where it can be read but not taken over: for want of memory, for example.
    """
    for path in _newest_first(folder):
        try:
            check_archive(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
            if missing := state.keys() - content.keys():  # before a part of it is loaded
                raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        except (OSError, MemoryError):  # which say nothing of the file
            raise
        except Exception as error:  # torch raises several kinds for a damaged archive
            aside = path.with_suffix(".damaged")
            path.replace(aside)
            print(f"checkpoint {path} cannot be read ({error}); set aside as {aside.name}", file=sys.stderr)  # noqa: T201 - a warning for the person who waits
            continue
        try:
            Checkpoint.load_objects(to_load=dict(state), checkpoint=content)
        except Exception as error:
            raise CheckpointError(
                f"checkpoint {path} was read but not taken over ({error}); it is kept: try again, or remove it to go on from the "
                "one before"
            ) from error
        return _iteration(path)
    return 0


def keep_best(folder: Path, records: Sequence[EpochRecord], count: int, save: Callable[[Path], None]) -> None:
    """After an epoch, let `folder/best` hold files of the `count` best epochs of `records`; `save` writes that of the last one.

    An epoch that is among the best of all was so ever since it ended. So a resumed training, which goes through every epoch after
    its checkpoint again, has the same files, wherever it was killed.
    """
    ranked = sorted(
        records, key=lambda record: record.rank, reverse=True
    )  # of equal ones the earlier, as `Best` has it
    best = {f"epoch_{record.epoch:04}.pt" for record in ranked[:count]}
    newest = f"epoch_{records[-1].epoch:04}.pt"
    if newest in best:
        save(folder / "best" / newest)
    for path in (folder / "best").glob("epoch_*.pt"):
        if path.name not in best:
            path.unlink()


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.pt"), key=_iteration, reverse=True)


def _iteration(path: Path) -> int:
    return int(path.stem.rsplit("_", maxsplit=1)[-1])
