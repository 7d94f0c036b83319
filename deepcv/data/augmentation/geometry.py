"""Operations on positions: every image of a batch has its own warp, and its boxes, masks and keypoints move along.

Positions are pixels from the top left corner of the image, x before y: the centre of the first pixel is (0.5, 0.5).
A matrix (b, 2, 3) maps *output* positions to *input* positions, both from the image's centre, x before y.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from deepcv.data.augmentation.colour import to_uint8
from deepcv.data.augmentation.draws import Draws, mix32

Border = Literal["zeros", "border", "reflection"]
_CONTROLS = 4
_EDGE_POINTS = 16  # of a box: a bent edge is not where its corners are
_INVERSION_STEPS = 20


def rotate(degrees: Tensor) -> Tensor:
    """Rotate about the centre, counter-clockwise as one sees it."""
    angle = torch.deg2rad(degrees)
    sine, cosine = angle.sin(), angle.cos()
    return _matrix(cosine, -sine, sine, cosine)


def mirror(mirrored: Tensor) -> Tensor:
    """Mirror left to right where `mirrored`, bool (b,)."""
    one, zero = torch.ones(len(mirrored), device=mirrored.device), torch.zeros(len(mirrored), device=mirrored.device)
    return _matrix(torch.where(mirrored, -one, one), zero, zero, one)


def translate(right: Tensor, down: Tensor) -> Tensor:
    """Move by so many pixels."""
    one, zero = torch.ones_like(right), torch.zeros_like(right)
    return _matrix(one, zero, zero, one, -right, -down)


def scale(factor: Tensor) -> Tensor:
    """Enlarge about the centre; below 1, shrink."""
    zero = torch.zeros_like(factor)
    return _matrix(1 / factor, zero, zero, 1 / factor)


def shear_x(slope: Tensor, height: int) -> Tensor:
    """Move each row left by slope · y: the top row stays, as in Pillow and the papers on augmentation."""
    one, zero = torch.ones_like(slope), torch.zeros_like(slope)
    return _matrix(one, slope, zero, one, slope * (height / 2), zero)


def shear_y(slope: Tensor, width: int) -> Tensor:
    """Move each column up by slope · x: the left column stays."""
    one, zero = torch.ones_like(slope), torch.zeros_like(slope)
    return _matrix(one, zero, slope, one, zero, slope * (width / 2))


def resized_crop(left: Tensor, top: Tensor, crop_width: Tensor, crop_height: Tensor, width: int, height: int) -> Tensor:
    """Enlarge the part at (left, top) to the whole image of width × height."""
    zero = torch.zeros_like(left)
    return _matrix(
        crop_width / width, zero, zero, crop_height / height,
        left + crop_width / 2 - width / 2, top + crop_height / 2 - height / 2,
    )  # fmt: skip


def random_crop(kept: Tensor, keys: Tensor, height: int, width: int) -> Tensor:
    """Enlarge a part at a random place, of this share `kept` (b,) of each side; `keys` (b,) decide the place."""
    left, top = (Draws(0, 0, keys).uniform(0, 1) * (1 - kept)[:, None]).unbind(1)
    return resized_crop(left * width, top * height, kept * width, kept * height, width, height)


def reflect(position: Tensor, size: int) -> Tensor:
    """Mirror positions that leave 0 … size−1 back inside, without repeating the border pixel."""
    period = max(1, 2 * (size - 1))
    folded = position % period
    return torch.minimum(folded, period - folded)


def compose(first: Tensor, second: Tensor) -> Tensor:
    """One matrix that does `first` and then `second`, with one interpolation."""
    linear, offset = first[:, :, :2], first[:, :, 2:]
    product = (linear[..., None] * second[:, None]).sum(2)  # not `@`, which autocast would do in bfloat16
    return torch.cat([product[:, :, :2], product[:, :, 2:] + offset], dim=2)


class Move(Protocol):
    """What moves the pixels of each image of a batch. `warp` is for what is marked in them, and made only where it is asked for."""

    def images(self, images_nchw: Tensor) -> Tensor:
        """Move the pixels of uint8 images (b, c, h, w)."""

    def warp(self) -> "Warp":
        """The same move, of positions."""


@dataclass(frozen=True)
class Warp:
    """A warp for each image of a batch: a matrix, and for a smooth deformation the `bend`.

    What images get from outside is black, the border, or mirrored: `border`. Masks get a value of their own there.

    `bend` (b, 2, rows, columns) displaces control points, spread evenly over the image from border to border, by so many
    pixels (x before y); between them it is a bicubic surface. It must not be so steep that the image folds: boxes and
    keypoints could not follow.
    """

    matrix: Tensor
    bend: Tensor | None = None
    border: Border = "zeros"

    def warp(self) -> "Warp":
        """Itself: images and what is marked in them go the same way."""
        return self

    def images(self, images_nchw: Tensor) -> Tensor:
        """Warp uint8 images with bilinear interpolation."""
        values = F.grid_sample(
            images_nchw.float(), self._grid(images_nchw), mode="bilinear", padding_mode=self.border, align_corners=False
        )
        return to_uint8(values.round_())

    def masks(self, masks: Tensor, outside: int = 0) -> Tensor:
        """Warp integer masks (b, h, w) or (b, k, h, w) to the nearest pixel's value, or `outside` from outside.

        All values and their distance to `outside` must be below 2²⁴: they are warped as float32.
        """
        shifted = (masks if masks.ndim == 4 else masks[:, None]).float() - outside
        values = F.grid_sample(shifted, self._grid(shifted), mode="nearest", padding_mode="zeros", align_corners=False)
        return (values + outside).to(masks.dtype).reshape(masks.shape)

    def points(self, points: Tensor, height: int, width: int) -> Tensor:
        """Move keypoints (b, n, 2); they may leave the image."""
        points = points.to(self.matrix.dtype)
        centre = self.matrix.new_tensor([width / 2, height / 2])
        linear, offset = self.matrix[:, None, :, :2], self.matrix[:, None, :, 2]
        source = (points - centre - offset)[..., None]
        moved = torch.linalg.solve(linear, source)[..., 0]
        if self.bend is not None:  # moved = linear⁻¹ (source − bend(moved)): a contraction, so repeating it finds it
            field = _surface(self.bend, height, width)
            for _ in range(_INVERSION_STEPS):
                place = (moved / centre)[:, :, None]
                bent = F.grid_sample(field, place, padding_mode="border", align_corners=False)[..., 0].transpose(1, 2)
                moved = torch.linalg.solve(linear, source - bent[..., None])[..., 0]
        result: Tensor = moved + centre
        return result

    def boxes(self, boxes: Tensor, height: int, width: int) -> Tensor:
        """Boxes (b, n, 4) of left, top, right, bottom around what became of each, clipped to the image."""
        boxes = boxes.to(self.matrix.dtype)
        along = torch.linspace(0, 1, _EDGE_POINTS, device=boxes.device, dtype=boxes.dtype)
        left, top, right, bottom = (side[..., None] for side in boxes.unbind(-1))
        xs, ys = left + (right - left) * along, top + (bottom - top) * along
        edges = [
            torch.stack([xs, top.expand_as(xs)], -1),
            torch.stack([xs, bottom.expand_as(xs)], -1),
            torch.stack([left.expand_as(ys), ys], -1),
            torch.stack([right.expand_as(ys), ys], -1),
        ]
        outline = torch.cat(edges, dim=2)  # (b, n, 4 · points, 2)
        moved = self.points(outline.flatten(1, 2), height, width).view(outline.shape)
        limit = boxes.new_tensor([width, height])
        low, high = (torch.minimum(moved.aminmax(dim=2)[side].clamp(min=0), limit) for side in range(2))
        return torch.cat([low, high], dim=2)

    def _grid(self, images_nchw: Tensor) -> Tensor:
        """Input positions on the scale −1 … 1 of `grid_sample`, (b, h, w, 2), x and y in planes of their own."""
        height, width = images_nchw.shape[2:]
        half = torch.tensor([[[width / 2], [height / 2]]], dtype=self.matrix.dtype)
        half = half.to(self.matrix.device, non_blocking=True)  # `new_tensor` waits for the device
        linear_x, linear_y, offset = (self.matrix / half).unbind(2)
        xs, ys = (torch.arange(side, device=half.device, dtype=half.dtype) + 0.5 - side / 2 for side in (width, height))
        rows = linear_y[:, :, None] * ys + offset[:, :, None]  # (b, 2, h): all but a column's part
        # `affine_grid` does the same by many small matrix products, in eight times the time.
        grid = torch.addcmul(rows[..., None], linear_x[..., None, None], xs)
        if self.bend is not None:
            grid = grid + _surface(self.bend, height, width) / half[..., None]
        return grid.permute(0, 2, 3, 1)


@dataclass(frozen=True)
class Flip:
    """Every image of a batch mirrored left to right."""

    count: int
    device: torch.device

    def images(self, images_nchw: Tensor) -> Tensor:
        """Mirror uint8 images (b, c, h, w)."""
        return images_nchw.flip(3)

    def warp(self) -> Warp:
        """The same, of positions."""
        return Warp(mirror(torch.ones(self.count, dtype=torch.bool, device=self.device)))


@dataclass(frozen=True)
class Shift:
    """Each image of a batch moved up and left by so many whole pixels, int64 (b, 2), and filled by reflection."""

    up_left: Tensor

    def images(self, images_nchw: Tensor) -> Tensor:
        """Move uint8 images (b, c, h, w): pixels keep their values."""
        shape = images_nchw.shape
        rows, columns = (
            reflect(torch.arange(side, device=self.up_left.device) + self.up_left[:, axis, None], side)
            for axis, side in enumerate(shape[2:])
        )
        moved = images_nchw.gather(2, rows[:, None, :, None].expand(shape))
        return moved.gather(3, columns[:, None, None, :].expand(shape))

    def warp(self) -> Warp:
        """The same, of positions: what is mirrored at the border comes from outside."""
        up, left = self.up_left.float().unbind(1)
        return Warp(translate(-left, -up))


def shift(reach: Tensor, keys: Tensor) -> Shift:
    """Move by up to `reach` (b,) whole pixels in x and y; `keys` (b,), int64 0 … 2³²−1, decide how far."""
    return Shift(((Draws(0, 0, keys).bits(0, 1) * (2 * reach.long() + 1)[:, None]) >> 32) - reach.long()[:, None])


def elastic(reach: Tensor, keys: Tensor) -> Warp:
    """A smooth random deformation: 4 × 4 control points, each displaced by up to `reach` (b,) pixels in x and y.

    `keys` (b,), int64 0 … 2³²−1, decide it. Up to a 25th of the shorter side nothing can fold, whatever is drawn (the slope of
    the bicubic surface is at most 8.25 · reach / spacing); up to a twelfth, none of 4,000 images did; at a sixth most do.
    """
    controls = torch.arange(2 * _CONTROLS**2, device=keys.device).view(2, _CONTROLS, _CONTROLS)
    bits = mix32(mix32(controls + 1) ^ keys[:, None, None, None])
    offsets = (bits >> 8).float() * 2.0**-23 - 1
    return Warp(scale(torch.ones_like(reach)), offsets * reach[:, None, None, None], "reflection")


def _surface(bend: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(bend, (height, width), mode="bicubic", align_corners=True)


def _matrix(xx: Tensor, xy: Tensor, yx: Tensor, yy: Tensor, x: Tensor | None = None, y: Tensor | None = None) -> Tensor:
    zero = torch.zeros_like(xx)
    entries = [xx, xy, zero if x is None else x, yx, yy, zero if y is None else y]
    return torch.stack(entries, dim=1).view(-1, 2, 3)
