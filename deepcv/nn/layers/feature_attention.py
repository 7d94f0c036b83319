"""Attention on feature maps: gates from 0 to 1 per channel, per position or both, which multiply the maps."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepcv.nn.layers.tensors import largest


class SqueezeExcite(nn.Module):
    """Gate per channel from the mean over positions, through a bottleneck (Hu 2018, arXiv 1709.01507, eq. 2-4)."""

    def __init__(
        self,
        channels: int,
        hidden: int,
        activation: Callable[[Tensor], Tensor] = F.relu,
        gate: Callable[[Tensor], Tensor] = torch.sigmoid,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=bias)  # linear layers; as convolutions they take timm's weights
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=bias)
        self.activation, self.gate = activation, gate

    def extra_repr(self) -> str:
        """The activation of the bottleneck and the gate."""
        names = (getattr(function, "__name__", function) for function in (self.activation, self.gate))
        return "activation={}, gate={}".format(*names)

    def forward(self, maps_nchw: Tensor) -> Tensor:
        """(N, C, H, W), kept."""
        score = self.fc2(self.activation(self.fc1(maps_nchw.mean((2, 3), keepdim=True))))
        return maps_nchw * self.gate(score)


class EfficientChannelAttention(nn.Module):
    """Gate per channel from the means of the channels beside it: one 1-D convolution (Wang 2020, arXiv 1910.03151)."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, maps_nchw: Tensor) -> Tensor:
        """(N, C, H, W), kept."""
        gate: Tensor = self.conv(maps_nchw.mean((2, 3)).unsqueeze(1)).sigmoid()
        return maps_nchw * gate.transpose(1, 2).unsqueeze(3)


def eca_kernel(channels: int, gamma: float = 2, b: float = 1) -> int:
    """ECA's kernel, |log2(C) / gamma + b / gamma| made odd (eq. 12), at least 3: one channel alone has no neighbour."""
    kernel = int(abs(math.log2(channels) + b) / gamma)
    return max(kernel + 1 - kernel % 2, 3)


class ChannelGate(nn.Module):
    """CBAM's gate per channel, from means and largest values by one bottleneck (Woo 2018, arXiv 1807.06521, eq. 2)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, maps_nchw: Tensor) -> Tensor:
        """(N, C, H, W), kept."""
        mean, most = maps_nchw.mean((2, 3), keepdim=True), largest(maps_nchw, (2, 3), keep=True)
        score: Tensor = self.fc2(F.relu(self.fc1(mean))) + self.fc2(F.relu(self.fc1(most)))
        return maps_nchw * score.sigmoid()


class SpatialGate(nn.Module):
    """CBAM's gate per position, from the mean and the largest value over the channels (Woo 2018, eq. 3)."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(1)  # not in the equation, but in the authors' code

    def forward(self, maps_nchw: Tensor) -> Tensor:
        """(N, C, H, W), kept."""
        both = torch.cat([maps_nchw.mean(1, keepdim=True), largest(maps_nchw, (1,), keep=True)], 1)
        gate: Tensor = self.norm(self.conv(both)).sigmoid()
        return maps_nchw * gate


class Cbam(nn.Sequential):
    """A gate per channel, then a gate per position (Woo 2018, eq. 1)."""

    def __init__(self, channels: int, hidden: int, kernel: int) -> None:
        super().__init__()
        self.channel = ChannelGate(channels, hidden)
        self.spatial = SpatialGate(kernel)


class AttentionGate(nn.Module):
    """Additive gate of a skip link by coarser, deeper maps (Oktay 2018, arXiv 1804.03999, eq. 1).

    alpha = sigmoid(psi(relu(W_x x + W_g g + b_g)) + b_psi), at the resolution of g, brought to that of x; x * alpha.
    """

    def __init__(self, channels: int, gate_channels: int, hidden: int) -> None:
        super().__init__()
        self.skip = nn.Conv2d(channels, hidden, 1, bias=False)
        self.gate = nn.Conv2d(gate_channels, hidden, 1)
        self.psi = nn.Conv2d(hidden, 1, 1)

    def forward(self, skip_nchw: Tensor, gate_nchw: Tensor) -> Tensor:
        """(N, C, H, W) and (N, C', h, w) to (N, C, H, W)."""
        # W_x is linear and position by position: after the resize it gives the same, on fewer positions.
        skip = self.skip(F.interpolate(skip_nchw, size=gate_nchw.shape[-2:], mode="bilinear"))
        alpha = self.psi(F.relu(skip + self.gate(gate_nchw))).sigmoid()
        return skip_nchw * F.interpolate(alpha, size=skip_nchw.shape[-2:], mode="bilinear")
