"""Meta-convolution."""

from dataclasses import KW_ONLY, dataclass

from deepcv.nn.emitter import Emitter, Value
from deepcv.nn.init import Init
from deepcv.nn.layers.meta_convolution import MetaConv2d
from deepcv.nn.ops.convolution import INHERITS
from deepcv.nn.ops.norms import Norm
from deepcv.nn.ops.op import Activation, Count, Op, Padding, Share, Side, maps, slide
from deepcv.nn.ops.order import biased, surrounded
from deepcv.nn.ops.weights import Constant, begin


@dataclass(frozen=True)
class MetaConv(Op):
    """Convolution whose kernel changes with the input by a matrix of `rank`; then batch norm and ReLU, as in `conv`.

    A net of one hidden layer, of the input channels / `reduction` and at least 8, infers the change from the mean over
    positions. `init` and `spectral_norm` are those of the kernel before the change: with spectral norm the layer starts with
    a norm of 1, but nothing bounds what the change adds later.
    """

    inherits = INHERITS
    channels: Count
    kernel: Side = 3
    stride: Side = 1
    padding: Padding | None = None
    rank: Count = 1
    reduction: Count = 4
    bias: bool | None = None
    norm: Norm = "batch"
    activation: Activation = "relu"
    _: KW_ONLY
    pre_activation: bool = False
    dropout: Share = 0.0
    init: Init = "he"
    init_value: Constant = 0.0
    spectral_norm: bool = False
    norm_groups: Count | None = None
    zero_init: bool = False

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (channels, H', W')."""
        (x,) = inputs
        channels, _, _ = maps(x)
        padding = self.kernel // 2 if self.padding is None else self.padding
        shape = (self.channels, *slide(x, self.kernel, self.stride, padding))
        bias = biased(self.bias, self.norm, self.pre_activation)
        hidden = max(channels // self.reduction, 8)
        layer = MetaConv2d(channels, self.channels, self.kernel, self.stride, padding, self.rank, hidden, bias)
        begun = begin(layer.static, self.init, self.init_value, "he", self.spectral_norm)
        return surrounded(
            emitter, x, lambda x: emitter.module(layer, x, shape, "conv", begun), self.norm, self.activation,
            norm_groups=self.norm_groups, zero_init=self.zero_init, pre_activation=self.pre_activation, dropout=self.dropout,
        )  # fmt: skip
