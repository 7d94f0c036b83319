"""What a killed DVC leaves behind: it writes dvc.lock and .dvc/tmp/rwlock in place, and refuses half-written ones."""

import json
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from deepcv.home import project_dir, state_dir

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast
_WRITING_S = 2.0  # a DVC that is alive has written its lock file long before


def mend() -> list[str]:
    """Mend both; return a sentence for each that needed it."""
    return [told for told in (set_aside_damaged_lock(), remove_damaged_rwlock()) if told]


def set_aside_damaged_lock() -> str:
    """Move a half-written dvc.lock into the state folder and return a sentence that says so, "" where there is none.

    DVC then restores every stage from its run cache.
    """
    lock = project_dir() / "dvc.lock"
    if not _stays(_is_damaged, lock):
        return ""
    kept = state_dir() / "dvc.lock.damaged"
    shutil.move(lock, kept)
    return (
        f"dvc.lock was half-written, as by a killed DVC; it is now {kept}. `dvc repro` makes it anew and takes what was "
        "computed from DVC's cache"
    )


def remove_damaged_rwlock() -> str:
    """Remove a half-written list of the files that DVC's processes use and return a sentence that says so, else "".

    It concerns processes that run only; a whole one with killed processes in it DVC mends by itself.
    """
    rwlock = project_dir() / ".dvc/tmp/rwlock"
    if not _stays(_is_no_json, rwlock):
        return ""
    rwlock.unlink(missing_ok=True)
    return f"{rwlock} was half-written, as by a killed DVC; it is removed, nothing depends on it"


def _stays(is_damaged: Callable[[Path], bool], path: Path) -> bool:
    """Whether a file is damaged, and still is when whoever was writing it must have ended."""
    if not is_damaged(path):
        return False
    time.sleep(_WRITING_S)
    return is_damaged(path)


def _is_no_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except ValueError:
        return True
    return False


def _is_damaged(lock: Path) -> bool:
    """Whether DVC would refuse it: a value lies in a nested block, and the one that was being written has none yet."""
    try:
        text = lock.read_text(encoding="utf-8")
        if re.search("^<{7} ", text, re.MULTILINE):
            return False  # a merge conflict, which is the person's to settle: DVC names the line
        content = yaml.load(text, _LOADER)  # noqa: S506  # a safe loader
        stages = content["stages"].values() if "stages" in content else []
        return not (content["schema"] == "2.0" and all(map(_is_whole, stages)))
    except FileNotFoundError:
        return False
    except (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError):
        return True


def _is_whole(stage: Mapping[str, Any]) -> bool:
    files = [file for kind in ("deps", "outs") for file in stage.get(kind, [])]
    params = stage.get("params", {}).values()
    return (
        isinstance(stage["cmd"], str | list)
        and all(isinstance(file["path"], str) and None not in file.values() for file in files)
        and all(len(str(file.get("md5", "none"))) > 2 for file in files)
        and all(isinstance(values, dict) for values in params)
    )
