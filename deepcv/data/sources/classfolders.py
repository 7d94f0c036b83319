"""Class folders: `<class>/…/image` and `<split>/<class>/…/image` with splits train, val (or valid, validation) and test."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from deepcv.data.samples import DataError
from deepcv.data.sources.source import Place, Source, check_classes, source_of, split_named
from deepcv.data.sources.tree import LayoutError, Tree


def class_folders(tree: Tree) -> Source:
    """Read a tree of class folders. Raises LayoutError with what was expected and found."""
    return source_of(tree, _plan(tree.origin, tree.files, tree.folders))


def _plan(origin: Path, files: Sequence[PurePosixPath], folders: Sequence[PurePosixPath]) -> dict[PurePosixPath, Place]:
    """Map each image file to its split (None where the layout names none) and class."""
    if not files:
        raise LayoutError(f"{origin}: holds no files; expected <class>/<image> or <split>/<class>/<image>")
    for name in map(os.fsencode, files):
        try:
            name.decode("utf-8")
        except UnicodeDecodeError as error:
            raise LayoutError(f"{origin}: the name {name!r} is not UTF-8; rename it") from error
    depth = _common_depth(files)
    tops = {name.parts[depth] for name in files if len(name.parts) > depth + 1}
    has_splits = bool(tops) and _are_splits(tops)
    class_level = depth + has_splits
    stray = [str(name) for name in files if len(name.parts) < class_level + 2]
    if stray:
        raise LayoutError(
            f"{origin}: {len(stray)} files stand outside a class folder, the first is {stray[0]}; "
            "expected <class>/<image> or <split>/<class>/<image>"
        )
    kinds: dict[tuple[str, ...], Place] = {}  # shared: there may be millions of files
    plan = {}
    for file in files:
        kind = file.parts[depth : class_level + 1]
        if kind not in kinds:
            kinds[kind] = Place(split_named(kind[0]) if has_splits else None, kind[-1])
        plan[file] = kinds[kind]
    empty = {f.parts[class_level] for f in folders if len(f.parts) == class_level + 1} - {
        place.label for place in plan.values()
    }
    if empty:
        raise LayoutError(
            f"{origin}: no image for class {', '.join(sorted(empty))}; remove the empty folder or fill it"
        )
    try:
        check_classes(origin, plan.values())
    except DataError as error:
        raise LayoutError(str(error)) from None
    return plan


def _common_depth(files: Sequence[PurePosixPath]) -> int:
    """Count the leading folders that all files share and that are neither a split nor the only class level left."""
    depth = 0
    while True:
        below = [name.parts[depth] for name in files if len(name.parts) > depth + 1]
        deeper = any(len(name.parts) > depth + 2 for name in files)
        if len(set(below)) != 1 or not deeper or _are_splits(set(below)):
            return depth
        depth += 1


def _are_splits(names: set[str]) -> bool:
    return all(split_named(name) for name in names)
