"""The ops of a network file, by name. A new op is a dataclass in a module here and a line in `OPS`.

`emit` checks the shapes that reach it and writes the op into the graph.
"""

from collections.abc import Mapping
from types import MappingProxyType

from deepcv.nn.ops import (
    activation,
    attention,
    blur,
    choice,
    convolution,
    hcgnet,
    hrnet,
    joins,
    libraries,
    linear,
    meta_convolution,
    norms,
    pooling,
    regularisation,
    tensors,
    tokens,
)
from deepcv.nn.ops.op import Op, Range

__all__ = ["OPS", "Op", "Range"]

OPS: Mapping[str, type[Op]] = MappingProxyType(
    {
        "conv": convolution.Conv,
        "whiten": convolution.Whiten,
        "meta_conv": meta_convolution.MetaConv,
        "linear": linear.Linear,
        "max_pool": pooling.MaxPool,
        "avg_pool": pooling.AvgPool,
        "global_avg_pool": pooling.GlobalAvgPool,
        "global_max_pool": pooling.GlobalMaxPool,
        "flatten": tensors.Flatten,
        "activation": activation.ActivationOp,
        "batch_norm": norms.BatchNorm,
        "dropout": regularisation.Dropout,
        "blur": blur.BlurOp,
        "squeeze_excite": attention.SqueezeExciteOp,
        "eca": attention.Eca,
        "cbam": attention.CbamOp,
        "spatial_gate": attention.SpatialGateOp,
        "attention_gate": attention.AttentionGateOp,
        "attention": attention.Attention,
        "patch_embed": tokens.PatchEmbed,
        "class_token": tokens.ClassTokenOp,
        "positions": tokens.PositionsOp,
        "sum": joins.Sum,
        "concat": joins.Concat,
        "fuse": hrnet.Fuse,
        "upsample_concat": hrnet.UpsampleConcat,
        "forget_gate": hcgnet.ForgetGateOp,
        "update_gate": hcgnet.UpdateGateOp,
        "choice": choice.Choice,
        "timm": libraries.Timm,
        "torchvision": libraries.Torchvision,
        "feature": libraries.Feature,
        "pixel_unshuffle": tensors.PixelUnshuffle,
        "scale": tensors.Scale,
        "identity": tensors.Identity,
    }
)
