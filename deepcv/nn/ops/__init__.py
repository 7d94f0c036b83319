"""The ops of a network file, by name. A new op is a dataclass in a module here and a line in `OPS`.

`emit` checks the shapes that reach it and writes the op into the graph.
"""

from collections.abc import Mapping
from types import MappingProxyType

from deepcv.nn.ops import (
    activation,
    axes,
    convolution,
    joins,
    linear,
    norms,
    pooling,
    regularisation,
    resampling,
    tensors,
)
from deepcv.nn.ops.op import Op, Range

__all__ = ["OPS", "Op", "Range"]

OPS: Mapping[str, type[Op]] = MappingProxyType(
    {
        "conv": convolution.Conv,
        "depthwise_conv": convolution.DepthwiseConv,
        "separable_conv": convolution.SeparableConv,
        "transposed_conv": convolution.TransposedConv,
        "pyramid_conv": convolution.PyramidConv,
        "whiten": convolution.Whiten,
        "linear": linear.Linear,
        "max_pool": pooling.MaxPool,
        "avg_pool": pooling.AvgPool,
        "lp_pool": pooling.LpPool,
        "blur_pool": pooling.BlurPool,
        "adaptive_avg_pool": pooling.AdaptiveAvgPool,
        "adaptive_max_pool": pooling.AdaptiveMaxPool,
        "global_avg_pool": pooling.GlobalAvgPool,
        "global_max_pool": pooling.GlobalMaxPool,
        "global_gem_pool": pooling.GlobalGemPool,
        "upsample": resampling.Upsample,
        "resize_like": resampling.ResizeLike,
        "pixel_shuffle": resampling.PixelShuffle,
        "pixel_unshuffle": resampling.PixelUnshuffle,
        "activation": activation.ActivationOp,
        "batch_norm": norms.BatchNorm,
        "layer_norm": norms.LayerNorm,
        "rms_norm": norms.RMSNorm,
        "instance_norm": norms.InstanceNorm,
        "group_norm": norms.GroupNorm,
        "layer_mean_batch_norm": norms.LayerMeanBatch,
        "local_response_norm": norms.LocalResponseNorm,
        "dropout": regularisation.Dropout,
        "dropout2d": regularisation.ChannelDropout,
        "drop_path": regularisation.DropPathOp,
        "layer_scale": regularisation.LayerScaleOp,
        "gaussian_noise": regularisation.GaussianNoiseOp,
        "sum": joins.Sum,
        "mean": joins.Mean,
        "multiply": joins.Multiply,
        "concat": joins.Concat,
        "flatten": axes.Flatten,
        "unflatten": axes.Unflatten,
        "to_tokens": axes.ToTokens,
        "to_maps": axes.ToMaps,
        "to_maps_like": axes.ToMapsLike,
        "permute": axes.Permute,
        "reduce": axes.Reduce,
        "select": axes.Select,
        "slice": axes.Slice,
        "split": axes.Split,
        "coordinates": tensors.Coordinates,
        "pad": tensors.Pad,
        "crop": tensors.Crop,
        "shift": tensors.Shift,
        "scale": tensors.Scale,
        "identity": tensors.Identity,
    }
)
