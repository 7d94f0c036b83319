"""Bounding boxes as every reader of detection data gives them, and the one class that they make of an image."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from deepcv.data.samples import DataError, Sample
from deepcv.data.sources.description import Description
from deepcv.data.sources.source import Place, Problems, Source, refuse
from deepcv.images import DecodeError, decode, headers

BACKGROUND = "background"
SLACK = 1.0  # pixels by which a box may leave its image: tools count from 0 or 1, and round
_UNKNOWN = (math.inf, math.inf)


@dataclass(frozen=True)
class Box:
    """A labelled box; `xyxy` is left, top, right, bottom in pixels from the image's upper left corner, right and bottom outside.

    `flags` are marks of the format that are true for it, such as `crowd` (COCO) and `difficult` (VOC). `polygons` are its
    outlines, (x, y, x, y, …); `keypoints` are (x, y, visibility), all in pixels as in the box.
    """

    label: str
    xyxy: tuple[float, float, float, float]
    flags: tuple[str, ...] = ()
    polygons: tuple[tuple[float, ...], ...] = ()
    keypoints: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        left, top, right, bottom = self.xyxy
        if not all(map(math.isfinite, self.xyxy)) or right < left or bottom < top:
            raise ValueError(f"the box {self.xyxy} has no area")
        if not all(map(math.isfinite, (number for points in (*self.polygons, *self.keypoints) for number in points))):
            raise ValueError("a polygon or keypoint is not finite")
        if any(len(polygon) < 6 or len(polygon) % 2 for polygon in self.polygons):
            raise ValueError("a polygon needs three points or more, x and y of each")
        if any(len(point) != 3 for point in self.keypoints):
            raise ValueError("keypoints need x, y and visibility of each")

    @property
    def area(self) -> float:
        """In square pixels."""
        left, top, right, bottom = self.xyxy
        return (right - left) * (bottom - top)


def check_inside(
    xyxy: tuple[float, float, float, float], size: tuple[float, float] | None = None, slack: float = SLACK
) -> None:
    """Raise ValueError where a box leaves its image by more than `slack`. `size`: width, height in its unit, if known."""
    left, top, right, bottom = xyxy
    size = size or _UNKNOWN
    if min(left, top) < -slack or right > size[0] + slack or bottom > size[1] + slack:
        sides = ", ".join(f"{side:g}" for side in xyxy)
        image = "the image" if size == _UNKNOWN else f"the image of {size[0]:g}×{size[1]:g}"
        raise ValueError(f"the box from left, top to right, bottom ({sides}) leaves {image}")


def declared_size(width: object, height: object) -> tuple[float, float] | None:
    """Return the size that annotations give, None where they give none or 0. Raises ValueError or TypeError."""
    sides = (float(width or 0), float(height or 0))  # type: ignore[arg-type]
    return sides if min(sides) > 0 else None


def annotations(boxes: Sequence[Box]) -> str:
    """Return the boxes as the JSON text of `Sample.annotations`."""
    return json.dumps({"boxes": [_plain(box) for box in boxes]}, ensure_ascii=False)


def _plain(box: Box) -> dict[str, object]:
    shapes = {"polygons": box.polygons, "keypoints": box.keypoints}
    return {
        "label": box.label, "xyxy": box.xyxy, **dict.fromkeys(box.flags, True),
        **{name: points for name, points in shapes.items() if points},
    }  # fmt: skip


def image_label(boxes: Sequence[Box]) -> str:
    """Return the class that all boxes share, else that of the largest one (the first of equally large ones)."""
    return max(boxes, key=lambda box: box.area).label


@dataclass
class Labelled:
    """Collects a plan from images and their boxes; images without a box go where `without_boxes` of the description says."""

    description: Description
    plan: dict[PurePosixPath, Place] = field(default_factory=dict)
    bare: list[PurePosixPath] = field(default_factory=list)
    named: set[PurePosixPath] = field(default_factory=set)  # all images that the format lists, with boxes or without
    sizes: dict[tuple[float, float], tuple[float, float]] = field(default_factory=dict)  # one object for each size

    def add(
        self, name: PurePosixPath, split: str | None, boxes: Sequence[Box], size: tuple[float, float] | None = None
    ) -> None:
        """Take an image; `size` is the declared one, None where annotations give none."""
        size = None if size is None else self.sizes.setdefault(size, size)
        self.named.add(name)
        wish = self.description.values.get("without_boxes")
        if boxes:
            self.plan[name] = Place(split, image_label(boxes), annotations(boxes), size)
        elif wish == BACKGROUND:
            self.plan[name] = Place(split, BACKGROUND, annotations(boxes), size)
        elif wish is None:
            self.bare.append(name)
        elif wish != "skip":
            raise DataError(f"{self.description.origin}: expected `without_boxes: skip` or `background`, got {wish!r}")

    def finish(self, problems: Mapping[str, Sequence[object]]) -> dict[PurePosixPath, Place]:
        """Return the plan. Raises DataError with all problems, images without boxes among them."""
        what = f"images without boxes (say `without_boxes: skip` or `without_boxes: {BACKGROUND}`)"
        refuse(self.description.origin, {**problems, what: self.bare})
        return self.plan


def fitting(source: Source, origin: object, plan: Mapping[PurePosixPath, Place]) -> Source:
    """Hold every image that is read against its declared size, or its boxes against its own one.

    The images are not read once more for it: a DataError that counts what does not fit comes after the last one.
    """

    def check(samples: Iterable[Sample]) -> Iterator[Sample]:
        problems = Problems()
        for sample in samples:
            if found := _misfit(sample, plan[PurePosixPath(sample.id)].size):
                problems.add(found[0], f"{sample.id} ({found[1]})")
            yield sample
        problems.refuse(origin)

    return replace(source, check=check)


def _misfit(sample: Sample, declared: tuple[float, float] | None) -> tuple[str, str] | None:
    """Return the kind of problem and what it is; None where all fits."""
    # Where a size is declared, the boxes were held against it.
    boxes = [] if declared else json.loads(sample.annotations or "{}").get("boxes", [])
    if not declared and not boxes:
        return None
    header = headers.read(sample.encoded)
    if header and not _misfit_of_size((header.width, header.height), declared, boxes):
        return None
    # Not every format has a header that is known, and not every header says how the image is turned: the pixels decide.
    return _misfit_of_size(_decoded_size(sample.encoded), declared, boxes)


def _misfit_of_size(
    size: tuple[float, float], declared: tuple[float, float] | None, boxes: Sequence[Mapping[str, Any]]
) -> tuple[str, str] | None:
    if declared:
        fits = all(abs(one - other) <= SLACK for one, other in zip(declared, size, strict=True)) or size == _UNKNOWN
        text = f"annotations say {declared[0]:g}×{declared[1]:g}, the file has {size[0]:g}×{size[1]:g}"
        return None if fits else ("images of another size than their annotations say", text)
    for box in boxes:
        try:
            check_inside(box["xyxy"], size)
        except ValueError as error:
            return "images that a box leaves", str(error)
    return None


def _decoded_size(encoded: bytes) -> tuple[float, float]:
    try:
        height, width, _ = decode(encoded).shape
    except DecodeError:
        return _UNKNOWN  # whoever reads the image says it
    return width, height
