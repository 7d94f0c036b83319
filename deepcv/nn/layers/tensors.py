"""Functions of tensors that torch has not, or not so."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def largest(x: Tensor, axes: Sequence[int], keep: bool = False) -> Tensor:
    """The largest values over neighbouring axes, which go or, with `keep`, have size 1; places of equal values share the gradient.

    In compiled networks one of the places gets it all: torch.amax finds them anew by comparing values, and where these are
    bfloat16 and computed again, but not rounded, it finds none, so that the gradient is 0 / 0.
    """
    if not torch.compiler.is_compiling():
        return torch.amax(x, tuple(axes), keep)
    values = x.flatten(axes[0], axes[-1]).max(axes[0]).values
    return _with_ones(values, axes) if keep else values


def smallest(x: Tensor, axes: Sequence[int], keep: bool = False) -> Tensor:
    """The smallest values over neighbouring axes, as `largest`."""
    if not torch.compiler.is_compiling():
        return torch.amin(x, tuple(axes), keep)
    values = x.flatten(axes[0], axes[-1]).min(axes[0]).values
    return _with_ones(values, axes) if keep else values


def _with_ones(values: Tensor, axes: Sequence[int]) -> Tensor:
    for axis in axes:
        values = values.unsqueeze(axis)
    return values


def to_maps_like(tokens: Tensor, like: Tensor) -> Tensor:
    """Tokens (N, H * W, C), row by row, as maps (N, C, H, W) with the height and width of other maps."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], like.shape[2], like.shape[3])


def fold_like(tokens: Tensor, like: Tensor, kernel: int, dilation: int, padding: int, stride: int) -> Tensor:
    """Tokens (N, H' * W', C * kernel²), the windows of maps, added up to maps (N, C, H, W) of the size of other maps."""
    size = (like.shape[2], like.shape[3])
    return F.fold(tokens.transpose(1, 2), size, kernel, dilation, padding, stride)


def add_coordinates(x: Tensor, radius: bool) -> Tensor:
    """Maps with two more channels: row and column from -1 to 1; a third, sqrt(row² + column²), with `radius`.

    CoordConv: Liu 2018, arXiv 1807.03247.
    """
    count, _, height, width = x.shape
    rows, columns = _from_minus_one(height, x).view(1, 1, -1, 1), _from_minus_one(width, x).view(1, 1, 1, -1)
    planes = [rows.expand(count, 1, height, width), columns.expand(count, 1, height, width)]
    if radius:
        planes.append((rows.square() + columns.square()).sqrt().expand(count, 1, height, width))
    return torch.cat([x, *planes], 1)


def _from_minus_one(size: int, like: Tensor) -> Tensor:
    # Not linspace: torch.export freezes its number of steps.
    return torch.arange(size, device=like.device).to(like.dtype) * 2 / (size - 1) - 1
