"""Feature maps brought to the height and width of others."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

Mode = Literal["nearest", "bilinear"]


class ResizeLike(nn.Module):
    """(N, C, h, w) to (N, C, H, W): the size of other feature maps at run time, never a constant of the graph.

    A module, not a function: pickling a graph module traces it again, through functions but not through modules.
    """

    def __init__(self, mode: Mode) -> None:
        super().__init__()
        self.mode: Mode = mode

    def extra_repr(self) -> str:
        """The way of interpolation."""
        return self.mode

    def forward(self, maps_nchw: Tensor, like_nchw: Tensor) -> Tensor:
        """`maps_nchw` at the height and width of `like_nchw`; corners are not aligned."""
        return F.interpolate(maps_nchw, size=like_nchw.shape[-2:], mode=self.mode)
