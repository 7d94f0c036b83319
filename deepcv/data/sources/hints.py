"""The `dataset.yaml` that would read a folder of a table, COCO or VOC, said where someone gave it as class folders."""

import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath

import yaml

from deepcv.data.samples import DataError
from deepcv.data.sources.classfolders import class_folders
from deepcv.data.sources.source import Source, split_named
from deepcv.data.sources.table import TABLES, read
from deepcv.data.sources.tree import LayoutError, Tree, is_image_name
from deepcv.data.sources.webdataset import split_in

_LABELS = ("label", "class", "category", "target", "kind", "species")  # usual names of a class's column
_LOOKED_AT = 100  # rows


def class_folders_or_hint(tree: Tree) -> Source:
    """Read class folders. Raises LayoutError that ends with a description where the files tell of a table, COCO or VOC."""
    found = [name for name in tree.files if name.suffix.lower() in {".json", ".xml", *TABLES}]
    if not found:
        return class_folders(tree)
    alone = _folders_of_these_alone(tree, found)
    try:
        source = class_folders(tree)
    except LayoutError as error:
        raise LayoutError(f"{error}{_hint(tree, found)}") from None
    if not alone:
        return source
    folders = ", ".join(repr(str(folder)) for folder in sorted(alone)[:5])
    what = f"the folder {folders} holds" if len(alone) == 1 else f"the folders {folders} hold"
    raise LayoutError(f"{tree.origin}: {what} annotations and no images of a class{_hint(tree, found)}")


def _folders_of_these_alone(tree: Tree, found: Iterable[PurePosixPath]) -> set[PurePosixPath]:
    every, these = (Counter(name.parent for name in names) for names in (tree.files, found))
    return {folder for folder, count in these.items() if every[folder] == count}


def _hint(tree: Tree, found: list[PurePosixPath]) -> str:
    """Return the end of an error: what to write where; empty where the files are of no format that is known."""
    described = _voc(tree, found) or _coco(tree, found) or _table(tree, found)
    if not described:
        return ""
    kind, lines = described
    place = f"{tree.origin}/dataset.yaml" if tree.origin.is_dir() else "dataset.yaml at the archive's root"
    return f". For {kind} write {place} (docs/data.md explains it):\n" + "".join(f"\n    {line}" for line in lines)


def _voc(tree: Tree, found: list[PurePosixPath]) -> tuple[str, list[str]] | None:
    # A folder of XML files and their images would give every name twice.
    alone = _folders_of_these_alone(tree, found)
    folders = Counter(name.parent for name in found if name.suffix.lower() == ".xml" and name.parent in alone)
    if not folders:
        return None
    folder = folders.most_common(1)[0][0]
    stems = {name.stem for name in found if name.parent == folder}
    images = next((name.parent for name in tree.files if is_image_name(name) and name.stem in stems), None)
    return "Pascal VOC", [
        "source: voc",
        *_unless("annotations", folder, "Annotations"),
        *_unless("images", images or "<folder of the images>", "JPEGImages"),
        *_lists(tree, folder),
    ]


def _lists(tree: Tree, annotations: PurePosixPath) -> list[str]:
    """The folder of lists where it lies beside the annotations, and these not at the root."""
    lists = annotations.parent / "ImageSets/Main"
    return _unless("splits", lists, "ImageSets/Main") if any(name.parent == lists for name in tree.files) else []


def _coco(tree: Tree, found: list[PurePosixPath]) -> tuple[str, list[str]] | None:
    files: dict[str | None, object] = {}
    folders: dict[str | None, object] = {}
    for name in found:
        split = split_in(str(name))
        if name.suffix.lower() != ".json" or split in files:
            continue
        content = tree.read(name)
        if all(word in content for word in (b'"images"', b'"annotations"', b'"categories"')):
            image = re.search(rb'"file_name"\s*:\s*"([^"]+)"', content)
            files[split] = name
            folders[split] = (
                _folder_of(tree, image[1].decode("utf-8", "replace"), split) if image else None
            ) or "<folder of images>"
    if not files:
        return None
    if None in files:  # one file of all, or files whose names tell no split
        return "COCO", [
            "source: coco",
            *_unless("annotations", files[None], "annotations.json"),
            *_unless("images", folders[None], "images"),
        ]
    given = {"annotations": files, "images": folders}
    return "COCO", ["source: coco", *(f"{key}: {{{_flow(places)}}}" for key, places in given.items())]


def _flow(places: dict[str | None, object]) -> str:
    return ", ".join(f"{split}: {_quoted(place)}" for split, place in places.items())


def _table(tree: Tree, found: list[PurePosixPath]) -> tuple[str, list[str]] | None:
    file = next((name for name in found if name.suffix.lower() in TABLES), None)
    if file is None:
        return None
    lines = ["source: table", *_unless("path", file, "labels.csv")]
    try:
        rows = read(tree.read(file), str(file)).head(_LOOKED_AT)
    except DataError:
        return None
    columns, files = list(rows.columns), set(tree.files)
    for column in columns:
        cells = [cell for cell in rows[column] if cell]
        folder = _folder_of(tree, cells[0]) if cells else None
        if folder is not None and sum(folder / cell in files for cell in cells) > len(cells) / 2:
            others = [other for other in columns if other != column]
            split = next((c for c in others if len(rows) and all(map(split_named, rows[c]))), None)
            rest = [other for other in others if other != split]
            label = next(
                (c for usual in _LABELS for c in rest if c.lower() == usual), rest[0] if len(rest) == 1 else None
            )
            written = ", ".join(map(_quoted, rest))
            unclear = f"label: <column of the class>  # one of {written}; or `numbers: [<column>]`, `tags: [<column>]`"
            return "a table", [
                *lines,
                *_unless("images", folder, "."),
                *_unless("image", column, "image"),
                *(_unless("label", label, "label") if label else [unclear]),
                *([f"split: {_quoted(split)}"] if split else []),
            ]
    return "a table", [
        *lines,
        f"image: <column of the paths>  # one of {', '.join(map(_quoted, columns))}",
        "label: <column of the class>",
    ]


def _folder_of(tree: Tree, path: str, split: str | None = None) -> PurePosixPath | None:
    """The folder below which an image of this path lies, of several the first whose name has the split."""
    parts = PurePosixPath(path).parts
    found = [
        PurePosixPath(*name.parts[: -len(parts)])
        for name in tree.files
        if parts and is_image_name(name) and name.parts[-len(parts) :] == parts
    ]
    return next((folder for folder in found if split_in(str(folder)) == split), found[0] if found else None)


def _unless(key: str, value: object, default: str) -> list[str]:
    """The line of a key, none where its value is the default."""
    return [] if str(value) == default else [f"{key}: {_quoted(value)}"]


def _quoted(value: object) -> str:
    """As YAML reads it back: plain or in single quotes where it can."""
    text = str(value)
    in_quotes = "'" + text.replace("'", "''") + "'"
    if re.fullmatch(r"[A-Za-z_.<][\w ./<>-]*", text) and _is_read(text, text):
        return text
    if _is_read(in_quotes, text):
        return in_quotes
    return str(yaml.safe_dump(text, default_style='"', allow_unicode=True, width=math.inf)).strip()


def _is_read(written: str, text: str) -> bool:
    """Whether YAML reads the text and nothing else: `yes` is a boolean, a line break in quotes a space."""
    try:
        return bool(yaml.safe_load(written) == text)
    except yaml.YAMLError:
        return False
