"""The ops of a network file, by name. A new op is a dataclass in a module here, a line in `FAMILIES`, an example in `op_words`.

A key that an op gets later is a keyword-only field with a default: the canonical spec has it only where it is set, so that
networks from before keep their digest.

`emit` checks the shapes that reach it and writes the op into the graph.
"""

from collections.abc import Mapping
from types import MappingProxyType

from deepcv.nn.ops import (
    activation,
    attention,
    axes,
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
    resampling,
    tensors,
    tokens,
)
from deepcv.nn.ops.op import Op, Range

__all__ = ["FAMILIES", "OPS", "Op", "Range"]

FAMILIES: Mapping[str, Mapping[str, type[Op]]] = MappingProxyType(
    {
        "convolutions": {
            "conv": convolution.Conv,
            "depthwise_conv": convolution.DepthwiseConv,
            "separable_conv": convolution.SeparableConv,
            "transposed_conv": convolution.TransposedConv,
            "pyramid_conv": convolution.PyramidConv,
            "meta_conv": meta_convolution.MetaConv,
            "whiten": convolution.Whiten,
        },
        "linear layers": {
            "linear": linear.Linear,
            "bilinear": linear.Bilinear,
        },
        "poolings": {
            "max_pool": pooling.MaxPool,
            "avg_pool": pooling.AvgPool,
            "lp_pool": pooling.LpPool,
            "blur_pool": pooling.BlurPool,
            "adaptive_avg_pool": pooling.AdaptiveAvgPool,
            "adaptive_max_pool": pooling.AdaptiveMaxPool,
            "global_avg_pool": pooling.GlobalAvgPool,
            "global_max_pool": pooling.GlobalMaxPool,
            "global_gem_pool": pooling.GlobalGemPool,
        },
        "resampling": {
            "upsample": resampling.Upsample,
            "resize_like": resampling.ResizeLike,
            "pixel_shuffle": resampling.PixelShuffle,
            "pixel_unshuffle": resampling.PixelUnshuffle,
        },
        "activations": {
            "activation": activation.ActivationOp,
            "glu": activation.Glu,
        },
        "norms": {
            "batch_norm": norms.BatchNorm,
            "layer_norm": norms.LayerNorm,
            "rms_norm": norms.RMSNorm,
            "instance_norm": norms.InstanceNorm,
            "group_norm": norms.GroupNorm,
            "layer_mean_batch_norm": norms.LayerMeanBatch,
            "local_response_norm": norms.LocalResponseNorm,
        },
        "regularisation": {
            "dropout": regularisation.Dropout,
            "dropout2d": regularisation.ChannelDropout,
            "alpha_dropout": regularisation.AlphaDropout,
            "feature_alpha_dropout": regularisation.FeatureAlphaDropout,
            "drop_path": regularisation.DropPathOp,
            "layer_scale": regularisation.LayerScaleOp,
            "gaussian_noise": regularisation.GaussianNoiseOp,
            "blur": blur.BlurOp,
        },
        "gates": {
            "squeeze_excite": attention.SqueezeExciteOp,
            "eca": attention.Eca,
            "cbam": attention.CbamOp,
            "spatial_gate": attention.SpatialGateOp,
            "attention_gate": attention.AttentionGateOp,
            "forget_gate": hcgnet.ForgetGateOp,
            "update_gate": hcgnet.UpdateGateOp,
        },
        "tokens": {
            "patch_embed": tokens.PatchEmbed,
            "class_token": tokens.ClassTokenOp,
            "positions": tokens.PositionsOp,
            "attention": attention.Attention,
            "to_tokens": axes.ToTokens,
            "to_maps": axes.ToMaps,
            "to_maps_like": axes.ToMapsLike,
            "unfold": axes.Unfold,
            "fold": axes.Fold,
        },
        "links": {
            "sum": joins.Sum,
            "mean": joins.Mean,
            "max": joins.Max,
            "multiply": joins.Multiply,
            "absolute_difference": joins.AbsoluteDifference,
            "cosine_similarity": joins.CosineSimilarity,
            "concat": joins.Concat,
            "fuse": hrnet.Fuse,
            "upsample_concat": hrnet.UpsampleConcat,
            "choice": choice.Choice,
        },
        "axes": {
            "flatten": axes.Flatten,
            "unflatten": axes.Unflatten,
            "permute": axes.Permute,
            "reduce": axes.Reduce,
            "select": axes.Select,
            "slice": axes.Slice,
            "split": axes.Split,
            "channel_shuffle": axes.ChannelShuffle,
        },
        "values": {
            "coordinates": tensors.Coordinates,
            "pad": tensors.Pad,
            "crop": tensors.Crop,
            "shift": tensors.Shift,
            "scale": tensors.Scale,
            "normalise": tensors.Normalise,
            "identity": tensors.Identity,
            "detach": tensors.Detach,
        },
        "whole networks": {
            "timm": libraries.Timm,
            "torchvision": libraries.Torchvision,
            "feature": libraries.Feature,
        },
    }
)
OPS: Mapping[str, type[Op]] = MappingProxyType({name: op for ops in FAMILIES.values() for name, op in ops.items()})
