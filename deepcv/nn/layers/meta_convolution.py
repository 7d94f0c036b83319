"""Meta-convolution: a small net looks at the whole input and infers a low-rank change of the kernel that follows.

Kin to hypernetworks (Ha 2016, arXiv 1609.09106) and dynamic convolution (Chen 2020, arXiv 1912.03458); the change is low-rank
as in LoRA (Hu 2021, arXiv 2106.09685), but each sample has its own.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero."""

    def reset_parameters(self) -> None:
        """All zero."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class MetaConv2d(nn.Module):
    """A convolution whose kernel is W + U Vᵀ / sqrt(rank * C * k²), with U and V of each sample's own.

    With m the mean of the input over positions, h = relu(A m + a): U = B h + b of shape (out, rank), V = D h + d of shape
    (C * k², rank), W as a matrix (out, C * k²). B and b start at zero, hence the layer as the static convolution W.

    No kernel per sample is ever built: as (W + U Vᵀ) * x = W * x + U (Vᵀ * x), the change costs about rank / out of the
    static convolution, and a batch of any size is one matrix product and one convolution.
    """

    taps: Tensor

    def __init__(
        self, channels: int, out: int, kernel: int, stride: int, padding: int, rank: int, hidden: int, bias: bool
    ) -> None:
        super().__init__()
        self.static = nn.Conv2d(channels, out, kernel, stride, padding, bias=bias)
        self.look = nn.Linear(channels, hidden)
        self.left = ZeroLinear(hidden, out * rank)
        self.right = nn.Linear(hidden, rank * channels * kernel**2)
        self.rank, self.scale = rank, (rank * channels * kernel**2) ** -0.5
        self.register_buffer("taps", torch.empty(rank * kernel**2, kernel, kernel), persistent=False)
        if not self.taps.is_meta:
            self.reset_parameters()

    def extra_repr(self) -> str:
        """What the parts do not show."""
        return f"rank={self.rank}"

    def reset_parameters(self) -> None:
        """The fixed kernels, of which number t picks position t of the window; the parts have a start of their own."""
        sides = self.taps.shape[1:]
        self.taps.copy_(torch.eye(sides.numel(), device=self.taps.device).view(-1, *sides).repeat(self.rank, 1, 1))

    def factors(self, maps_nchw: Tensor) -> tuple[Tensor, Tensor]:
        """U (N, out, rank) and Vᵀ (N, rank, C, k, k) that this input calls for."""
        seen = F.relu(self.look(maps_nchw.mean((2, 3))))
        right: Tensor = self.right(seen).unflatten(1, (self.rank, *self.static.weight.shape[1:]))
        left: Tensor = self.left(seen).unflatten(1, (-1, self.rank))
        return left, right

    def forward(self, maps_nchw: Tensor) -> Tensor:
        """(N, C, H, W) to (N, out, H', W')."""
        height, width = maps_nchw.shape[-2:]
        left, right = self.factors(maps_nchw)
        # Vᵀ * x, first over the channels for each position of the window, then the sum of the shifted answers: grouped
        # convolution over the batch would freeze the batch's size in an exported graph.
        answers = torch.matmul(right.flatten(3).transpose(2, 3).flatten(1, 2), maps_nchw.flatten(2))
        answers = answers.unflatten(2, (height, width)).unflatten(1, (self.rank, -1)).flatten(1, 2)
        taps = self.taps.to(answers.dtype).view(self.rank, -1, *self.taps.shape[1:])
        inner = F.conv2d(answers, taps, None, self.static.stride, self.static.padding, groups=self.rank)
        change = torch.matmul(left, inner.flatten(2) * self.scale).unflatten(2, inner.shape[-2:])
        changed: Tensor = self.static(maps_nchw) + change
        return changed
