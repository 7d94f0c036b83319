"""Pooling that torch does not have."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BlurPool2d(nn.Module):
    """Low-pass filter, then every `stride`-th pixel: shifts of the image move the output smoothly (Zhang 2019, arXiv 1904.11486).

    The filter is binomial, e.g. [1, 2, 1] / 4 in both directions; the border is reflected.
    """

    filter: Tensor

    def __init__(self, kernel: int = 3, stride: int = 2) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        before = (kernel - 1) // 2
        self.border = [before, kernel - 1 - before] * 2
        self.register_buffer("filter", torch.empty(kernel, kernel), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The filter's constants."""
        row = [math.comb(self.kernel - 1, k) / 2 ** (self.kernel - 1) for k in range(self.kernel)]
        if not self.filter.is_meta:
            self.filter.copy_(torch.tensor([[a * b for b in row] for a in row], device="cpu"))

    def extra_repr(self) -> str:
        """What distinguishes it."""
        return f"kernel={self.kernel}, stride={self.stride}"

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, ceil(H / stride), ceil(W / stride))."""
        channels = x.shape[1]
        weight = self.filter.to(x.dtype).expand(channels, 1, -1, -1)
        return F.conv2d(F.pad(x, self.border, "reflect"), weight, stride=self.stride, groups=channels)


class AdaptiveMaxPool2d(nn.AdaptiveMaxPool2d):
    """Torch's, but exported as parts that ONNX has: of this pooling torch has no ONNX form where windows overlap.

    Window i of n over a side of s pixels goes from floor(i * s / n) to ceil((i + 1) * s / n).
    """

    output_size: tuple[int, int]

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's name
        """(N, C, H, W) to (N, C, height, width)."""
        if not torch.compiler.is_exporting():
            pooled: Tensor = super().forward(input)
            return pooled
        height, width = self.output_size
        rows = input[:, :, :, _windows(input.shape[3], width, input.device)].max(4).values
        return rows[:, :, _windows(rows.shape[2], height, rows.device)].max(3).values


def _windows(size: int, count: int, device: torch.device) -> Tensor:
    """The places (count, longest window) of each window; a shorter one repeats its last."""
    number = torch.arange(count, device=device)[:, None]
    first, last = number * size // count, ((number + 1) * size - 1) // count
    longest = (size + count - 2) // count + 1
    return torch.minimum(first + torch.arange(longest, device=device), last)


class GeneralisedMean(nn.Module):
    """Mean of the p-th powers over height and width, then the p-th root; p is learned (Radenović 2018, arXiv 1711.02512).

    p = 1 is the mean, p → ∞ the maximum. Values below `eps` count as `eps`.
    """

    def __init__(self, p: float = 3, eps: float = 1e-6) -> None:
        super().__init__()
        self.start, self.eps = p, eps
        self.p = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The power that it starts with."""
        nn.init.constant_(self.p, self.start)

    def extra_repr(self) -> str:
        """What distinguishes it."""
        return f"p={self.start}, eps={self.eps}"

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C)."""
        return x.clamp(min=self.eps).pow(self.p).mean((2, 3)).pow(1 / self.p)
