"""Bounding boxes as every reader of detection data gives them, and the one class that they make of an image."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from deepcv.data.samples import DataError
from deepcv.data.sources.description import Description
from deepcv.data.sources.source import Place, refuse

BACKGROUND = "background"


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

    def add(self, name: PurePosixPath, split: str | None, boxes: Sequence[Box],
            text: Callable[[Sequence[Box]], str] = annotations) -> None:  # fmt: skip
        """Take an image."""
        self.named.add(name)
        wish = self.description.values.get("without_boxes")
        if boxes:
            self.plan[name] = Place(split, image_label(boxes), text(boxes))
        elif wish == BACKGROUND:
            self.plan[name] = Place(split, BACKGROUND, text(boxes))
        elif wish is None:
            self.bare.append(name)
        elif wish != "skip":
            raise DataError(f"{self.description.origin}: expected `without_boxes: skip` or `background`, got {wish!r}")

    def finish(self, problems: Mapping[str, Sequence[object]]) -> dict[PurePosixPath, Place]:
        """Return the plan. Raises DataError with all problems, images without boxes among them."""
        what = f"images without boxes (say `without_boxes: skip` or `without_boxes: {BACKGROUND}`)"
        refuse(self.description.origin, {**problems, what: self.bare})
        return self.plan
