"""COCO's JSON: `{source: coco, annotations: instances.json, images: folder}`, each a path or `{train: path, val: path}`."""

import json
from collections import Counter, defaultdict
from pathlib import PurePosixPath
from typing import Any

from deepcv.data.samples import DataError
from deepcv.data.sources.boxes import Box, Labelled, check_inside, declared_size, fitting
from deepcv.data.sources.description import Description
from deepcv.data.sources.source import Source, check_classes, source_of, unlisted
from deepcv.data.sources.tree import Tree


def coco(tree: Tree, description: Description) -> Source:
    """Read the images that the JSON names with boxes, outlines, keypoints; the class is `boxes.image_label`. Raises DataError."""
    description.only("annotations", "images", "without_boxes", "unlisted")
    files = description.places("annotations", "annotations.json")
    folders = description.places("images", "images")
    if None not in folders and set(folders) != set(files):
        raise DataError(
            f"{description.origin}: `annotations` has {_keys(files)} and `images` has {_keys(folders)}; "
            "expected the same splits"
        )
    labelled = Labelled(description)
    problems: dict[str, list[object]] = defaultdict(list)
    classes: dict[int, str] = {}
    for split, file in files.items():
        content = _parse(tree.read(file), str(tree.origin / file))
        classes |= _collect(content, tree, folders.get(split) or folders[None], split, labelled, problems)
    plan = labelled.finish({**problems, **unlisted(tree, description, folders.values(), labelled.named)})
    check_classes(description.origin, plan.values(), every_split=False)
    ordered = [classes[number] for number in sorted(classes)]
    source = source_of(tree, plan, dict.fromkeys([*ordered, *(place.label for place in plan.values())]))
    return fitting(source, description.origin, plan)


def _collect(
    content: dict[str, Any], tree: Tree, folder: PurePosixPath, split: str | None,
    labelled: Labelled, problems: dict[str, list[object]],
) -> dict[int, str]:  # fmt: skip
    """Add one file's images to `labelled`, return its classes by category id."""
    origin = labelled.description.origin
    try:
        classes = {int(category["id"]): str(category["name"]) for category in content["categories"]}
        names = {image["id"]: folder / str(image["file_name"]) for image in content["images"]}
        sizes = {image["id"]: declared_size(image.get("width"), image.get("height")) for image in content["images"]}
        found: defaultdict[Any, list[Box]] = defaultdict(list)
        broken = set()  # images that have boxes, though not all of them can be read
        for number, annotation in enumerate(content["annotations"]):
            where = f"annotation {annotation.get('id', number)}"
            if annotation["image_id"] not in names:
                problems["annotations of an image that is not listed"].append(where)
            elif annotation["category_id"] not in classes:
                problems["annotations of a category that is not listed"].append(where)
                broken.add(annotation["image_id"])
            else:
                left, top, width, height = map(float, annotation["bbox"])
                flags = ("crowd",) if annotation.get("iscrowd") else ()
                label = classes[annotation["category_id"]]
                try:
                    xyxy = (left, top, left + width, top + height)
                    check_inside(xyxy, sizes[annotation["image_id"]])
                    box = Box(label, xyxy, flags, _polygons(annotation), _keypoints(annotation))
                except ValueError as error:
                    problems["bad boxes"].append(f"{where}: {error}")
                    broken.add(annotation["image_id"])
                else:
                    found[annotation["image_id"]].append(box)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{origin}: the annotations are not COCO's (images with id and file_name, categories with id and name, "
            f"annotations with image_id, category_id and bbox [x, y, width, height]): {type(error).__name__}: {error}"
        ) from error
    problems["categories of the same name"] += [c for c, times in Counter(classes.values()).items() if times > 1]
    problems["images listed twice"] += [
        str(name) for name, times in Counter(str(folder / str(i["file_name"])) for i in content["images"]).items()
        if times > 1 or PurePosixPath(name) in labelled.plan
    ]  # fmt: skip
    files = set(tree.files)
    labelled.named.update(names.values())
    for image, name in names.items():
        if image in broken:
            continue
        if name in files:
            labelled.add(name, split, found[image], sizes[image])
        else:
            problems[f"images that are not below {tree.origin}"].append(str(name))
    return classes


def _polygons(annotation: dict[str, Any]) -> tuple[tuple[float, ...], ...]:
    """Return outlines; none of a mask as run lengths, which COCO gives for crowds, nor of points and lines, as COCO has some."""
    found = annotation.get("segmentation") or []
    if isinstance(found, dict):
        return ()
    return tuple(tuple(map(float, polygon)) for polygon in found if len(polygon) >= 6)


def _keypoints(annotation: dict[str, Any]) -> tuple[tuple[float, ...], ...]:
    flat = [float(number) for number in annotation.get("keypoints") or []]
    return tuple(tuple(flat[start : start + 3]) for start in range(0, len(flat), 3))


def _parse(content: bytes, origin: str) -> dict[str, Any]:
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{origin}: not valid JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise DataError(f"{origin}: expected COCO's JSON object, got a {type(parsed).__name__}")
    return parsed


def _keys(places: dict[str | None, PurePosixPath]) -> str:
    return ", ".join(map(str, places))
