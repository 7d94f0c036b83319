"""MixUp, CutMix and erasing: parts of an image that come from its partner, or from nowhere.

The partner of a sample is a function of (seed, epoch, sample): another place of the epoch's order, so that no batch size,
worker or rank changes it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from deepcv.data.augmentation.colour import to_uint8
from deepcv.data.augmentation.draws import Draws


@dataclass(frozen=True)
class Mixed:
    """Images uint8 (b, c, h, w) and, per image, how much of its own is left: float32 (b,), 0 … 1."""

    images_nchw: Tensor
    own_share: Tensor


def partners(order: Tensor, positions: Tensor, shift: int) -> Tensor:
    """Sample numbers (b,) of the partners of the samples at `positions` of the epoch's `order`, `shift` places on."""
    return order[(positions + shift) % len(order)]


def mixup(images_nchw: Tensor, partners_nchw: Tensor, draws: Draws, alpha: float) -> Mixed:
    """Blend each image with its partner by λ ~ Beta(α, α) (Zhang et al. 2018, arXiv 1710.09412)."""
    own = draws.beta(alpha, alpha, 0)
    share = own[:, :, None, None]
    blended = images_nchw * share + partners_nchw * (1 - share)
    return Mixed(to_uint8(blended.round_()), own[:, 0])


def cutmix(images_nchw: Tensor, partners_nchw: Tensor, draws: Draws, alpha: float) -> Mixed:
    """Paste a rectangle of the partner, of the share 1 − λ, λ ~ Beta(α, α) (Yun et al. 2019, arXiv 1905.04899).

    A rectangle that leaves the image is cut there, and `own_share` counts pixels.
    """
    side = (1 - draws.beta(alpha, alpha, 0)[:, 0]).sqrt()
    height, width = images_nchw.shape[2:]
    rows = _around(draws, 8, height, side * height)
    inside = rows[:, :, None] & _around(draws, 9, width, side * width)[:, None, :]
    images = images_nchw * ~inside[:, None] + partners_nchw * inside[:, None]
    return Mixed(images, 1 - inside.float().mean(dim=(1, 2)))


def fill(images_nchw: Tensor, share: Tensor, draws: Draws, ratio: float = 3.3, value: int = 0) -> Tensor:
    """Fill a rectangle at a random place inside the image, of this share (b,) of its pixels (Zhong et al. 2017, arXiv 1708.04896).

    Its sides are up to `ratio` apart; one that would be longer than the image is cut to it.
    """
    height, width = images_nchw.shape[2:]
    pixels = share * (height * width)
    stretch = (ratio ** (draws.uniform(3)[:, 0].double() - 0.5)).float()  # float32 powers depend on a value's place
    rows = _span(draws, 8, height, pixels.sqrt() * stretch)
    columns = _span(draws, 9, width, pixels.sqrt() / stretch)
    return images_nchw.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], value)


def soft_targets(targets: Tensor, partner_targets: Tensor, own_share: Tensor, classes: int) -> Tensor:
    """Class numbers (b,) of images and partners to probabilities, float32 (b, classes); others (b, k) to what lies between."""
    if targets.ndim > 1:
        return torch.lerp(partner_targets, targets, own_share[:, None])
    soft = own_share.new_zeros(len(targets), classes)
    soft.scatter_add_(1, targets[:, None], own_share[:, None])
    return soft.scatter_add_(1, partner_targets[:, None], (1 - own_share)[:, None])


def _around(draws: Draws, stream: int, side: int, length: Tensor) -> Tensor:
    """Mark `length` (b,) neighbours around a random place of a side, cut at its ends, bool (b, side)."""
    half = (length / 2)[:, None]
    offset = torch.arange(side, device=length.device) - draws.integers(side, stream)
    return (offset >= -half) & (offset < half)


def _span(draws: Draws, stream: int, side: int, length: Tensor) -> Tensor:
    """Mark `length` (b,) neighbours at a random place of a side, bool (b, side)."""
    length = length.round().clamp(1, side)
    first = (draws.uniform(stream)[:, 0] * (side - length + 1)).floor()
    offset = torch.arange(side, device=length.device) - first[:, None]
    return (offset >= 0) & (offset < length[:, None])
