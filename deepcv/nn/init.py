"""How weights start: one function per name that a network file may give as `init`.

Every module is first drawn in the default way (`reset`), in the order of the file; then the named function, if any, draws again.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

Init = Literal[
    "he", "he_fan_out", "xavier", "xavier_normal", "truncated_normal", "orthogonal", "constant", "zeros", "dirac", "torch",
]  # fmt: skip


def reset(module: nn.Module) -> None:
    """Draw the default start values of one module, not of its children: He's for convolutions, torch's own for the rest."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif callable(draw := getattr(module, "reset_parameters", None)):
        draw()


def _dirac(weight: Tensor) -> None:
    with torch.no_grad():
        nn.init.dirac_(weight[: weight.shape[1]])  # the other filters stay as He drew them


_STD = 0.02  # of truncated_normal


def _truncated(weight: Tensor, std: float) -> None:
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


WEIGHTS: Mapping[str, Callable[[Tensor], object]] = MappingProxyType(
    {
        "he": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
        "he_fan_out": lambda weight: nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu"),
        "xavier": nn.init.xavier_uniform_,
        "xavier_normal": nn.init.xavier_normal_,
        "orthogonal": nn.init.orthogonal_,
        "zeros": nn.init.zeros_,
        "dirac": _dirac,
    }
)


def start(name: Init, value: float = 0) -> Callable[[nn.Module], None]:
    """The function that draws a layer's `weight` again in the way of that name; its bias then starts at zero.

    `value` is that of `constant`, or the standard deviation of `truncated_normal`, where 0 stands for 0.02.
    """

    def draw(module: nn.Module) -> None:
        parameters = dict(module.named_parameters(recurse=False))
        if name == "torch":
            getattr(module, "reset_parameters")()  # noqa: B009  every layer of torch with weights has it
            return
        if name == "constant":
            nn.init.constant_(parameters["weight"], value)
        elif name == "truncated_normal":
            _truncated(parameters["weight"], value or _STD)
        else:
            WEIGHTS[name](parameters["weight"])
        if "bias" in parameters:
            nn.init.zeros_(parameters["bias"])

    return draw


def zero_scale(module: nn.Module) -> None:
    """A norm whose scale starts at zero: the residual branch that it ends adds nothing at first (Goyal 2017)."""
    nn.init.zeros_(dict(module.named_parameters(recurse=False))["weight"])
