"""Files that are either whole or not there."""

import errno
import hashlib
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, on failure `path` stays as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic(path) as aside:
        aside.write_text(text, encoding="utf-8")


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path`; on success it replaces `path`, on failure `path` stays as it was.

    A kill leaves the former folder or the new one, whole, but may leave the former under the name `.NAME.former.tmp`:
    the next call begins by putting it back. Where `path` is a symbolic link, what it leads to is replaced.
    """
    path = path.resolve()
    aside, former = (path.with_name(f".{path.name}{end}") for end in (".tmp", ".former.tmp"))
    _settle(path, aside, former)
    aside.mkdir(parents=True)
    try:
        yield aside
        if path.exists():
            path.replace(former)
        aside.replace(path)
    finally:
        _settle(path, aside, former)


def _settle(path: Path, aside: Path, former: Path) -> None:
    """Leave `path` alone of the three: what it is, or where it is gone, what it was."""
    _remove(aside)
    if former.exists():
        former.replace(aside if path.exists() else path)  # by a rename: half a folder is never taken for the former one
        _remove(aside)


def _remove(path: Path) -> None:
    if path.is_file() or path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def check_archive(path: Path) -> None:
    """Hold every record of a torch file against its checksum: torch.load does not, a flipped bit would go unseen.

    Raises zipfile.BadZipFile, or OSError where the disk fails.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"checksum of {damaged} is wrong")
    except OSError as error:
        if error.errno != errno.EINVAL:  # zipfile believes a damaged offset and looks before the file's first byte
            raise
        raise zipfile.BadZipFile(str(error)) from error
