"""Tar and zip archives as trees. Nothing is unpacked to disk; what could mislead is refused all the same.

Refused: members that point outside (`../`, absolute), links and devices, a name that stands twice, encrypted members, and
more than `MAX_RATIO` times the archive's own size (but always `ALWAYS_ALLOWED` bytes): images hardly compress, bombs do.
"""

import lzma
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from deepcv.data.samples import DataError
from deepcv.data.sources.tree import Tree, is_litter

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
SUFFIXES = (*TAR_SUFFIXES, ".zip")
MAX_RATIO = 100
ALWAYS_ALLOWED = 2**30  # bytes


@dataclass
class _Members:
    """What an archive holds, checked member by member."""

    path: Path
    files: list[PurePosixPath] = field(default_factory=list)
    folders: list[PurePosixPath] = field(default_factory=list)
    unpacked: int = 0  # bytes
    limit: int = field(init=False)

    def __post_init__(self) -> None:
        self.limit = max(ALWAYS_ALLOWED, MAX_RATIO * self.path.stat().st_size)

    def add(self, raw_name: str, kind: str, size: int) -> bool:
        """Take a member of kind file, folder or other; return whether it is one to read. Raises DataError where it could mislead."""
        name = PurePosixPath(raw_name)
        if name.is_absolute() or ".." in name.parts:
            raise DataError(
                f"{self.path}: member {raw_name!r} points outside the archive; such a {_kind(self.path)} is refused"
            )
        if kind == "other":
            raise DataError(
                f"{self.path}: member {raw_name!r} is a link, a device or a sparse file; expected plain files and folders"
            )
        self.unpacked += size
        if self.unpacked > self.limit:
            raise DataError(
                f"{self.path}: would unpack to more than {self.limit:,} bytes ({MAX_RATIO} times its size); "
                "refused as a bomb. Pack the images anew if they are what you mean"
            )
        if any(is_litter(part) for part in name.parts):
            return False
        (self.folders if kind == "folder" else self.files).append(name)
        return kind == "file"

    def checked(self) -> tuple[tuple[PurePosixPath, ...], tuple[PurePosixPath, ...]]:
        """Return files and folders. Raises DataError where a name stands twice."""
        doubled = [str(name) for name, times in Counter(self.files).items() if times > 1]
        if doubled:
            raise DataError(f"{self.path}: {len(doubled)} names stand in it more than once: {', '.join(doubled[:5])}")
        return tuple(self.files), tuple(self.folders)


def is_archive(path: Path) -> bool:
    """Whether the file's name, or else its content, is that of a tar or zip."""
    return path.name.lower().endswith(SUFFIXES) or (
        path.is_file() and (tarfile.is_tarfile(path) or zipfile.is_zipfile(path))
    )


def archive(path: Path) -> Tree:
    """Open a tar or zip, its files in the order in which they were packed. Raises DataError."""
    return _zip(path) if _kind(path) == "zip" else _tar(path)


def _kind(path: Path) -> str:
    name = path.name.lower()
    if name.endswith(TAR_SUFFIXES):
        return "tar"
    return "zip" if name.endswith(".zip") or zipfile.is_zipfile(path) else "tar"


def _tar(path: Path) -> Tree:
    members = _Members(path)
    places: list[tuple[int, int]] = []  # of each file to read: where its bytes begin, and how many they are
    with _damage_named(path), tarfile.open(path) as packed:
        for member in packed:
            plain = member.isfile() and not member.issparse()
            kind = "file" if plain else "folder" if member.isdir() else "other"
            if members.add(member.name, kind, member.size):
                places.append((member.offset_data, member.size))
            packed.members = []  # type: ignore[attr-defined]  # which would keep a kilobyte of each; as WebDataset does
        _read_to_the_end(packed)
    files, folders = members.checked()

    def contents(wanted: Container[PurePosixPath]) -> Iterator[tuple[PurePosixPath, bytes]]:
        with _damage_named(path), tarfile.open(path) as packed:
            for name, (start, size) in zip(files, places, strict=True):
                if name in wanted and (stream := packed.fileobj) is not None:
                    stream.seek(start)
                    content = stream.read(size)
                    if len(content) < size:
                        raise EOFError(f"it ends within {name}")
                    yield name, content

    return Tree(path, files, folders, contents)


def _zip(path: Path) -> Tree:
    members = _Members(path)
    with _damage_named(path), zipfile.ZipFile(path) as packed:
        for info in packed.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where it was packed on Windows
            if info.flag_bits & 1:
                raise DataError(f"{path}: member {info.filename!r} is encrypted; pack the images without a password")
            if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
                members.add(info.filename, "other", 0)
            # zipfile never gives more bytes than the size that is declared here.
            members.add(info.filename, "folder" if info.is_dir() else "file", info.file_size)
    files, folders = members.checked()

    def contents(wanted: Container[PurePosixPath]) -> Iterator[tuple[PurePosixPath, bytes]]:
        with _damage_named(path), zipfile.ZipFile(path) as packed:
            for info in packed.infolist():
                name = PurePosixPath(info.filename)
                if not info.is_dir() and name in wanted:
                    yield name, packed.read(info)

    return Tree(path, files, folders, contents)


def _read_to_the_end(packed: tarfile.TarFile) -> None:
    """Have gzip hold the checksum at its end against what was read; tarfile stops before it."""
    while packed.fileobj is not None and packed.fileobj.read(2**20):
        pass


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (
        tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
        EOFError, OSError, NotImplementedError, UnicodeDecodeError,
    ) as error:  # fmt: skip
        raise DataError(f"{path}: cannot be read as a {_kind(path)}: {error}") from error
