"""Where images come from: a folder or a tar of class folders, or a dataset that a small YAML file names.

Every source yields `Sample`s in an order that depends on its content alone. Two layouts of class folders are read:
`<class>/…/image` and `<split>/<class>/…/image` with splits train, val (or valid, validation) and test.
"""

import lzma
import os
import tarfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import yaml

from deepcv.data import builtin
from deepcv.data.samples import DataError, Sample

_SPLIT_OF_FOLDER = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_LITTER = {"Thumbs.db", "desktop.ini", "__MACOSX"}
_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True)
class Source:
    """A dataset to read: class names in the order of their label numbers, and its samples, one at a time."""

    classes: tuple[str, ...]
    count: int
    samples: Callable[[], Iterator[Sample]]


def open_source(path: Path, downloads: Path) -> Source:
    """Open what `path` names: a folder, a tar, or a YAML file `{source: digits | fashion-mnist}`.

    `downloads` keeps files that had to be fetched. Raises DataError with what was expected and found.
    """
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise DataError(
            f"{path}: there is no such file or folder (ingest.path in params.yaml, relative to the project)"
        )
    if path.name.endswith(_TAR_SUFFIXES):
        return _tar(path)
    if path.suffix in {".yaml", ".yml"}:
        return _described(path, downloads)
    raise DataError(
        f"{path}: expected a folder of images, a tar of one ({', '.join(_TAR_SUFFIXES)}), or a YAML file that names a dataset"
    )


def _described(path: Path, downloads: Path) -> Source:
    try:
        description = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not valid YAML: {error}") from error
    name = description.get("source") if isinstance(description, dict) else None
    if name == "digits":
        classes, samples = builtin.digits()
    elif name == "fashion-mnist":
        digests = description.get("sha256")
        if not isinstance(digests, dict):
            raise DataError(
                f"{path}: expected `sha256:` with the digest of each file, as data/sources/fashion-mnist.yaml has"
            )
        classes, samples = builtin.fashion_mnist(digests, downloads)
    else:
        raise DataError(f"{path}: expected `source: digits` or `source: fashion-mnist`, got {name!r}")
    return Source(classes, len(samples), lambda: iter(samples))


def _folder(root: Path) -> Source:
    files: list[PurePosixPath] = []
    folders: list[PurePosixPath] = []
    for where, names_below, file_names in os.walk(root):
        here = Path(where)
        names_below[:] = sorted(name for name in names_below if not is_litter(name))
        for name in names_below:
            if (here / name).is_symlink():
                raise DataError(
                    f"{here / name}: a symlinked folder; DVC would not see changes behind it. Copy it or use a tar"
                )
        folders += [PurePosixPath((here / name).relative_to(root)) for name in names_below]
        files += [PurePosixPath((here / name).relative_to(root)) for name in sorted(file_names) if not is_litter(name)]
    plan = _plan(root, sorted(files), folders)

    def samples() -> Iterator[Sample]:
        for name, (split, label) in plan.items():
            try:
                encoded = (root / name).read_bytes()
            except OSError as error:
                raise DataError(f"{root / name}: cannot be read ({error.strerror})") from error
            yield Sample(str(name), split, label, encoded)

    return Source(_classes(plan.values()), len(plan), samples)


