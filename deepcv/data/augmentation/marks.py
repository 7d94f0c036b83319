"""Boxes, masks and keypoints of a batch, which go where the pixels go that they mark."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deepcv.data.augmentation.geometry import Warp


@dataclass(frozen=True)
class Marks:
    """What is marked in the images of a batch; each kind may be missing. Raises ValueError for other shapes and types.

    `boxes`, float (b, k, 4), are left, top, right, bottom and `keypoints`, float (b, k, 2), x, y: pixels from the image's top left
    corner, so that the centre of its first pixel is (0.5, 0.5). Where an image has fewer than k, the rest is NaN, and so becomes
    what leaves the image: its place in the list stays. `masks`, integers (b, h, w) or (b, k, h, w), are numbers of classes or
    objects; pixels that come from outside the image become `outside`. It, the masks and their distance to it are below 2²⁴.
    """

    boxes: Tensor | None = None
    masks: Tensor | None = None
    keypoints: Tensor | None = None
    outside: int = 0

    def __post_init__(self) -> None:
        for name, places, last in (("boxes", self.boxes, 4), ("keypoints", self.keypoints, 2)):
            if places is None:
                continue
            if not places.is_floating_point() or places.ndim != 3 or places.shape[2] != last:
                raise ValueError(f"expected {name} (b, k, {last}) of floats, got {_described(places)}")
        if self.masks is not None:
            if self.masks.ndim not in (3, 4) or self.masks.dtype not in _INTEGERS:
                raise ValueError(f"expected masks (b, h, w) or (b, k, h, w) of integers, got {_described(self.masks)}")
            limits = torch.iinfo(self.masks.dtype)
            if abs(self.outside) >= _FLOAT32_EXACT:
                raise ValueError(f"expected outside, the masks' value there, between −2²⁴ and 2²⁴, got {self.outside}")
            if not limits.min <= self.outside <= limits.max:
                raise ValueError(f"masks of {self.masks.dtype} cannot hold {self.outside}, the value for outside")
        if len(sizes := {len(values) for values in self._all()}) > 1:
            raise ValueError(f"expected marks of equally many images, got {sorted(sizes)}")

    @property
    def size(self) -> int | None:
        """Of how many images these are; None where nothing is marked."""
        return next((len(values) for values in self._all()), None)

    @property
    def boxes_inside(self) -> Tensor | None:
        """Which boxes there are, and have a part in the image: bool (b, k)."""
        return None if self.boxes is None else ~self.boxes.isnan().any(2)

    @property
    def keypoints_inside(self) -> Tensor | None:
        """Which keypoints there are, and lie in the image: bool (b, k)."""
        return None if self.keypoints is None else ~self.keypoints.isnan().any(2)

    def cut(self, height: int, width: int) -> "Marks":
        """Cut boxes at the border of the image; those without area in it, and keypoints outside, become NaN.

        Raises ValueError where masks are of another size than the image.
        """
        boxes, keypoints = self.boxes, self.keypoints
        if self.masks is not None and (size := tuple(self.masks.shape[-2:])) != (height, width):
            raise ValueError(f"expected masks of {height} × {width} pixels, as the images, got {size[0]} × {size[1]}")
        return replace(
            self,
            boxes=None if boxes is None else _cut_boxes(boxes, height, width),
            keypoints=None if keypoints is None else _cut_keypoints(keypoints, height, width),
        )

    def warped(self, warp: Warp, rows: Tensor, height: int, width: int) -> "Marks":
        """The marks after the images `rows`, int64 (n,), went through their n warps; those of the others stay as they are.

        A box is the smallest around what became of the former box: after a rotation it is larger than what it marks, and after
        several more so. What left the image stays away, as its pixels do.
        """

        def moved(values: Tensor | None, move: Callable[[Tensor], Tensor]) -> Tensor | None:
            return None if values is None else values.index_copy(0, rows, move(values[rows]).to(values.dtype))

        return replace(
            self,
            boxes=moved(self.boxes, lambda own: _cut_boxes(warp.boxes(own, height, width), height, width)),
            masks=moved(self.masks, lambda own: warp.masks(own, self.outside)),
            keypoints=moved(self.keypoints, lambda own: _cut_keypoints(warp.points(own, height, width), height, width)),
        )

    def _all(self) -> list[Tensor]:
        return [values for values in (self.boxes, self.masks, self.keypoints) if values is not None]


_FLOAT32_EXACT = 2**24  # masks are warped as float32, which holds all integers below it
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def _described(values: Tensor) -> str:
    return f"{tuple(values.shape)} of {values.dtype}"


def _cut_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    limit = boxes.new_tensor([width, height, width, height])
    boxes = torch.minimum(boxes.clamp(min=0), limit)
    empty = (boxes[..., 2:] <= boxes[..., :2]).any(-1, keepdim=True) | boxes.isnan().any(-1, keepdim=True)
    return boxes.masked_fill(empty, torch.nan)


def _cut_keypoints(keypoints: Tensor, height: int, width: int) -> Tensor:
    inside = (keypoints >= 0) & (keypoints <= keypoints.new_tensor([width, height]))
    return keypoints.masked_fill(~inside.all(-1, keepdim=True), torch.nan)
