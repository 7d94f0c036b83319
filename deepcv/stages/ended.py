"""What a training that has ended wrote, kept until DVC has recorded it: who is killed in between does not train twice."""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

from deepcv.files import atomic_folder, write_text
from deepcv.home import state_dir
from deepcv.locks import locked
from deepcv.stages import archive

_LOCK = Path("dvc.lock")
_NOTE = "lock.json"


def keep(key: str, outputs: Path) -> None:
    """Copy the outputs of the training with this key."""
    with atomic_folder(_folder() / key) as aside:
        shutil.copytree(outputs, aside / outputs.name)
        for path in filter(Path.is_file, aside.rglob("*")):  # a power cut must not leave the note and half a model
            with path.open("rb") as file:
                os.fsync(file.fileno())
        write_text(aside / _NOTE, json.dumps(_lock(_LOCK.absolute())))


def is_unrecorded(key: str) -> bool:
    """Whether a training with this key has ended here, and DVC has recorded nothing since.

    DVC writes dvc.lock anew whenever it has run a stage, also where it says the same as before (`dvc repro --force`).
    """
    return _note(key) == _lock(_LOCK.absolute())


def is_kept(key: str) -> bool:
    """Whether the outputs of a training with this key are here, recorded or not, of this experiment or of another."""
    return bool(_note(key))


def restore(key: str, outputs: Path) -> None:
    """Bring back what `keep` copied."""
    with atomic_folder(outputs) as aside:
        shutil.copytree(_folder() / key / outputs.name, aside, dirs_exist_ok=True)


def sweep() -> None:
    """Remove what DVC has recorded since; other experiments of the project may be about to, or restore it right now."""
    for path in _folder().glob("[!.]*"):
        note = _note(path.name)
        if note != _lock(Path(str(note.get("path")))):
            with suppress(BlockingIOError), locked(archive.lock(path.name), wait=False):
                shutil.rmtree(path, ignore_errors=True)


def _folder() -> Path:
    return state_dir() / "ended"


def _note(key: str) -> dict[str, object]:
    try:
        content = json.loads((_folder() / key / _NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    return content if isinstance(content, dict) else {}


def _lock(path: Path) -> dict[str, object]:
    """What tells that DVC has written its lock: an experiment has one in a folder of its own."""
    return {"path": str(path), "mtime_ns": path.stat().st_mtime_ns if path.exists() else 0}
