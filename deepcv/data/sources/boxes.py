"""Bounding boxes as every reader of detection data gives them, and the one class that they make of an image."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from deepcv.data.samples import DataError
from deepcv.data.sources.description import Description
from deepcv.data.sources.source import Place, refuse

BACKGROUND = "background"


@dataclass(frozen=True)
class Box:
    """A labelled box; `xyxy` is left, top, right, bottom in pixels from the image's upper left corner, right and bottom outside.

    `flags` are marks of the format that are true for it, such as `crowd` (COCO) and `difficult` (VOC).
    """

    label: str
    xyxy: tuple[float, float, float, float]
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        left, top, right, bottom = self.xyxy
        if not all(map(math.isfinite, self.xyxy)) or right < left or bottom < top:
            raise ValueError(f"the box {self.xyxy} has no area")

    @property
    def area(self) -> float:
        """In square pixels."""
        left, top, right, bottom = self.xyxy
        return (right - left) * (bottom - top)


def annotations(boxes: Sequence[Box]) -> str:
    """Return the boxes as the JSON text of `Sample.annotations`."""
    return json.dumps(
        {"boxes": [{"label": b.label, "xyxy": list(b.xyxy), **dict.fromkeys(b.flags, True)} for b in boxes]},
        ensure_ascii=False,
    )


def image_label(boxes: Sequence[Box]) -> str:
    """Return the class that all boxes share, else that of the largest one (the first of equally large ones)."""
    return max(boxes, key=lambda box: box.area).label


@dataclass
class Labelled:
    """Collects a plan from images and their boxes; images without a box go where `without_boxes` of the description says."""

    description: Description
    plan: dict[PurePosixPath, Place] = field(default_factory=dict)
    bare: list[PurePosixPath] = field(default_factory=list)

    def add(self, name: PurePosixPath, split: str | None, boxes: Sequence[Box],
            text: Callable[[Sequence[Box]], str] = annotations) -> None:  # fmt: skip
        """Take an image."""
        wish = self.description.values.get("without_boxes")
        if boxes:
            self.plan[name] = Place(split, image_label(boxes), text(boxes))
        elif wish == BACKGROUND:
            self.plan[name] = Place(split, BACKGROUND, text(boxes))
        elif wish is None:
            self.bare.append(name)
        elif wish != "skip":
            raise DataError(f"{self.description.origin}: expected `without_boxes: skip` or `background`, got {wish!r}")

    def finish(self, problems: dict[str, list[object]]) -> dict[PurePosixPath, Place]:
        """Return the plan. Raises DataError with all problems, images without boxes among them."""
        what = f"images without boxes (say `without_boxes: skip` or `without_boxes: {BACKGROUND}`)"
        refuse(self.description.origin, problems | {what: list(self.bare)})
        return self.plan
