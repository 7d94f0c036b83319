"""What every op is: a frozen dataclass whose fields are the keys that a network file may give."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepcv.nn.emitter import Emitter, FitError, Value


@dataclass(frozen=True)
class Range:
    """The values that a number may take, both ends included."""

    low: float
    high: float


Count = Annotated[int, Range(1, 65_536)]
Side = Annotated[int, Range(1, 1_024)]
Padding = Annotated[int, Range(0, 1_024)]
Sides = int | tuple[int, int]  # height and width, or one number for both
Share = Annotated[float, Range(0, 1)]
Activation = Literal[
    "relu", "leaky_relu", "prelu", "relu6", "elu", "selu", "softplus", "gelu", "silu", "mish", "hardswish",
    "sigmoid", "hardsigmoid", "tanh", "celu", "hardtanh", "softsign", "log_sigmoid", "hardshrink", "softshrink",
    "tanhshrink", "none",
]  # fmt: skip
ACTIVATIONS: Mapping[str, Callable[..., Tensor]] = MappingProxyType(
    {
        "relu": F.relu,
        "leaky_relu": F.leaky_relu,
        "relu6": F.relu6,
        "elu": F.elu,
        "selu": F.selu,
        "softplus": F.softplus,
        "gelu": F.gelu,
        "silu": F.silu,
        "mish": F.mish,
        "hardswish": F.hardswish,
        "sigmoid": torch.sigmoid,
        "hardsigmoid": F.hardsigmoid,
        "tanh": torch.tanh,
        "celu": F.celu,
        "hardtanh": F.hardtanh,
        "softsign": F.softsign,
        "log_sigmoid": F.logsigmoid,
        "hardshrink": F.hardshrink,
        "softshrink": F.softshrink,
        "tanhshrink": F.tanhshrink,
    }
)


@dataclass(frozen=True)
class Op(ABC):
    """One kind of node."""

    many: ClassVar[bool] = False  # takes two or more inputs
    pair: ClassVar[bool] = False  # of `many`: two and no more
    most: ClassVar[int] = 1  # how many it takes where it is not `many`
    inherits: ClassVar[Mapping[str, str]] = MappingProxyType({})  # key -> the key of `defaults` that it is taken from

    @abstractmethod
    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """Write the op into the graph; a `FitError` says which shape was expected and which came."""


def activate(emitter: Emitter, value: Value, activation: str, part: str = "activation") -> Value:
    """Apply an activation by name; `none` leaves the value as it is. `part` is where prelu keeps its one weight."""
    if activation == "none":
        return value
    if activation == "prelu":
        return emitter.module(nn.PReLU(), value, value.shape, part)
    return emitter.function(ACTIVATIONS[activation], (value,), value.shape)


def maps(value: Value) -> tuple[int, int, int]:
    """Channels, height and width of feature maps; a FitError for anything else."""
    if len(value.shape) != 3:
        raise FitError(f"needs feature maps (C, H, W), got {value}")
    channels, height, width = value.shape
    return channels, height, width


def features(value: Value) -> tuple[int, int]:
    """How many channels or features a value has, and which axis of a batch holds them: the last one of tokens, else 1."""
    if len(value.shape) == 2:
        return value.shape[1], 2
    return value.shape[0], 1


def pair(height: int, width: int | None) -> tuple[int, int]:
    """Height and width of what a file gives by its height alone where both are the same."""
    return height, height if width is None else width


def shown(both: tuple[int, int]) -> str:
    """Height and width as messages print them: one number where they are equal."""
    return str(both[0]) if both[0] == both[1] else str(both)


def slide(value: Value, extent: Sides, stride: Sides, padding: Sides, ceil: bool = False) -> tuple[int, int]:
    """Height and width after a window slid over feature maps; `ceil` lets the last one hang over the far edge."""
    _, height, width = maps(value)
    (high, wide), (down, right), (above, beside) = (
        (one, one) if isinstance(one, int) else one for one in (extent, stride, padding)
    )
    if height + 2 * above < high or width + 2 * beside < wide:
        raise FitError(f"a window of ({high}, {wide}) is larger than {value} with padding {max(above, beside)}")
    return _steps(height, high, down, above, ceil), _steps(width, wide, right, beside, ceil)


def _steps(size: int, extent: int, stride: int, padding: int, ceil: bool) -> int:
    room = size + 2 * padding - extent
    if not ceil:
        return room // stride + 1
    steps = -(-room // stride) + 1
    return steps - 1 if (steps - 1) * stride >= size + padding else steps  # a window must start inside


def mirrored(value: Value, padding: int, mode: str) -> None:
    """A FitError where the maps are too small for a border that repeats them."""
    _, height, width = maps(value)
    limit = min(height, width) - (mode == "reflect")
    if mode in ("reflect", "circular") and padding > limit:
        raise FitError(f"{mode} padding of {padding} needs maps larger than that, got {value}")
