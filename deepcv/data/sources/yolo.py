"""YOLO: a `data.yaml` with `names` and `train`, `val`, `test`, and a text file of boxes for each image, in `labels/`."""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import PurePosixPath

from deepcv.data.samples import DataError, Sample
from deepcv.data.sources.boxes import Box, Labelled, check_inside
from deepcv.data.sources.description import Description, parse
from deepcv.data.sources.source import Source, check_classes, source_of, unlisted
from deepcv.data.sources.tree import Tree
from deepcv.images import DecodeError, decode

NAME = "data.yaml"
_SLACK = 0.01  # shares of an image's side by which a box may leave it: exports round
_NO_IMAGE = {".txt", ".npy", ".cache", ".json", ".yaml", ".md"}


def yolo(tree: Tree, description: Description) -> Source:
    """Read images and boxes; an image's class is `boxes.image_label`. Keys: `path` (data.yaml), `without_boxes`, `unlisted`.

    A line is `class x y width height`, shares of the image's width and height, or `class x y x y …`, a polygon, whose bounds are taken.
    Where data.yaml has `kpt_shape: [n, 2 or 3]`, each box is followed by n keypoints, x y or x y visibility, and there are no
    polygons.
    """
    description.only("path", "without_boxes", "unlisted")
    file = description.place("path", NAME)
    layout = parse(tree.read(file), str(tree.origin / file), file.parent)
    classes, keypoints = _names(layout), _keypoint_shape(layout)
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
    broken = set()  # label files whose images have boxes, though not all of them can be read
    for name, content in tree.contents(wanted):
        boxes[name], bad = _boxes(content, classes, keypoints)
        problems["bad lines"] += [f"{name}:{line}" for line in bad]
        if bad:
            broken.add(name)
    labelled = Labelled(description)
    for image, split in split_of.items():
        if image not in missing and _label_file(image) not in broken:
            labelled.add(image, split, boxes.get(_label_file(image), []))
    # A folder is taken whole; a list may name a part of one.
    folders = {image.parent for image in split_of}
    plan = labelled.finish({**problems, **unlisted(tree, description, folders, split_of)})
    check_classes(layout.origin, plan.values(), every_split=False)
    relative = source_of(tree, plan, dict.fromkeys([*classes, *(place.label for place in plan.values())]))

    def samples() -> Iterator[Sample]:
        return map(_in_pixels, relative.read())

    return Source(relative.classes, relative.count, samples)


def _in_pixels(sample: Sample) -> Sample:
    """Multiply the boxes and keypoints by the image's size."""
    try:
        height, width, _ = decode(sample.encoded).shape
    except DecodeError:
        return sample._replace(annotations="")  # whoever reads the image says it
    content = json.loads(sample.annotations)
    for box in content["boxes"]:
        box["xyxy"] = [round(value * side, 4) for value, side in zip(box["xyxy"], (width, height) * 2, strict=True)]
        for point in box.get("keypoints", []):
            point[:2] = round(point[0] * width, 4), round(point[1] * height, 4)
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


def _keypoint_shape(layout: Description) -> tuple[int, int] | None:
    """Return how many keypoints a box has and how many numbers each; None where data.yaml gives none. Raises DataError."""
    match shape := layout.values.get("kpt_shape"):
        case None:
            return None
        case [int(count), 2 | 3 as numbers] if count > 0:
            return count, numbers
    raise DataError(
        f"{layout.origin}: expected `kpt_shape: [<keypoints of a box>, 2 (x, y) or 3 (and visibility)]`, got {shape!r}"
    )


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


def _boxes(content: bytes, classes: list[str], keypoints: tuple[int, int] | None) -> tuple[list[Box], list[str]]:
    """Return the boxes with sides and keypoints relative to the image's, and the bad lines: their numbers and what is wrong."""
    found, bad = [], []
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            kind, *words = line.split()
            if not 0 <= int(kind) < len(classes):
                raise ValueError(f"class {kind} of {len(classes)} names")
            values = [float(word) for word in words]
            points = _keypoints(values, keypoints) if keypoints else ()
            box = Box(classes[int(kind)], _sides(values[:4] if keypoints else values), keypoints=points)
            _check_shares(box)
        except ValueError as error:
            bad.append(f"{number} ({error})")
        else:
            found.append(box)
    return found, bad


def _check_shares(box: Box) -> None:
    try:
        check_inside(box.xyxy, (1, 1), _SLACK)
    except ValueError as error:
        raise ValueError(f"{error}: numbers are shares of the image's width and height, 0 to 1") from error


def _keypoints(values: list[float], shape: tuple[int, int]) -> tuple[tuple[float, ...], ...]:
    """Return (x, y, visibility) of each keypoint of a line; without visibility it is 2, visible. Raises ValueError."""
    count, size = shape
    if len(values) != 4 + count * size:
        raise ValueError(
            f"expected class, 4 numbers of the box and {count} × {size} of its keypoints (kpt_shape in data.yaml), "
            f"got {len(values)} numbers"
        )
    return tuple((*values[start : start + size], 2.0)[:3] for start in range(4, len(values), size))


def _sides(values: list[float]) -> tuple[float, float, float, float]:
    """Return left, top, right, bottom of a box or polygon. Raises ValueError."""
    x, y = values[0::2], values[1::2]
    if len(values) == 4:
        return x[0] - x[1] / 2, y[0] - y[1] / 2, x[0] + x[1] / 2, y[0] + y[1] / 2
    if len(values) >= 6 and len(x) == len(y):
        return min(x), min(y), max(x), max(y)
    raise ValueError(
        f"expected class and 4 numbers, got {len(values)} numbers (keypoints need `kpt_shape` in data.yaml)"
    )
