"""Gates of HCGNet: attention to the whole image decides, channel by channel, what passes.

After Yang 2020, "Gated Convolutional Networks with Hybrid Connectivity", arXiv 1908.09699: global context (Cao 2019,
arXiv 1904.11492) feeds a sigmoid gate on the reused features and a selection among kernels (Li 2019, arXiv 1903.06586).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GlobalContext(nn.Module):
    """(N, C, H, W) to (N, hidden): the mean over positions, weighted by their softmax, then linear, layer norm and ReLU."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.attend = nn.Conv2d(channels, 1, 1)
        self.squeeze = nn.Linear(channels, hidden)
        self.norm = nn.LayerNorm(hidden)  # not batch norm: it would see one value per channel of each image

    def forward(self, maps_nchw: Tensor) -> Tensor:
        """What the feature maps hold as a whole."""
        weights = self.attend(maps_nchw).flatten(2).softmax(2)
        context = torch.matmul(maps_nchw.flatten(2), weights.transpose(1, 2)).flatten(1)
        return F.relu(self.norm(self.squeeze(context)))


class ForgetGate(nn.Module):
    """(N, C, H, W), kept: each channel times a share from 0 to 1 of its own."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.context = GlobalContext(channels, hidden)
        self.share = nn.Linear(hidden, channels)

    def forward(self, maps_nchw: Tensor) -> Tensor:
        """The features that are kept for reuse."""
        shares: Tensor = self.share(self.context(maps_nchw)).sigmoid()
        return maps_nchw * shares[..., None, None]


class UpdateGate(nn.Module):
    """Several (N, C, H, W) to one: their sum, weighted per channel by shares that add up to 1 over the inputs."""

    def __init__(self, channels: int, branches: int, hidden: int) -> None:
        super().__init__()
        self.context = GlobalContext(channels, hidden)
        self.select = nn.Linear(hidden, branches * channels)
        self.branches = branches

    def extra_repr(self) -> str:
        """The number of inputs."""
        return f"branches={self.branches}"

    def forward(self, *branches_nchw: Tensor) -> Tensor:
        """The mixture; the context is that of the plain sum."""
        total = sum(branches_nchw[1:], branches_nchw[0])
        scores: Tensor = self.select(self.context(total))
        shares: Tensor = scores.unflatten(1, (self.branches, -1)).softmax(1)[..., None, None]
        first, *others = (x * share for x, share in zip(branches_nchw, shares.unbind(1), strict=True))
        return sum(others, first)
