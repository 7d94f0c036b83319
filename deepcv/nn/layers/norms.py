"""Norms over the channels of feature maps, and the mean-only batch norm."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase


class ChannelLayerNorm(nn.LayerNorm):
    """Layer norm of feature maps (N, C, H, W) over the channels of each pixel (as in ConvNeXt, Liu 2022)."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's name
        """(N, C, H, W), kept."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ChannelRMSNorm(nn.RMSNorm):
    """Root-mean-square norm (Zhang and Sennrich 2019) of feature maps over the channels of each pixel."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), kept."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LayerMeanBatchNorm(nn.Module):
    """Layer norm, then mean-only batch norm (Salimans and Kingma 2016, section 3).

    z = weight * (x - mean_c(x)) / sqrt(var_c(x) + eps), over the channels c of each pixel or token, and
    y = z - m + bias, where m is the mean of z per channel: over batch and positions in training, its running mean in eval.
    Variance is never divided by across the batch, so that the noise of small batches stays small.
    """

    running_mean: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.channels, self.eps, self.momentum = channels, eps, momentum
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.register_buffer("running_mean", torch.empty(channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Scale one, shift zero, running mean zero."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        nn.init.zeros_(self.running_mean)

    def extra_repr(self) -> str:
        """What distinguishes it."""
        return f"{self.channels}, eps={self.eps}, momentum={self.momentum}"

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), (N, T, C) or (N, C), kept."""
        z = x.permute(0, 2, 3, 1) if x.dim() == 4 else x
        z = F.layer_norm(z, (self.channels,), self.weight, None, self.eps)
        mean = self.running_mean
        if self.training:
            mean = z.flatten(0, -2).mean(0)
            with torch.no_grad():
                self.running_mean.lerp_(mean.detach().to(self.running_mean.dtype), self.momentum)
        z = z - (mean - self.bias)
        return z.permute(0, 3, 1, 2) if x.dim() == 4 else z


def has_statistics(module: nn.Module) -> bool:
    """Whether a layer is a norm that follows the batches of a training: torch's batch and instance norms, and the mean-only one."""
    return isinstance(module, _NormBase | LayerMeanBatchNorm)
