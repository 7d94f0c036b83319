"""Random numbers per sample, from a counter-based hash of (seed, epoch, sample, stream).

A draw does not depend on batch size, order, device, worker or rank: a resumed run sees the same pictures, bit for bit.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# One stream per use, so that two operations never share their draws. A recipe's steps have theirs above these.
ORDER, FLIP, SHIFT_Y, SHIFT_X, CUTOUT_Y, CUTOUT_X, DROPOUT, BALANCE = range(8)
STREAMS_PER_STEP = 256

_MASK_32 = 0xFFFFFFFF
_QUANTILES = 4097
_Int = TypeVar("_Int", int, Tensor)
Float64Array = NDArray[np.float64]


def hash32(seed: int, epoch: int, sample: Tensor, stream: int) -> Tensor:
    """Mix to integers in 0 … 2³²−1 (int64 tensor of sample's shape), the same on every device. Each step is `mix32`."""
    return mix32(_prefix(seed, epoch, stream) ^ (sample & _MASK_32))


def permutation(seed: int, epoch: int, count: int, device: torch.device) -> Tensor:
    """Order in which an epoch visits `count` samples, int64 (count,)."""
    numbers = torch.arange(count, device=device)
    keys = hash32(seed, epoch, numbers, ORDER)
    return torch.argsort(keys * count + numbers)  # equal keys keep the order of their numbers, on every device


@dataclass(frozen=True)
class Draws:
    """The random numbers of one step of a recipe for some samples: int64 (b,), their numbers in the dataset.

    Each draw names its `stream`, 0 … 255; equal streams of a step give equal numbers.
    """

    seed: int
    epoch: int
    samples: Tensor
    step: int = 0

    def of(self, chosen: Tensor) -> "Draws":
        """Return the draws of a part of the samples, by position or mask."""
        return replace(self, samples=self.samples[chosen])

    def bits(self, *streams: int) -> Tensor:
        """Integers in 0 … 2³²−1, int64 (b, len(streams))."""
        if self.step < 0 or not all(0 <= stream < STREAMS_PER_STEP for stream in streams):
            raise ValueError(
                f"expected a step >= 0 and streams 0 to {STREAMS_PER_STEP - 1}, got {self.step}, {streams}"
            )
        base = STREAMS_PER_STEP * (self.step + 1)
        prefixes = [_prefix(self.seed, self.epoch, base + stream) for stream in streams]
        words = torch.tensor(prefixes, dtype=torch.int64, device=self.samples.device)
        return mix32(words[None, :] ^ (self.samples & _MASK_32)[:, None])

    def uniform(self, *streams: int) -> Tensor:
        """Numbers in [0, 1), float32 (b, len(streams)), multiples of 2⁻²⁴: exact on every device."""
        return (self.bits(*streams) >> 8).float() * 2.0**-24

    def integers(self, count: int, *streams: int) -> Tensor:
        """Integers in 0 … count−1, int64 (b, len(streams)); the multiply-and-shift of Lemire (arXiv 1805.10941)."""
        return (self.bits(*streams) * count) >> 32

    def beta(self, a: float, b: float, *streams: int) -> Tensor:
        """Numbers of the Beta(a, b) distribution, float32 (b, len(streams)): its quantile function at uniform draws."""
        table = _beta_quantiles(a, b).to(self.samples.device)
        position = self.uniform(*streams) * (_QUANTILES - 1)
        below = position.long()
        # Exact tables and separate products: no device rounds this otherwise than another.
        low, high = table[below], table[below + 1]
        return low + (position - below) * (high - low)

    def dirichlet(self, alpha: float, *streams: int) -> Tensor:
        """Weights (b, len(streams) + 1) of the symmetric Dirichlet(α) distribution, by breaking a stick of length 1."""
        pieces, left = [], torch.ones(len(self.samples), device=self.samples.device)
        for position, stream in enumerate(streams):
            share = self.beta(alpha, alpha * (len(streams) - position), stream)[:, 0]
            pieces.append(left * share)
            left = left - pieces[-1]
        return torch.stack([*pieces, left], dim=1)


def _prefix(seed: int, epoch: int, stream: int) -> int:
    mixed = 0
    for word in (seed, seed >> 32, epoch, stream):
        mixed = mix32((mixed + (word & _MASK_32) + 0x9E3779B9) & _MASK_32)
    return mixed


def mix32(x: _Int) -> _Int:
    """Mix a 32-bit integer, or each of a tensor of them.

    The finaliser "lowbias32" (Wellons, "Prospecting for hash functions", 2018).
    """
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK_32
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK_32  # a product of 32-bit numbers may wrap in int64; its low 32 bits are exact
    return x ^ (x >> 16)


@cache
def _beta_quantiles(a: float, b: float) -> Tensor:
    """Quantile function of Beta(a, b) at 0, 1/4096, … 1, by integrating its density from either end to the middle.

    At its ends stand the quantiles of a quarter of a step: 0 and 1 themselves would stretch the tails.
    """
    if not (a > 0 and b > 0):
        raise ValueError(f"expected parameters of a Beta distribution above 0, got {a} and {b}")
    (low_x, low_y, low), (high_x, high_y, high) = _density(a, b), _density(b, a)  # the second seen from 1
    peak = max(low.max(), high.max())  # of logarithms: no power underflows or overflows
    low_sum, high_sum = (_integrate(np.exp(log_density - peak), y) for y, log_density in ((low_y, low), (high_y, high)))
    total = low_sum[-1] + high_sum[-1]
    probability = np.concatenate([low_sum, total - high_sum[-2::-1]]) / total
    x = np.concatenate([low_x, 1 - high_x[-2::-1]])
    wanted = np.linspace(0, 1, _QUANTILES)
    wanted[0], wanted[-1] = wanted[1] / 4, 1 - wanted[1] / 4
    return torch.from_numpy(np.interp(wanted, probability, x).astype(np.float32))


def _density(a: float, b: float) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Points x from 0 to 1/2, the y over which to integrate, and the logarithm of x^(a−1) (1−x)^(b−1) dx/dy there.

    For a < 1 the density has a pole at 0; over y = x^a it is flat there.
    """
    power = min(a, 1.0)
    y = np.linspace(0, 0.5**power, 20_001)
    x = y ** (1 / power)
    with np.errstate(divide="ignore"):
        rising = (a - 1) * np.log(y) if a > 1 else np.full_like(y, -np.log(power))
    return x, y, rising + (b - 1) * np.log1p(-x)


def _integrate(density: Float64Array, y: Float64Array) -> Float64Array:
    """Integral from 0 to each y, by trapezoids."""
    return np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * y[1])])
