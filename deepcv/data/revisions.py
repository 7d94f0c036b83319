"""Where the dataset of a git revision lies: git's `dvc.lock` and DVC's cache, read without importing DVC.

`dvc.lock` names the md5 of `data/raw`; `<cache>/files/md5/ab/cdef….dir` lists that folder's files with their own md5s,
under which they lie in the same way.
"""

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import yaml

from deepcv.data.samples import DataError

RAW = "data/raw"
SHARDS = "data/shards"
FILES = ("manifest.parquet", "images.bin", "dataset.json")  # of data/raw
WORKSPACE = "workspace"  # the working directory's data/raw, in the place of a revision
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, where PyYAML was built with it, is ten times as fast


@dataclass(frozen=True)
class Snapshot:
    """One dataset: what it is called in messages, and its files (manifest.parquet, images.bin, dataset.json) by name."""

    name: str
    files: Mapping[str, Path]

    def rows(self, columns: Iterable[str], optional: Iterable[str] = ()) -> pd.DataFrame:
        """Read these columns of the manifest, and of the optional ones those that it has. Raises DataError."""
        path = self.files["manifest.parquet"]
        try:
            there = set(pq.read_schema(path).names)
            return pd.read_parquet(path, columns=[*columns, *(name for name in optional if name in there)])
        except (KeyError, ValueError, OSError) as error:
            raise DataError(f"{self.name}: its manifest cannot be read ({error})") from error

    def description(self) -> dict[str, Any]:
        """Read dataset.json: `name`, `classes`, `test_digest`. Raises DataError."""
        try:
            found: dict[str, Any] = json.loads(self.files["dataset.json"].read_text(encoding="utf-8"))
            return {key: found[key] for key in ("name", "classes", "test_digest")}
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise DataError(f"{self.name}: its dataset.json cannot be read ({error})") from error


def snapshot(revision: str, project: Path) -> Snapshot:
    """Return the dataset of a git revision, or of the working directory for `workspace`. Raises DataError."""
    if revision == WORKSPACE:
        return _workspace(project)
    commit = _commit(revision, project)
    lock = git(project, "show", f"{commit}:./dvc.lock")
    if lock.returncode != 0:
        raise DataError(
            f"{revision}: expected a dvc.lock in this revision, found none; run `dvc repro` and commit dvc.lock"
        )
    try:
        raw = digests_in_lock(lock.stdout, "outs", RAW)
    except ValueError as error:
        raise DataError(f"{revision}: its dvc.lock is damaged ({error}); commit a whole one") from error
    if not raw:
        raise DataError(f"{revision}: its dvc.lock records no {RAW}; run `dvc repro ingest` there and commit dvc.lock")
    name = f"{revision} ({commit[:10]})"
    found = cached(cache_dir(project), raw[0], name)
    if found is None:
        raise DataError(
            f"{name}: its {RAW} (md5 {raw[0]}) is not whole in DVC's cache {cache_dir(project)}; get it with "
            f"`dvc fetch --all-commits {RAW}`, or make it again: `git checkout {revision}`, then `dvc repro ingest`"
        )
    return found


def cached(cache: Path, folder_md5: str, name: str) -> Snapshot | None:
    """Return the dataset that DVC's cache keeps under this md5 (`….dir`), None where it has not all of its files."""
    files = cached_files(cache, folder_md5)
    if files.keys() >= set(FILES):
        return Snapshot(name, files)
    return None


def cached_files(cache: Path, folder_md5: str) -> dict[str, Path]:
    """Map the names in a folder that DVC recorded to their files in its cache; those that it lacks are left out."""
    try:
        listed = json.loads(_object(cache, folder_md5).read_bytes())
        files = {str(entry["relpath"]): _object(cache, entry["md5"]) for entry in listed}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {name: path for name, path in files.items() if path.is_file()}


@functools.cache
def cache_dir(project: Path) -> Path:
    """Return DVC's cache folder, as DVC's configuration has it. Raises DataError."""
    asked = subprocess.run(  # DVC alone knows all the files that may configure it
        [sys.executable, "-m", "dvc", "cache", "dir"], cwd=project, capture_output=True, text=True, check=False,
        env=os.environ | {"DVC_NO_ANALYTICS": "true"},
    )  # fmt: skip
    if asked.returncode != 0:
        raise DataError(f"`dvc cache dir` failed in {project}: {asked.stderr.strip() or 'no reason given'}")
    return project / asked.stdout.strip()


def git(project: Path, *words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run git in the project and return what it said, whether it went well or not. Raises DataError without git."""
    command = ["git", *words]
    try:
        return subprocess.run(command, cwd=project, input=given, capture_output=True, check=False)  # noqa: S603 - no shell
    except FileNotFoundError as error:
        raise DataError("expected git, found no such command; install it: revisions are git's") from error


def digests_in_lock(text: bytes, kind: str, path: str) -> list[str]:
    """Return the md5s that the stages of a dvc.lock record for a path, as `outs` or `deps`. Raises ValueError."""
    return [recorded[path] for stage in stages_of(text) if path in (recorded := digests_in_stage(stage, kind))]


def stages_of(lock: bytes) -> list[Any]:
    """Return the stages of a dvc.lock. Raises ValueError."""
    content = parse(lock)
    if not isinstance(content, dict) or not isinstance(stages := content.get("stages", {}), dict):
        raise ValueError("expected `stages:`")
    return list(stages.values())


def parse(text: bytes) -> Any:
    """Parse YAML that DVC wrote. Raises ValueError."""
    try:
        return yaml.load(text, Loader=LOADER)  # noqa: S506 - a safe loader, either of the two
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error).partition("\n")[0]) from error


def digests_in_stage(stage: Any, kind: str) -> dict[str, str]:
    """Map paths to md5s as one stage of dvc.lock or one entry of the run cache records them. Raises ValueError."""
    try:
        return {str(file["path"]): str(file["md5"]) for file in stage.get(kind) or [] if "md5" in file}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"expected a list of files under `{kind}:`") from error


def _workspace(project: Path) -> Snapshot:
    folder = project / RAW
    files = {name: folder / name for name in FILES}
    if missing := [name for name, path in files.items() if not path.is_file()]:
        raise DataError(f"{WORKSPACE}: {folder / missing[0]} is missing; run `dvc repro ingest`")
    return Snapshot(WORKSPACE, files)


def _commit(revision: str, project: Path) -> str:
    asked = git(project, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if asked.returncode == 0:
        return asked.stdout.decode().strip()
    if git(project, "rev-parse", "--git-dir").returncode != 0:
        raise DataError(f"{project} is in no git repository, so {revision!r} names nothing; `{WORKSPACE}` needs no git")
    raise DataError(
        f"{revision}: expected a git revision (a commit, branch or tag) or `{WORKSPACE}`, and git knows none of this "
        "name; `git log --oneline --all` lists them"
    )


def _object(cache: Path, md5: object) -> Path:
    if not isinstance(md5, str) or not re.fullmatch(r"[0-9a-f]{32}(\.dir)?", md5):
        raise ValueError(f"{md5!r} is no md5")  # nothing else may become a path
    return cache / "files" / "md5" / md5[:2] / md5[2:]
