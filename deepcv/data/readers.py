"""Images to look at, wherever they lie: all that `ingest.path` takes, what `ingest` packed, and loose files without labels.

`sources.open_source` insists on what training needs (two classes, a train split). What is only to be looked at may have less.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from deepcv.data import manifest
from deepcv.data.samples import DataError, Sample
from deepcv.data.sources import LayoutError, Tree, is_litter, open_source, open_tree


@dataclass(frozen=True)
class Entry:
    """One image of a collection: its name, its class (empty where unknown), the sha256 of its file."""

    id: str
    label: str
    sha256: str


@dataclass(frozen=True)
class Collection:
    """Images in an order that depends on what is there alone; `contents` gives the files' bytes at ascending positions.

    `note` says why the images were not read as a dataset, where that was so.
    """

    entries: tuple[Entry, ...]
    contents: Callable[[Sequence[int]], Iterator[bytes]]
    note: str = ""

    @property
    def labelled(self) -> bool:
        """Whether every image has a class."""
        return all(entry.label for entry in self.entries)


def open_images(path: Path, downloads: Path) -> Collection:
    """Open a folder of `ingest`, or whatever `open_source` opens, or a folder, tar or zip of loose images.

    Every file is read once here, for its digest (the packed folder's manifest has it already), and again by `contents`.
    Loose images have the name of their folder as class where every one lies in a folder, else none. Raises DataError.
    """
    if not path.exists():
        raise DataError(
            f"{path}: there is no such file or folder; expected images, or a YAML file that names a dataset"
        )
    if (path / "manifest.parquet").is_file():
        return _packed(path)
    note = ""
    samples: Callable[[], Iterator[Sample]]
    try:
        samples = open_source(path, downloads).samples
    except LayoutError as error:
        samples = partial(_loose_files, path) if path.is_dir() else partial(_loose_members, open_tree(path))
        note = str(error)
    entries = tuple(
        Entry(_printable(s.id), _printable(s.label), hashlib.sha256(s.encoded).hexdigest()) for s in samples()
    )
    if not entries:
        raise DataError(f"{path}: holds no files; expected images")

    def contents(positions: Sequence[int]) -> Iterator[bytes]:
        wanted = set(positions)
        yield from (sample.encoded for position, sample in enumerate(samples()) if position in wanted)

    return Collection(entries, contents, note)


def _packed(folder: Path) -> Collection:
    rows, _ = manifest.read(folder)
    entries = tuple(map(Entry, rows["id"], rows["label"], rows["sha256"]))
    return Collection(entries, lambda positions: manifest.encoded_images(folder, rows.iloc[list(positions)]))


def _loose_files(root: Path) -> Iterator[Sample]:
    for where, below, names in os.walk(root):
        below[:] = sorted(name for name in below if not is_litter(name))
        for name in sorted(names):
            if not is_litter(name):
                file = Path(where) / name
                place = PurePosixPath(file.relative_to(root))
                yield Sample(str(place), None, place.parent.name, file.read_bytes())


def _loose_members(archive: Tree) -> Iterator[Sample]:
    for place, content in archive.contents(archive.files):
        yield Sample(str(place), None, place.parent.name, content)


def _printable(name: str) -> str:
    """Names of loose files need not be UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
