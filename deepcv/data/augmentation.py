"""Batched augmentation with parameters per sample, drawn by a counter-based hash of (seed, epoch, sample, operation).

The draw for an image does not depend on batch size, order, device or worker: a resumed run sees the same pictures, bit for bit.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# One number per use, so that two operations never share their draws.
ORDER, FLIP, SHIFT_Y, SHIFT_X, CUTOUT_Y, CUTOUT_X, DROPOUT = range(7)

_MASK_32 = 0xFFFFFFFF


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


def hash32(seed: int, epoch: int, sample: Tensor, operation: int) -> Tensor:
    """Mix to integers in 0 … 2³²−1 (int64 tensor of sample's shape), the same on every device.

    Each step is the 32-bit finaliser "lowbias32" (Wellons, "Prospecting for hash functions", 2018).
    """
    mixed = torch.zeros_like(sample, dtype=torch.int64)
    for word in (seed, seed >> 32, epoch, operation):
        mixed = _mix32((mixed + (word & _MASK_32) + 0x9E3779B9) & _MASK_32)
    return _mix32((mixed ^ (sample & _MASK_32)) & _MASK_32)


def permutation(seed: int, epoch: int, count: int, device: torch.device) -> Tensor:
    """Order in which an epoch visits `count` samples, int64 (count,)."""
    numbers = torch.arange(count, device=device)
    keys = hash32(seed, epoch, numbers, ORDER)
    return torch.argsort(keys * count + numbers)  # equal keys keep the order of their numbers, on every device


def gather(images_nhwc: Tensor, index: Tensor, augmentation: Augmentation, seed: int, epoch: int) -> Tensor:
    """Take and augment images in one gather: uint8 (n, h, w, c) and (b,) to uint8 (b, h, w, c)."""
    height, width = images_nhwc.shape[1:3]
    if augmentation == Augmentation():
        return images_nhwc[index]
    rows = torch.arange(height, device=index.device).expand(len(index), height)
    columns = torch.arange(width, device=index.device).expand(len(index), width)
    if augmentation.shift:
        rows = _reflect(rows + _draw(seed, epoch, index, SHIFT_Y, augmentation.shift), height)
        columns = _reflect(columns + _draw(seed, epoch, index, SHIFT_X, augmentation.shift), width)
    if augmentation.flip:
        flipped = ((hash32(seed, 0, index, FLIP) >> 31) + epoch) % 2 == 1
        columns = torch.where(flipped[:, None], columns.flip(1), columns)
    batch = images_nhwc[index[:, None, None], rows[:, :, None], columns[:, None, :]]
    if augmentation.cutout:
        inside_rows = _window(seed, epoch, index, CUTOUT_Y, height, augmentation.cutout)
        inside_columns = _window(seed, epoch, index, CUTOUT_X, width, augmentation.cutout)
        batch = batch.masked_fill((inside_rows[:, :, None] & inside_columns[:, None, :])[..., None], 0)
    return batch


def _mix32(x: Tensor) -> Tensor:
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK_32
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK_32  # a product of 32-bit numbers may wrap in int64; its low 32 bits are exact
    return x ^ (x >> 16)


def _draw(seed: int, epoch: int, index: Tensor, operation: int, reach: int) -> Tensor:
    """Draw integers in −reach … reach, shape (b, 1)."""
    return (hash32(seed, epoch, index, operation) % (2 * reach + 1) - reach)[:, None]


def _reflect(position: Tensor, size: int) -> Tensor:
    """Mirror positions that leave 0 … size−1 back inside, without repeating the border pixel."""
    period = max(1, 2 * (size - 1))
    folded = position % period
    return torch.minimum(folded, period - folded)


def _window(seed: int, epoch: int, index: Tensor, operation: int, size: int, side: int) -> Tensor:
    """Mark `side` neighbours around a random centre, clipped at the border: bool (b, size)."""
    centre = (hash32(seed, epoch, index, operation) % size)[:, None]
    offset = torch.arange(size, device=index.device)[None, :] - centre + side // 2
    return (offset >= 0) & (offset < side)
