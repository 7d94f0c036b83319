"""Flip, shift and cutout while the batch is taken from the dataset: one gather of pixels, each image with its own draws."""

from dataclasses import dataclass

import torch
from torch import Tensor

from deepcv.data.augmentation.draws import CUTOUT_X, CUTOUT_Y, FLIP, SHIFT_X, SHIFT_Y, hash32
from deepcv.data.augmentation.geometry import Warp, compose, mirror, reflect, translate


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training image; sizes in pixels, 0 or False switches an operation off.

    `flip` mirrors each image left to right in every other epoch, a random half of them in the first: so two epochs show
    both sides of each (Jordan 2024, arXiv 2404.00498); `shift` moves by up to so many pixels and fills by reflection;
    `cutout` blanks a square of this side (DeVries and Taylor 2017, arXiv 1708.04552).
    """

    flip: bool = False
    shift: int = 0
    cutout: int = 0


def gather(
    images_nhwc: Tensor, index: Tensor, augmentation: Augmentation, seed: int, epoch: int, *, taken: bool = False
) -> Tensor:
    """Take and augment images in one gather: uint8 (n, h, w, c) and (b,) to uint8 (b, h, w, c).

    `index` are the images' numbers in the dataset, on which the draws depend. They lie at these numbers in `images_nhwc`;
    where they are `taken` already, n is b and they lie in the order of `index`.
    """
    height, width, channels = images_nhwc.shape[1:]
    if augmentation == Augmentation():
        return images_nhwc if taken else images_nhwc[index]
    images = torch.arange(len(index), device=index.device) if taken else index
    lines = torch.arange(height, device=index.device).expand(len(index), height)
    columns = torch.arange(width, device=index.device).expand(len(index), width)
    if augmentation.shift:
        lines = reflect(lines + _draw(seed, epoch, index, SHIFT_Y, augmentation.shift), height)
        columns = reflect(columns + _draw(seed, epoch, index, SHIFT_X, augmentation.shift), width)
    if augmentation.flip:
        columns = torch.where(_flipped(seed, epoch, index)[:, None], columns.flip(1), columns)
    # Whole pixels by their number: a quarter of the time of an index per axis.
    pixels = ((images[:, None] * height + lines)[:, :, None] * width + columns[:, None, :]).flatten()
    batch = images_nhwc.view(-1, channels).index_select(0, pixels).view(-1, height, width, channels)
    if augmentation.cutout:
        inside_rows = _window(seed, epoch, index, CUTOUT_Y, height, augmentation.cutout)
        inside_columns = _window(seed, epoch, index, CUTOUT_X, width, augmentation.cutout)
        batch = batch.masked_fill((inside_rows[:, :, None] & inside_columns[:, None, :])[..., None], 0)
    return batch


def flip_and_shift(index: Tensor, augmentation: Augmentation, seed: int, epoch: int) -> Warp:
    """What `gather` does to positions: shift, then flip. What it mirrors at the border comes from outside."""
    still = torch.zeros(len(index), device=index.device)
    left, up = (
        _draw(seed, epoch, index, stream, augmentation.shift)[:, 0].float() if augmentation.shift else still
        for stream in (SHIFT_X, SHIFT_Y)
    )
    flipped = _flipped(seed, epoch, index) if augmentation.flip else still > 0
    return Warp(compose(translate(-left, -up), mirror(flipped)))


def _flipped(seed: int, epoch: int, index: Tensor) -> Tensor:
    return ((hash32(seed, 0, index, FLIP) >> 31) + epoch) % 2 == 1


def _draw(seed: int, epoch: int, index: Tensor, operation: int, reach: int) -> Tensor:
    """Draw integers in −reach … reach, shape (b, 1)."""
    return (hash32(seed, epoch, index, operation) % (2 * reach + 1) - reach)[:, None]


def _window(seed: int, epoch: int, index: Tensor, operation: int, size: int, side: int) -> Tensor:
    """Mark `side` neighbours around a random centre, clipped at the border: bool (b, size)."""
    centre = (hash32(seed, epoch, index, operation) % size)[:, None]
    offset = torch.arange(size, device=index.device)[None, :] - centre + side // 2
    return (offset >= 0) & (offset < side)
