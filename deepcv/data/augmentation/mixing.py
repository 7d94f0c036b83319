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
    inside = _rectangles(images_nchw, draws, side, side)
    images = images_nchw * ~inside[:, None] + partners_nchw * inside[:, None]
    return Mixed(images, 1 - inside.float().mean(dim=(1, 2)))


def erase(
    images_nchw: Tensor, draws: Draws, area: tuple[float, float] = (0.02, 0.33), ratio: float = 3.3, value: int = 0
) -> Tensor:
    """Fill a rectangle of a random share of the image, its sides up to `ratio` apart (Zhong et al. 2017, arXiv 1708.04896)."""
    share = area[0] + (area[1] - area[0]) * draws.uniform(2)[:, 0]
    stretch = ratio ** (draws.uniform(3)[:, 0] - 0.5)  # height over the square's side
    inside = _rectangles(images_nchw, draws, share.sqrt() * stretch, share.sqrt() / stretch)
    return images_nchw.masked_fill(inside[:, None], value)


def soft_targets(targets: Tensor, partner_targets: Tensor, own_share: Tensor, classes: int) -> Tensor:
    """Class numbers (b,) of images and partners to probabilities, float32 (b, classes)."""
    soft = torch.zeros(len(targets), classes, device=targets.device)
    soft.scatter_add_(1, targets[:, None], own_share[:, None])
    return soft.scatter_add_(1, partner_targets[:, None], (1 - own_share)[:, None])


def _rectangles(images_nchw: Tensor, draws: Draws, height_share: Tensor, width_share: Tensor) -> Tensor:
    """Mark a rectangle of these shares of the sides around a random centre, bool (b, h, w); uses streams 8 and 9."""
    height, width = images_nchw.shape[2:]
    centre_y, centre_x = draws.integers(height, 8), draws.integers(width, 9)
    half_y, half_x = (height_share * height / 2)[:, None], (width_share * width / 2)[:, None]
    rows = torch.arange(height, device=images_nchw.device) - centre_y
    columns = torch.arange(width, device=images_nchw.device) - centre_x
    inside_rows = (rows >= -half_y) & (rows < half_y)
    inside_columns = (columns >= -half_x) & (columns < half_x)
    return inside_rows[:, :, None] & inside_columns[:, None, :]
