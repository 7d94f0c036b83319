"""WebDataset: tars of `key.jpg` with `key.cls`, `key.json` or `key.txt` beside it; one tar, or a folder of such shards."""

import json
import re
import reprlib
from collections import defaultdict
from collections.abc import Container, Iterator
from pathlib import PurePosixPath

from deepcv.data.sources.archives import TAR_SUFFIXES, archive
from deepcv.data.sources.source import Place, Source, check_classes, refuse, source_of, split_named
from deepcv.data.sources.tree import Tree

_IMAGES = {"jpg", "jpeg", "png", "webp", "bmp", "ppm", "pgm", "tif", "tiff"}
_LABELS = ("cls", "json", "txt")  # the first that a key has counts: beside a cls, txt is a caption
_KEYS_OF_JSON = ("label", "cls", "class")
_SPLIT = re.compile(r"(?:^|[^a-z])(train|valid|validation|val|test)(?:[^a-z]|$)", re.IGNORECASE)


def is_webdataset(tree: Tree) -> bool:
    """Whether an image of an archive has a label file of its own name beside it, or a folder holds tars alone."""
    if tree.origin.is_dir():
        return is_shards(tree)
    labels = {_key(name) for name in tree.files if _extension(name) in _LABELS}
    return bool(labels) and any(_extension(name) in _IMAGES and _key(name) in labels for name in tree.files)


def is_shards(tree: Tree) -> bool:
    """Whether a folder holds tars and nothing else."""
    return tree.origin.is_dir() and bool(tree.files) and all(n.name.lower().endswith(TAR_SUFFIXES) for n in tree.files)


def webdataset(tree: Tree) -> Source:
    """Read images with their labels. Raises DataError that lists the first bad keys.

    A split is the first folder of all keys, or stands in every shard's name (`birds-train-000.tar`); else DeepCV splits.
    """
    files = _joined(tree) if is_shards(tree) else tree
    members: defaultdict[str, dict[str, PurePosixPath]] = defaultdict(dict)
    problems: dict[str, list[object]] = defaultdict(list)
    for name in files.files:
        kind = "image" if _extension(name) in _IMAGES else _extension(name)
        if kind in members[_key(name)]:
            problems["keys with two images or two labels"].append(_key(name))
        members[_key(name)][kind] = name
    problems["keys without image"] += [key for key, found in members.items() if "image" not in found]
    label_files: dict[PurePosixPath, str] = {}
    for key, found in members.items():
        if chosen := next((extension for extension in _LABELS if extension in found), None):
            label_files[found[chosen]] = key
        else:
            problems[f"keys without label (.{', .'.join(_LABELS)})"].append(key)
    label_of = {}
    for name, content in files.contents(label_files):
        label = _label(_extension(name), content)
        if isinstance(label, list | dict):
            problems["label files whose class is a list or an object (expected a text or number)"].append(
                f"{name} ({reprlib.repr(label)})"
            )
        elif text := str(label).strip():
            label_of[label_files[name]] = text
        else:
            problems[f"label files without label (JSON needs the key {', '.join(_KEYS_OF_JSON)})"].append(str(name))
    refuse(tree.origin, problems)
    splits = {key: _split(key, shards=files is not tree) for key in members}
    if None in splits.values():
        splits = dict.fromkeys(splits)
    plan = {found["image"]: Place(splits[key], label_of[key]) for key, found in members.items()}
    check_classes(tree.origin, plan.values())
    return source_of(files, plan)


def _joined(folder: Tree) -> Tree:
    """The tars of a folder as one tree, each below its own name without suffix."""
    parts = []
    for name in folder.files:
        stem = re.sub(r"(\.tar)?(\.\w+)?$", "", str(name), flags=re.IGNORECASE)
        parts.append((PurePosixPath(stem), archive(folder.origin / name)))

    def contents(wanted: Container[PurePosixPath]) -> Iterator[tuple[PurePosixPath, bytes]]:
        for stem, tar in parts:
            here = {name for name in tar.files if stem / name in wanted}
            for name, content in tar.contents(here):
                yield stem / name, content

    return Tree(folder.origin, tuple(stem / name for stem, tar in parts for name in tar.files), (), contents)


def _label(extension: str, content: bytes) -> object:
    """Return what stands in a label file, of JSON the value of the first key that it has; empty text where there is none."""
    text = content.decode("utf-8", "replace")
    if extension != "json":
        return text
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    values = parsed if isinstance(parsed, dict) else {}
    return next((values[key] for key in _KEYS_OF_JSON if values.get(key) is not None), "")


def _split(key: str, *, shards: bool) -> str | None:
    first = PurePosixPath(key).parts[0]
    if not shards:
        return split_named(first)
    return split_in(first)


def split_in(name: str) -> str | None:
    """Return the split whose name stands in this one as a word of its own, as in `birds-train-000.tar`."""
    found = _SPLIT.search(name)
    return split_named(found[1]) if found else None


def _key(name: PurePosixPath) -> str:
    """All before the first dot of the file's name, as WebDataset has it."""
    return str(name.parent / name.name.partition(".")[0])


def _extension(name: PurePosixPath) -> str:
    return name.name.partition(".")[2].lower()
