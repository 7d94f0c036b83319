"""YOLO: a `data.yaml` with `names` and `train`, `val`, `test`, and a text file of boxes for each image, in `labels/`."""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import PurePosixPath

from deepcv.data.samples import DataError, Sample
from deepcv.data.sources.boxes import Box, Labelled
from deepcv.data.sources.description import Description, parse
from deepcv.data.sources.source import Source, check_classes, source_of
from deepcv.data.sources.tree import Tree
from deepcv.images import DecodeError, decode

NAME = "data.yaml"
_NO_IMAGE = {".txt", ".npy", ".cache", ".json", ".yaml", ".md"}


def yolo(tree: Tree, description: Description) -> Source:
    """Read images and boxes; an image's class is `boxes.image_label`. Keys: `path` (data.yaml), `without_boxes`.

    A line is `class x y width height`, relative to the image's size, or `class x y x y …`, a polygon, whose bounds are taken.
    """
    description.only("path", "without_boxes")
    file = description.place("path", NAME)
    layout = parse(tree.read(file), str(tree.origin / file), file.parent)
    classes = _names(layout)
    problems: dict[str, list[object]] = defaultdict(list)
    split_of: dict[PurePosixPath, str] = {}
    for split in ("train", "val", "test"):
        for image in _images(tree, layout, split):
            if split_of.setdefault(image, split) != split:
                problems["images in two splits"].append(str(image))
    missing = set(split_of) - set(tree.files)
    problems[f"images that are not below {tree.origin}"] += sorted(map(str, missing))
    wanted = {_label_file(image) for image in split_of}
    boxes: dict[PurePosixPath, list[Box]] = {}
    for name, content in tree.contents(wanted):
        boxes[name] = _boxes(content, name, classes, problems)
    labelled = Labelled(description)
    for image, split in split_of.items():
        if image not in missing:
            labelled.add(image, split, boxes.get(_label_file(image), []))
    plan = labelled.finish(problems)
    check_classes(layout.origin, plan.values(), every_split=False)
    relative = source_of(tree, plan, dict.fromkeys([*classes, *(place.label for place in plan.values())]))

    def samples() -> Iterator[Sample]:
        return map(_in_pixels, relative.samples())

    return Source(relative.classes, relative.count, samples)


def _in_pixels(sample: Sample) -> Sample:
    """Multiply the boxes by the image's size."""
    try:
        height, width, _ = decode(sample.encoded).shape
    except DecodeError:
        return sample._replace(annotations="")  # whoever reads the image says it
    content = json.loads(sample.annotations)
    for box in content["boxes"]:
        box["xyxy"] = [round(value * side, 4) for value, side in zip(box["xyxy"], (width, height) * 2, strict=True)]
    return sample._replace(annotations=json.dumps(content, ensure_ascii=False))


def _names(layout: Description) -> list[str]:
    names = layout.values.get("names")
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names or len(set(map(str, names))) != len(names):
        raise DataError(
            f"{layout.origin}: expected `names:` with different class names, numbered from 0; got {names!r}"
        )
    return [str(name) for name in names]


def _images(tree: Tree, layout: Description, split: str) -> list[PurePosixPath]:
    """The images of a folder, of a list in a text file, or of several of them."""
    given = layout.values.get(split)
    found: list[PurePosixPath] = []
    for entry in given if isinstance(given, list) else [given] if given else []:
        place = _resolve(tree, layout, str(entry))
        if place in tree.files and place.suffix == ".txt":
            lines = tree.read(place).decode("utf-8", "replace").splitlines()
            found += [_resolve(tree, layout, line.strip()) for line in lines if line.strip()]
            continue
        below = [f for f in tree.files if place in f.parents and f.suffix.lower() not in _NO_IMAGE]
        if not below:
            raise DataError(f"{layout.origin}: {split}: there is no image below {place}")
        found += below
    if split == "train" and not found:
        raise DataError(f"{layout.origin}: expected `train:` with a folder of images, got {given!r}")
    return found


def _resolve(tree: Tree, layout: Description, path: str) -> PurePosixPath:
    """Find a path below `path:` where that lies in the dataset, else below data.yaml.

    A leading `../` is dropped, as ultralytics does: exports say `../train/images` and mean the folder beside data.yaml.
    """
    path = path.removeprefix("../") if path.startswith("../") else path
    root = layout.values.get("path")
    if isinstance(root, str) and root and not root.startswith("/") and ".." not in PurePosixPath(root).parts:
        below = layout.inside(root)
        if any(below in file.parents for file in tree.files):
            return below / layout.inside(path).relative_to(layout.base)
    return layout.inside(path)


def _label_file(image: PurePosixPath) -> PurePosixPath:
    """The last folder called images becomes labels."""
    parts = list(image.with_suffix(".txt").parts)
    for level in range(len(parts) - 2, -1, -1):
        if parts[level] == "images":
            parts[level] = "labels"
            break
    return PurePosixPath(*parts)


def _boxes(content: bytes, name: PurePosixPath, classes: list[str], problems: dict[str, list[object]]) -> list[Box]:
    """Return the boxes with sides relative to the image's."""
    found = []
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            kind, *values = line.split()
            x, y = [float(v) for v in values[0::2]], [float(v) for v in values[1::2]]
            if not 0 <= int(kind) < len(classes):
                raise ValueError(f"class {kind} of {len(classes)} names")
            if len(values) == 4:
                sides = (x[0] - x[1] / 2, y[0] - y[1] / 2, x[0] + x[1] / 2, y[0] + y[1] / 2)
            elif len(values) >= 6 and len(x) == len(y):
                sides = (min(x), min(y), max(x), max(y))
            else:
                raise ValueError(f"expected class and 4 numbers, got {len(values)} numbers")
            found.append(Box(classes[int(kind)], sides))
        except ValueError as error:
            problems["bad lines"].append(f"{name}:{number} ({error})")
    return found