def _tar(path: Path) -> Source:
    files: list[PurePosixPath] = []
    folders: list[PurePosixPath] = []
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts:
                    raise DataError(f"{path}: member {member.name!r} points outside the archive; such a tar is refused")
                litter = any(is_litter(part) for part in name.parts)
                if member.isdir():
                    folders += [] if litter else [name]
                elif not member.isfile():
                    raise DataError(
                        f"{path}: member {member.name!r} is a link or a device; expected files and folders only"
                    )
                elif not litter:
                    files.append(name)
            _read_to_the_end(archive)
    except (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as a tar: {error}") from error
    doubled = [str(name) for name, times in Counter(files).items() if times > 1]
    if doubled:
        raise DataError(f"{path}: {len(doubled)} names stand in it more than once: {', '.join(doubled[:5])}")
    plan = _plan(path, files, folders)

    def samples() -> Iterator[Sample]:
        with tarfile.open(path) as archive:
            for member in archive:
                place = plan.get(PurePosixPath(member.name))
                if place is not None and (stream := archive.extractfile(member)) is not None:
                    yield Sample(str(PurePosixPath(member.name)), place[0], place[1], stream.read())

    return Source(_classes(plan.values()), len(plan), samples)


def _read_to_the_end(archive: tarfile.TarFile) -> None:
    """Have gzip hold the checksum at its end against what was read; tarfile stops before it."""
    while archive.fileobj is not None and archive.fileobj.read(2**20):
        pass


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is hidden or left by an operating system, and no image."""
    return name.startswith(".") or name in _LITTER


def _plan(
    origin: Path, files: list[PurePosixPath], folders: list[PurePosixPath]
) -> dict[PurePosixPath, tuple[str | None, str]]:
    """Map each image file to its split (None where the layout names none) and class."""
    if not files:
        raise DataError(f"{origin}: holds no files; expected <class>/<image> or <split>/<class>/<image>")
    for name in map(os.fsencode, files):
        try:
            name.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{origin}: the name {name!r} is not UTF-8; rename it") from error
    depth = _common_depth(files)
    tops = {name.parts[depth] for name in files if len(name.parts) > depth + 1}
    has_splits = bool(tops) and _are_splits(tops)
    class_level = depth + has_splits
    stray = [str(name) for name in files if len(name.parts) < class_level + 2]
    if stray:
        raise DataError(
            f"{origin}: {len(stray)} files stand outside a class folder, the first is {stray[0]}; "
            "expected <class>/<image> or <split>/<class>/<image>"
        )
    plan = {
        name: (_SPLIT_OF_FOLDER[name.parts[depth].lower()] if has_splits else None, name.parts[class_level])
        for name in files
    }
    empty = {f.parts[class_level] for f in folders if len(f.parts) == class_level + 1} - {
        label for _, label in plan.values()
    }
    if empty:
        raise DataError(f"{origin}: no image for class {', '.join(sorted(empty))}; remove the empty folder or fill it")
    _check_classes(origin, plan.values())
    return plan


def _common_depth(files: list[PurePosixPath]) -> int:
    """Count the leading folders that all files share and that are neither a split nor the only class level left."""
    depth = 0
    while True:
        below = [name.parts[depth] for name in files if len(name.parts) > depth + 1]
        deeper = any(len(name.parts) > depth + 2 for name in files)
        if len(set(below)) != 1 or not deeper or _are_splits(set(below)):
            return depth
        depth += 1


def _are_splits(names: set[str]) -> bool:
    return {name.lower() for name in names} <= set(_SPLIT_OF_FOLDER)


def _check_classes(origin: Path, places: Iterable[tuple[str | None, str]]) -> None:
    splits_of: defaultdict[str, set[str | None]] = defaultdict(set)
    for split, label in places:
        splits_of[label].add(split)
    spellings: defaultdict[str, list[str]] = defaultdict(list)
    for label in splits_of:
        spellings[label.casefold()].append(label)
    for twins in spellings.values():
        if len(twins) > 1:
            raise DataError(
                f"{origin}: classes {' and '.join(sorted(twins))} differ only in case; merge or rename them"
            )
    if len(splits_of) < 2:
        raise DataError(
            f"{origin}: found one class ({next(iter(splits_of))}); classification needs at least two class folders"
        )
    splits = set().union(*splits_of.values())
    if splits != {None} and "train" not in splits:
        raise DataError(f"{origin}: found the splits {sorted(map(str, splits))} but no train folder")
    for label, present in splits_of.items():
        if missing := splits - present:
            raise DataError(f"{origin}: no image for class {label} in split {', '.join(sorted(map(str, missing)))}")


def _classes(places: Iterable[tuple[str | None, str]]) -> tuple[str, ...]:
    return tuple(sorted({label for _, label in places}, key=_natural))


def _natural(name: str) -> tuple[int, int, str]:
    """Sort class folders that are numbers as numbers: 0, 1, 2, 10, not 0, 1, 10, 2."""
    return (0, int(name), name) if name.isascii() and name.isdigit() else (1, 0, name)
