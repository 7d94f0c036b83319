"""Files under one root, whatever holds them: a folder here, an archive in `archives`."""

import os
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from deepcv.data.samples import DataError

_LITTER = {"Thumbs.db", "desktop.ini", "__MACOSX"}
_IMAGE_SUFFIXES = {
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".hdr", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pam", ".pbm", ".pfm",
    ".pgm", ".pic", ".png", ".pnm", ".ppm", ".ras", ".sr", ".tif", ".tiff", ".webp",
}  # fmt: skip


class LayoutError(DataError):
    """The files can be read, but do not lie as a dataset to train on does."""


@dataclass(frozen=True)
class Tree:
    """Names relative to the root; `contents` gives name and bytes of the wanted files, each once, in the order of `files`."""

    origin: Path
    files: tuple[PurePosixPath, ...]
    folders: tuple[PurePosixPath, ...]
    contents: Callable[[Container[PurePosixPath]], Iterator[tuple[PurePosixPath, bytes]]]

    def read(self, name: PurePosixPath) -> bytes:
        """Return one file's bytes. Raises DataError where it is absent or damaged."""
        for _, content in self.contents({name}):
            return content
        raise DataError(f"{self.origin}: there is no file {name} in it")


def folder(root: Path) -> Tree:
    """Open a folder, its files in the order of their names. Raises LayoutError at a symlinked folder."""
    files: list[PurePosixPath] = []
    folders: list[PurePosixPath] = []
    for where, names_below, file_names in os.walk(root):
        here = Path(where)
        names_below[:] = sorted(name for name in names_below if not is_litter(name))
        for name in names_below:
            if (here / name).is_symlink():
                raise LayoutError(
                    f"{here / name}: a symlinked folder; DVC would not see changes behind it. Copy it or use a tar"
                )
        folders += [PurePosixPath((here / name).relative_to(root)) for name in names_below]
        files += [PurePosixPath((here / name).relative_to(root)) for name in file_names if not is_litter(name)]
    files.sort()

    def contents(wanted: Container[PurePosixPath]) -> Iterator[tuple[PurePosixPath, bytes]]:
        for name in files:
            if name in wanted:
                try:
                    content = (root / name).read_bytes()
                except OSError as error:
                    raise DataError(f"{root / name}: cannot be read ({error.strerror})") from error
                yield name, content

    return Tree(root, tuple(files), tuple(folders), contents)


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is hidden or left by an operating system, and no image."""
    return name.startswith(".") or name in _LITTER


def is_image_name(name: PurePosixPath) -> bool:
    """Whether a file's suffix is that of an image format."""
    return name.suffix.lower() in _IMAGE_SUFFIXES
