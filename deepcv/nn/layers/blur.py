"""Blur on activations, weaker as training goes on: curriculum by smoothing (Sinha 2020, arXiv 2003.01367)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Blur(nn.Module):
    """Gaussian blur of each channel, standard deviation `sigma` in pixels, cut off at 2 * max_sigma, zeros beyond the border.

    `set_sigma` changes it between steps. At 0, where it starts, the layer returns its input itself: a convolution with a
    single 1 would lose -0.0 and spread inf and nan. Off and on are two graphs: torch.compile makes the second when it is
    needed, torch.export keeps what is set at that time. `sigma` is saved with the weights.
    """

    sigma: Tensor
    taps: Tensor

    def __init__(self, max_sigma: float, sigma: float = 0.0) -> None:
        super().__init__()
        if not 0 <= sigma <= max_sigma:
            raise ValueError(f"sigma must be from 0 to max_sigma = {max_sigma:g}, got {sigma:g}")
        self.max_sigma, self.first_sigma, self.on = max_sigma, sigma, sigma > 0
        side = 2 * math.ceil(2 * max_sigma) + 1
        self.register_buffer("sigma", torch.empty(()))
        self.register_buffer("taps", torch.empty(side, side), persistent=False)
        self.register_load_state_dict_post_hook(_loaded)
        if not self.taps.is_meta:
            self.reset_parameters()

    def extra_repr(self) -> str:
        """The range."""
        return f"max_sigma={self.max_sigma:g}, first_sigma={self.first_sigma:g}"

    def reset_parameters(self) -> None:
        """Go back to the first sigma."""
        self.set_sigma(self.first_sigma)

    @torch.no_grad()
    def set_sigma(self, sigma: float) -> None:
        """Blur with this standard deviation from now on, from 0 (off) to max_sigma."""
        if not 0 <= sigma <= self.max_sigma:
            raise ValueError(f"sigma must be from 0 to max_sigma = {self.max_sigma:g}, got {sigma:g}")
        sigma = float(torch.tensor(sigma, dtype=self.sigma.dtype))  # as it is saved, so that a loaded layer is equal
        self.on = sigma > 0
        self.sigma.fill_(sigma)
        half = len(self.taps) // 2
        places = torch.arange(-half, half + 1, dtype=torch.float64)
        line = torch.softmax(-(places**2) / (2 * sigma**2), 0) if self.on else (places == 0).double()
        self.taps.copy_(line[:, None] * line, non_blocking=True)  # else a GPU is waited for in each step

    def forward(self, maps_nchw: Tensor) -> Tensor:
        """(N, C, H, W), kept."""
        if not self.on:
            return maps_nchw
        channels, side = maps_nchw.shape[1], len(self.taps)
        kernel = self.taps.to(maps_nchw.dtype).expand(channels, 1, side, side)
        return F.conv2d(maps_nchw, kernel, padding=side // 2, groups=channels)


def _loaded(layer: Blur, _: object) -> None:
    layer.set_sigma(min(float(layer.sigma), layer.max_sigma))  # rounding may have raised it


def set_blur(model: nn.Module, sigma: float) -> int:
    """Set the sigma of all blur layers of a model, each at most its own max_sigma; gives their number."""
    layers = [module for module in model.modules() if isinstance(module, Blur)]
    for layer in layers:
        layer.set_sigma(min(sigma, layer.max_sigma))
    return len(layers)
