"""Layers that disturb values while training, and the scale of a residual branch."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DropPath(nn.Module):
    """Stochastic depth (Huang 2016, arXiv 1603.09382): while training, a sample is zero with probability `p`.

    The others are divided by 1 - p, so that the expected value is the input, as in eval.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def extra_repr(self) -> str:
        """What distinguishes it."""
        return f"p={self.p}"

    def forward(self, x: Tensor) -> Tensor:
        """(N, …), kept."""
        if not self.training:
            return x
        return x * F.dropout(x.new_ones(x.shape[0], *(1,) * (x.dim() - 1)), self.p)


class GaussianNoise(nn.Module):
    """Adds normal noise of standard deviation `sigma` while training."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def extra_repr(self) -> str:
        """What distinguishes it."""
        return f"sigma={self.sigma}"

    def forward(self, x: Tensor) -> Tensor:
        """(N, …), kept."""
        return x + self.sigma * torch.randn_like(x) if self.training else x


class LayerScale(nn.Module):
    """A learned factor per channel, small at first: a residual branch grows in (CaiT, Touvron 2021, arXiv 2103.17239).

    `trailing` axes come after the channels: 2 for feature maps, 0 for tokens and flat features.
    """

    def __init__(self, channels: int, start: float, trailing: int) -> None:
        super().__init__()
        self.start, self.trailing = start, trailing
        self.weight = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The small factor."""
        nn.init.constant_(self.weight, self.start)

    def extra_repr(self) -> str:
        """What distinguishes it."""
        return f"{len(self.weight)}, start={self.start}"

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), (N, T, C) or (N, C), kept."""
        return x * self.weight.view(-1, *(1,) * self.trailing)


class RandomSlope(nn.RReLU):
    """Leaky ReLU whose slope is drawn for each value while training (Xu 2015, arXiv 1505.00853); in eval it is the mean slope.

    torch's own has no ONNX form.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's name
        """Any shape, kept."""
        return super().forward(input) if self.training else F.leaky_relu(input, (self.lower + self.upper) / 2)
