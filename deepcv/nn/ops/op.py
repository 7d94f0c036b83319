"""What every op is: a frozen dataclass whose fields are the keys that a network file may give."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

from torch import Tensor
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
Share = Annotated[float, Range(0, 1)]
Activation = Literal["relu", "gelu", "silu", "none"]
ACTIVATIONS: Mapping[str, Callable[..., Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


@dataclass(frozen=True)
class Op(ABC):
    """One kind of node."""

    many: ClassVar[bool] = False  # takes two or more inputs
    inherits: ClassVar[Mapping[str, str]] = MappingProxyType({})  # key -> the key of `defaults` that it is taken from

    @abstractmethod
    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """Write the op into the graph; a `FitError` says which shape was expected and which came."""


def activate(emitter: Emitter, value: Value, activation: str) -> Value:
    """Apply an activation by name; `none` leaves the value as it is."""
    return value if activation == "none" else emitter.function(ACTIVATIONS[activation], (value,), value.shape)


def maps(value: Value) -> tuple[int, int, int]:
    """Channels, height and width of feature maps; a FitError for anything else."""
    if len(value.shape) != 3:
        raise FitError(f"needs feature maps (C, H, W), got {value}")
    channels, height, width = value.shape
    return channels, height, width


def slide(value: Value, extent: int, stride: int, padding: int) -> tuple[int, int]:
    """Height and width after a window slid over feature maps."""
    _, height, width = maps(value)
    if min(height, width) + 2 * padding < extent:
        raise FitError(f"a window of ({extent}, {extent}) is larger than {value} with padding {padding}")
    return (height + 2 * padding - extent) // stride + 1, (width + 2 * padding - extent) // stride + 1
