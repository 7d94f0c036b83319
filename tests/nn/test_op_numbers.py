"""Each op's numbers and gradients against torch, or against its formula written out. The first ops are in test_ops."""

import ast
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_ops
import torch
from test_op_laws import BEFORE, FIRST
from torch import Tensor, fx, nn
from torch.nn import functional as F

from deepcv.nn.ops import OPS
from deepcv.nn.ops.op import ACTIVATIONS, Activation
from deepcv.nn.spec import build, from_canonical

Reference = Callable[..., Tensor]  # of the network's parameters and buffers, and the values of the sources


def batch(p: Callable[[str], Tensor], x: Tensor, part: str = "norm") -> Tensor:
    return F.batch_norm(x, None, None, p(f"{part}.weight"), p(f"{part}.bias"), training=True)


def channel_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, mean: bool = True) -> Tensor:
    """Layer or RMS norm over axis 1, written out."""
    centred = x - x.mean(1, keepdim=True) if mean else x
    y = centred / (centred.square().mean(1, keepdim=True) + eps).sqrt() * weight[:, None, None]
    return y if bias is None else y + bias[:, None, None]


def pyramid(p: Callable[[str], Tensor], x: Tensor, stride: int = 1) -> Tensor:
    """Three levels of 16 channels from 8: 4, 4 and 8 filters of 3, 5, 7 pixels in 1, 4, 8 groups, pixel by pixel."""
    parts, size = [], x[:, :, ::stride, ::stride].shape[2:]
    for level, (kernel, groups) in enumerate([(3, 1), (5, 4), (7, 8)]):
        patches = F.unfold(x, kernel, padding=kernel // 2, stride=stride).unflatten(
            1, (groups, -1)
        )  # (N, G, C/G * k², H * W)
        weight = p(f"level{level}.weight").flatten(1).unflatten(0, (groups, -1))
        parts.append(torch.einsum("gok,ngkp->ngop", weight, patches).flatten(1, 2).unflatten(2, size))
    return torch.cat(parts, 1) + torch.cat([p(f"level{n}.bias") for n in range(3)])[:, None, None]


def layer_mean_batch(p: Callable[[str], Tensor], x: Tensor) -> Tensor:
    z = channel_norm(x, p("weight"), None, 1e-5)
    return z - z.mean((0, 2, 3), keepdim=True) + p("bias")[:, None, None]


def blurred(x: Tensor) -> Tensor:
    """[1, 3, 3, 1] in both directions over a mirrored border, every second pixel."""
    row = torch.tensor([1.0, 3, 3, 1]) / 8
    weight = (row[:, None] * row).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(nn.ReflectionPad2d((1, 2, 1, 2))(x), weight, stride=2, groups=x.shape[1])


def coordinates(x: Tensor) -> Tensor:
    n, _, h, w = x.shape
    rows = torch.linspace(-1, 1, h)[:, None].expand(n, 1, h, w)
    columns = torch.linspace(-1, 1, w).expand(n, 1, h, w)
    return torch.cat([x, rows, columns, (rows**2 + columns**2).sqrt()], 1)


def moved(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, :, :-1, 2:] = x[:, :, 1:, :-2]
    return y


def separable(p: Callable[[str], Tensor], x: Tensor, between: bool) -> Tensor:
    x = F.conv2d(x, p("depthwise.weight"), None, padding=1, groups=8)
    if between:
        x = batch(p, x, "depthwise_norm").relu()
    return batch(p, F.conv2d(x, p("conv.weight"))).relu()


def separable_before(p: Callable[[str], Tensor], x: Tensor) -> Tensor:
    """Norm and activation before both convolutions, dropout after them."""
    x = F.conv2d(batch(p, x).relu(), p("depthwise.weight"), None, padding=1, groups=8)
    return F.dropout(F.conv2d(batch(p, x, "depthwise_norm").relu(), p("conv.weight"), p("conv.bias")), 0.3)


def interleaved(x: Tensor) -> Tensor:
    """Of 8 channels in 4 groups: 0, 2, 4, 6, then 1, 3, 5, 7."""
    return x[:, [0, 2, 4, 6, 1, 3, 5, 7]]


def windows(x: Tensor) -> Tensor:
    """The 3 × 3 pixels two apart, around every second pixel, as tokens: slice by slice."""
    padded = F.pad(x, (2, 2, 2, 2))
    parts = [padded[:, :, i : i + 6 : 2, j : j + 8 : 2].flatten(2) for i in (0, 2, 4) for j in (0, 2, 4)]
    return torch.stack(parts, 2).flatten(1, 2).mT


def folded(tokens: Tensor) -> Tensor:
    """Each window's pixels added where they came from."""
    parts = tokens.mT.unflatten(1, (4, 3, 3)).unflatten(4, (3, 4))
    padded = tokens.new_zeros(len(tokens), 4, 10, 12)
    for i in range(3):
        for j in range(3):
            padded[:, :, 2 * i : 2 * i + 6 : 2, 2 * j : 2 * j + 8 : 2] += parts[:, :, i, j]
    return padded[:, :, 2:-2, 2:-2]


CASES: list[tuple[str, str, dict[str, Any], Reference]] = [
    (
        "conv",
        "maps",
        {"channels": 6, "kernel": 1, "kernel_width": 5, "norm": "group", "norm_groups": 3, "activation": "elu"},
        lambda p, x: F.elu(
            F.group_norm(F.conv2d(x, p("conv.weight"), padding=(0, 2)), 3, p("norm.weight"), p("norm.bias"))
        ),
    ),
    (
        "conv",
        "maps",
        {"channels": 6, "norm": "layer", "activation": "prelu", "padding_mode": "reflect"},
        lambda p, x: F.prelu(
            channel_norm(
                F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), p("conv.weight")), p("norm.weight"), p("norm.bias"), 1e-5
            ),
            p("activation.weight"),
        ),
    ),
    (
        "conv",
        "maps",
        {"channels": 6, "norm": "instance", "padding_mode": "circular", "bias": True},
        lambda p, x: F.instance_norm(
            F.conv2d(F.pad(x, (1, 1, 1, 1), "circular"), p("conv.weight"), p("conv.bias")),
            weight=p("norm.weight"), bias=p("norm.bias"),
        ).relu(),
    ),
    (
        "conv",
        "maps",
        {"channels": 6, "norm": "rms"},
        lambda p, x: channel_norm(
            F.conv2d(x, p("conv.weight"), p("conv.bias"), padding=1), p("norm.weight"), None, 1e-6, mean=False
        ).relu(),
    ),
    (
        "conv",
        "maps",
        {"channels": 6, "norm": "layer_mean_batch"},
        lambda p, x: layer_mean_batch(
            lambda key: p(f"norm.{key}"), F.conv2d(x, p("conv.weight"), padding=1)
        ).relu(),
    ),
    (
        "conv",
        "maps",
        {"channels": 6, "norm": "local_response"},
        lambda p, x: F.local_response_norm(F.conv2d(x, p("conv.weight"), p("conv.bias"), padding=1), 5).relu(),
    ),
    (
        "linear",
        "tokens",
        {"features": 5, "norm": "rms"},
        lambda p, x: F.rms_norm(x @ p("linear.weight").T + p("linear.bias"), (5,), p("norm.weight"), 1e-6),
    ),
    (
        "conv",
        "maps",
        {"channels": 6, "pre_activation": True, "padding_mode": "replicate"},
        lambda p, x: F.conv2d(
            F.pad(batch(p, x).relu(), (1, 1, 1, 1), "replicate"), p("conv.weight"), p("conv.bias")
        ),
    ),
    (
        "depthwise_conv",
        "maps",
        {"multiplier": 2, "stride": 2},
        # Filters 2c and 2c + 1 see channel c.
        lambda p, x: batch(
            p,
            torch.cat([F.conv2d(x[:, c : c + 1], p("conv.weight")[2 * c : 2 * c + 2], None, 2, 1) for c in range(8)], 1),
        ).relu(),
    ),
    (
        "depthwise_conv",
        "maps",
        {"pre_activation": True, "dropout": 0.3},
        lambda p, x: F.dropout(
            F.conv2d(batch(p, x).relu(), p("conv.weight"), p("conv.bias"), padding=1, groups=8), 0.3
        ),
    ),
    (
        "depthwise_conv",
        "maps",
        {"dilation": 2, "padding": 1},
        # Nine taps two apart, each of them the maps moved.
        lambda p, x: batch(
            p,
            sum(
                p("conv.weight")[:, 0, i, j, None, None] * F.pad(x, (1, 1, 1, 1))[:, :, 2 * i : 2 * i + 4, 2 * j : 2 * j + 6]
                for i in range(3)
                for j in range(3)
            ),
        ).relu(),
    ),
    (
        "conv",
        "maps",
        {"channels": 6, "stride": 2, "stride_width": 1, "padding_width": 0, "dilation_width": 2, "norm": "none"},
        lambda p, x: F.conv2d(x, p("conv.weight"), p("conv.bias"), (2, 1), (1, 0), (1, 2)).relu(),
    ),
    (
        "conv",  # whose border is half of what the kernel covers, on each axis
        "maps",
        {"channels": 6, "dilation_width": 3, "norm": "none"},
        lambda p, x: F.conv2d(x, p("conv.weight"), p("conv.bias"), 1, (1, 3), (1, 3)).relu(),
    ),
    (
        "depthwise_conv",
        "maps",
        {"kernel": 1, "kernel_width": 5, "stride_width": 2, "norm": "none"},
        lambda p, x: F.conv2d(x, p("conv.weight"), p("conv.bias"), (1, 2), (0, 2), groups=8).relu(),
    ),
    ("separable_conv", "maps", {"channels": 6}, lambda p, x: separable(p, x, False)),
    (
        "separable_conv",
        "maps",
        {"channels": 6, "stride": 2, "dilation": 2, "norm": "none"},
        lambda p, x: F.conv2d(
            F.conv2d(x, p("depthwise.weight"), p("depthwise.bias"), 2, 2, 2, 8), p("conv.weight"), p("conv.bias")
        ).relu(),
    ),
    (
        "transposed_conv",
        "maps",
        {"channels": 6, "kernel": 3, "stride": 1, "dilation": 2, "norm": "none"},
        lambda p, x: F.conv_transpose2d(x, p("conv.weight"), p("conv.bias"), dilation=2).relu(),
    ),
    (
        "pyramid_conv",
        "maps",
        {"channels": 16, "levels": 3, "stride": 2, "norm": "none", "activation": "none"},
        lambda p, x: pyramid(p, x, stride=2),
    ),
    ("separable_conv", "maps", {"channels": 6, "between": True}, lambda p, x: separable(p, x, True)),
    (
        "separable_conv",
        "maps",
        {"channels": 6, "bias": True, "norm": "group", "norm_groups": 2},
        lambda p, x: F.group_norm(
            F.conv2d(
                F.conv2d(x, p("depthwise.weight"), p("depthwise.bias"), 1, 1, 1, 8), p("conv.weight"), p("conv.bias")
            ),
            2, p("norm.weight"), p("norm.bias"),
        ).relu(),
    ),
    (
        "separable_conv",
        "maps",
        {"channels": 6, "bias": False, "norm": "none"},
        lambda p, x: F.conv2d(F.conv2d(x, p("depthwise.weight"), None, 1, 1, 1, 8), p("conv.weight")).relu(),
    ),
    (
        "depthwise_conv",
        "maps",
        {"norm": "group", "norm_groups": 4},
        lambda p, x: F.group_norm(
            F.conv2d(x, p("conv.weight"), None, 1, 1, 1, 8), 4, p("norm.weight"), p("norm.bias")
        ).relu(),
    ),
    (
        "transposed_conv",
        "maps",
        {"channels": 6, "kernel": 3, "padding": 1, "output_padding": 1, "groups": 2, "activation": "silu"},
        lambda p, x: F.silu(batch(p, F.conv_transpose2d(x, p("conv.weight"), None, 2, 1, 1, 2))),
    ),
    (
        "separable_conv",
        "maps",
        {"channels": 6, "between": True, "pre_activation": True, "dropout": 0.3},
        lambda p, x: separable_before(p, x),
    ),
    (
        "transposed_conv",
        "maps",
        {"channels": 6, "pre_activation": True, "dropout": 0.3},
        lambda p, x: F.dropout(
            F.conv_transpose2d(batch(p, x).relu(), p("conv.weight"), p("conv.bias"), 2), 0.3
        ),
    ),
    (
        "pyramid_conv",
        "maps",
        {"channels": 16, "levels": 3, "pre_activation": True, "activation": "gelu", "dropout": 0.3},
        lambda p, x: F.dropout(pyramid(p, F.gelu(batch(p, x))), 0.3),
    ),
    ("pyramid_conv", "maps", {"channels": 16, "levels": 3, "norm": "none", "activation": "gelu"}, lambda p, x: F.gelu(pyramid(p, x))),
    (
        "linear",
        "tokens",
        {"features": 5, "norm": "layer", "activation": "tanh"},
        lambda p, x: F.layer_norm(
            x @ p("linear.weight").T + p("linear.bias"), (5,), p("norm.weight"), p("norm.bias")
        ).tanh(),
    ),
    (
        "linear",
        "flat",
        {"features": 5, "norm": "batch", "activation": "prelu", "dropout": 0.4},
        lambda p, x: F.dropout(
            F.prelu(batch(p, x @ p("linear.weight").T + p("linear.bias")), p("activation.weight")), 0.4
        ),
    ),
    (
        "max_pool",
        "input",
        {"kernel": 3, "stride": 2, "ceil_mode": True},
        lambda _, x: nn.MaxPool2d(3, 2, ceil_mode=True)(x),
    ),
    (
        "avg_pool",
        "input",
        {"kernel": 3, "stride": 2, "padding": 1, "count_include_pad": False, "ceil_mode": True},
        lambda _, x: nn.AvgPool2d(3, 2, 1, True, False)(x),
    ),
    (
        "lp_pool",
        "input",
        {"p": 3.0, "kernel": 3, "stride": 2},
        lambda _, x: F.unfold(x.abs().pow(3), 3, stride=2).unflatten(1, (4, 9)).sum(2).pow(1 / 3).unflatten(2, (2, 3)),
    ),
    ("lp_pool", "input", {}, lambda _, x: nn.LPPool2d(2, 2)(x)),
    (
        "lp_pool",
        "input",
        {"kernel": 3, "kernel_width": 2, "stride_width": 1},
        lambda _, x: F.unfold(x**2, (3, 2), stride=(3, 1)).unflatten(1, (4, 6)).sum(2).sqrt().unflatten(2, (2, 7)),
    ),
    (
        "max_pool",
        "input",
        {"kernel": 1, "kernel_width": 3, "stride_width": 2, "padding_width": 1},
        lambda _, x: nn.MaxPool2d((1, 3), (1, 2), (0, 1))(x),
    ),
    (
        "max_pool",
        "input",
        {"kernel": 2, "stride": 1, "dilation": 3, "dilation_width": 2},
        lambda _, x: torch.stack([x[:, :, i : i + 3, j : j + 6] for i in (0, 3) for j in (0, 2)]).max(0).values,
    ),
    ("avg_pool", "input", {"kernel": 1, "kernel_width": 3}, lambda _, x: x[..., :6].unflatten(3, (2, 3)).mean(4)),
    ("blur_pool", "input", {"kernel": 4}, lambda _, x: blurred(x)),
    ("adaptive_avg_pool", "input", {"height": 4, "width": 3}, lambda _, x: nn.AdaptiveAvgPool2d((4, 3))(x)),
    ("adaptive_max_pool", "input", {"height": 3}, lambda _, x: nn.AdaptiveMaxPool2d(3)(x)),
    (
        "global_gem_pool",
        "input",
        {"p": 2.5},
        lambda p, x: (x.clamp(min=1e-6) ** p("p")).mean((2, 3)) ** (1 / p("p")),
    ),
    ("upsample", "input", {"factor": 3}, lambda _, x: x.repeat_interleave(3, 2).repeat_interleave(3, 3)),
    ("upsample", "input", {"mode": "bilinear"}, lambda _, x: nn.Upsample(scale_factor=2, mode="bilinear")(x)),
    ("upsample", "input", {"mode": "bicubic"}, lambda _, x: nn.Upsample(scale_factor=2, mode="bicubic")(x)),
    ("upsample", "input", {"scale": 1.5}, lambda _, x: nn.Upsample(scale_factor=1.5)(x)),
    (
        "upsample",
        "input",
        {"scale": 1.4, "mode": "bilinear"},
        lambda _, x: nn.Upsample(scale_factor=1.4, mode="bilinear")(x),
    ),
    ("upsample", "input", {"height": 9}, lambda _, x: nn.Upsample((9, 9))(x)),
    (
        "upsample",
        "input",
        {"height": 9, "width": 5, "mode": "bicubic"},
        lambda _, x: nn.Upsample((9, 5), mode="bicubic")(x),
    ),
    ("resize_like", "small input", {}, lambda _, x, __: x.repeat_interleave(2, 2).repeat_interleave(2, 3)),
    ("resize_like", "small input", {"mode": "bilinear"}, lambda _, x, __: nn.Upsample((6, 8), mode="bilinear")(x)),
    ("pixel_shuffle", "maps", {}, lambda _, x: nn.PixelShuffle(2)(x)),
    ("activation", "input", {"kind": "prelu"}, lambda p, x: F.prelu(x, p("weight"))),
    ("activation", "input", {"kind": "softmax"}, lambda _, x: nn.Softmax2d()(x)),
    ("activation", "tokens", {"kind": "softmax"}, lambda _, x: x.exp() / x.exp().sum(2, keepdim=True)),
    ("activation", "input", {"kind": "leaky_relu", "slope": 0.3}, lambda _, x: torch.where(x > 0, x, 0.3 * x)),
    ("activation", "input", {"kind": "elu", "alpha": 0.3}, lambda _, x: torch.where(x > 0, x, 0.3 * x.expm1())),
    ("activation", "input", {"kind": "celu", "alpha": 0.3}, lambda _, x: torch.where(x > 0, x, 0.3 * (x / 0.3).expm1())),
    ("activation", "input", {"kind": "gelu", "approximate": "tanh"}, lambda _, x: nn.GELU("tanh")(x)),
    (
        "activation",
        "input",
        {"kind": "softplus", "beta": 2.0, "threshold": 1.0},
        lambda _, x: torch.where(2 * x > 1, x, (2 * x).exp().log1p() / 2),
    ),
    ("activation", "input", {"kind": "hardtanh", "low": 0.0, "high": 0.5}, lambda _, x: x.clamp(0, 0.5)),
    ("activation", "input", {"kind": "hardshrink", "threshold": 0.2}, lambda _, x: torch.where(x.abs() > 0.2, x, 0 * x)),
    (
        "activation",
        "input",
        {"kind": "softshrink", "threshold": 0.2},
        lambda _, x: x.sign() * (x.abs() - 0.2).clamp(min=0),
    ),
    ("activation", "input", {"kind": "threshold"}, lambda _, x: x.relu()),
    (
        "activation",
        "input",
        {"kind": "threshold", "threshold": 0.5, "value": -1.0},
        lambda _, x: torch.where(x > 0.5, x, -1.0),
    ),
    ("activation", "input", {"kind": "rrelu"}, lambda _, x: nn.RReLU()(x)),
    ("activation", "input", {"kind": "rrelu", "low": 0.0, "high": 0.9}, lambda _, x: nn.RReLU(0.0, 0.9)(x)),
    (
        "activation",
        "input",
        {"kind": "prelu", "per_channel": True},
        lambda p, x: torch.where(x > 0, x, p("weight").view(4, 1, 1) * x),
    ),
    (
        "activation",
        "flat",
        {"kind": "prelu", "per_channel": True},
        lambda p, x: torch.where(x > 0, x, p("weight") * x),
    ),
    ("activation", "input", {"kind": "log_softmax"}, lambda _, x: x - x.logsumexp(1, keepdim=True)),
    ("activation", "tokens", {"kind": "log_softmax"}, lambda _, x: x - x.logsumexp(2, keepdim=True)),
    ("layer_norm", "input", {}, lambda p, x: channel_norm(x, p("weight"), p("bias"), 1e-5)),
    (
        "layer_norm",
        "tokens",
        {"eps": 1e-3},
        lambda p, x: (x - x.mean(2, keepdim=True)) / (x.var(2, False, keepdim=True) + 1e-3).sqrt() * p("weight") + p("bias"),
    ),
    ("rms_norm", "input", {}, lambda p, x: channel_norm(x, p("weight"), None, 1e-6, mean=False)),
    (
        "rms_norm",
        "tokens",
        {"eps": 0.1},
        lambda p, x: x / (x.square().mean(2, keepdim=True) + 0.1).sqrt() * p("weight"),
    ),
    ("instance_norm", "input", {}, lambda p, x: F.instance_norm(x, weight=p("weight"), bias=p("bias"))),
    (
        "instance_norm",
        "input",
        {"eps": 0.1},
        lambda p, x: (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), False, keepdim=True) + 0.1).sqrt()
        * p("weight").view(4, 1, 1) + p("bias").view(4, 1, 1),
    ),
    (
        "group_norm",
        "input",
        {"groups": 2, "eps": 0.1},
        lambda p, x: F.group_norm(x, 2, p("weight"), p("bias"), 0.1),
    ),
    ("group_norm", "input", {"groups": 2}, lambda p, x: F.group_norm(x, 2, p("weight"), p("bias"))),
    ("group_norm", "input", {}, lambda p, x: F.group_norm(x, 4, p("weight"), p("bias"))),  # gcd(32, 4)
    ("layer_mean_batch_norm", "input", {}, layer_mean_batch),
    (
        "local_response_norm",
        "input",
        {"size": 3, "alpha": 0.5, "k": 2.0},
        lambda _, x: x / (2 + 0.5 / 3 * sum(F.pad(x**2, (0, 0, 0, 0, 1, 1))[:, i : i + 4] for i in range(3))) ** 0.75,
    ),
    ("local_response_norm", "input", {"alpha": 0.5, "beta": 0.3}, lambda _, x: nn.LocalResponseNorm(5, 0.5, 0.3)(x)),
    ("dropout2d", "input", {"p": 0.3}, lambda _, x: nn.Dropout2d(0.3)(x)),
    ("drop_path", "input", {"p": 0.3}, lambda _, x: x * F.dropout(torch.ones(len(x), 1, 1, 1), 0.3)),
    ("drop_path", "tokens", {"p": 0.3}, lambda _, x: x * F.dropout(torch.ones(len(x), 1, 1), 0.3)),
    ("layer_scale", "input", {}, lambda p, x: x * p("weight")[None, :, None, None]),
    ("layer_scale", "tokens", {}, lambda p, x: x * p("weight")),
    ("gaussian_noise", "input", {"sigma": 0.5}, lambda _, x: x + 0.5 * torch.randn(x.shape)),
    ("sum", "maps other maps", {"scale": 0.1}, lambda _, a, b, c: a + 0.1 * b + 0.1 * c),
    ("mean", "maps other maps", {"activation": "relu"}, lambda _, a, b, c: F.relu((a + b + c) / 3)),
    ("mean", "maps other maps", {"scale": 0.1}, lambda _, a, b, c: (a + 0.1 * b + 0.1 * c) / 3),
    ("sum", "maps small", {"adapt": "resize"}, lambda _, a, b: a + nn.Upsample((6, 8), mode="bilinear")(b)),
    ("mean", "maps small", {"adapt": "resize"}, lambda _, a, b: (a + nn.Upsample((6, 8), mode="bilinear")(b)) / 2),
    (
        "mean",
        "maps input",
        {"adapt": "project"},
        lambda p, a, b: (a + torch.einsum("oc,nchw->nohw", p("adapt1.project.weight")[:, :, 0, 0], b)) / 2,
    ),
    (
        "concat",
        "input small",
        {"adapt": "resize"},
        lambda _, a, b: torch.cat([a, nn.Upsample((6, 8), mode="bilinear")(b)], 1),
    ),
    ("max", "maps other", {"activation": "sigmoid"}, lambda _, a, b: torch.where(a > b, a, b).sigmoid()),
    ("max", "maps other maps", {}, lambda _, a, b, __: torch.where(a > b, a, b)),
    ("max", "maps small", {"adapt": "resize"}, lambda _, a, b: a.maximum(nn.Upsample((6, 8), mode="bilinear")(b))),
    ("absolute_difference", "maps other", {}, lambda _, a, b: torch.where(a > b, a - b, b - a)),
    (
        "cosine_similarity",
        "maps other",
        {},
        lambda _, a, b: (torch.einsum("nchw,nchw->nhw", a, b) / a.norm(dim=1) / b.norm(dim=1))[:, None],
    ),
    (
        "cosine_similarity",
        "flat flat",
        {},
        lambda _, a, b: (a * b).sum(1, keepdim=True) / a.square().sum(1, keepdim=True).sqrt() / b.norm(dim=1, keepdim=True),
    ),
    (
        "cosine_similarity",
        "tokens tokens",
        {},
        lambda _, a, b: (a * b).sum(2, True) / a.square().sum(2, True).sqrt() / b.norm(dim=2, keepdim=True),
    ),
    ("normalise", "input", {}, lambda _, x: x / x.square().sum(1, keepdim=True).sqrt()),
    ("normalise", "tokens", {"eps": 1.0}, lambda _, x: x / x.square().sum(2, keepdim=True).sqrt().clamp(min=1)),
    ("normalise", "flat", {}, lambda _, x: x / torch.einsum("nf,nf->n", x, x).sqrt()[:, None]),
    ("multiply", "maps other", {"activation": "sigmoid"}, lambda _, a, b: torch.sigmoid(a * b)),
    ("multiply", "maps gate", {}, lambda _, a, b: torch.einsum("nchw,nc->nchw", a, b)),
    ("concat", "tokens tokens", {}, lambda _, a, b: torch.cat([a, b], -1)),
    ("concat", "maps other maps", {"scale": -0.5}, lambda _, a, b, c: torch.cat([a, b * -0.5, c * -0.5], 1)),
    (
        "bilinear",
        "flat gate",
        {"features": 5},
        lambda p, a, b: torch.einsum("ni,oij,nj->no", a, p("weight"), b) + p("bias"),
    ),
    (
        "bilinear",
        "tokens tokens",
        {"features": 5, "bias": False},
        lambda p, a, b: torch.einsum("nti,oij,ntj->nto", a, p("weight"), b),
    ),
    ("glu", "input", {}, lambda _, x: x[:, :2] / (1 + (-x[:, 2:]).exp())),
    ("glu", "tokens", {}, lambda _, x: x[..., :2] / (1 + (-x[..., 2:]).exp())),
    ("alpha_dropout", "input", {"p": 0.3}, lambda _, x: nn.AlphaDropout(0.3)(x)),
    ("feature_alpha_dropout", "input", {"p": 0.3}, lambda _, x: nn.FeatureAlphaDropout(0.3)(x)),
    ("channel_shuffle", "maps", {"groups": 4}, lambda _, x: interleaved(x)),
    ("channel_shuffle", "maps", {}, lambda _, x: nn.ChannelShuffle(2)(x)),
    ("unfold", "input", {"stride": 2, "dilation": 2}, lambda _, x: windows(x)),
    ("unfold", "input", {"kernel": 2, "padding": 1}, lambda _, x: F.unfold(x, 2, padding=1).mT),
    ("fold", "windows input", {"stride": 2, "dilation": 2}, lambda _, x, __: folded(x)),
    ("unflatten", "gate", {"channels": 2, "height": 1, "width": 4}, lambda _, x: x.view(-1, 2, 1, 4)),
    ("to_tokens", "input", {}, lambda _, x: torch.stack([x[:, :, i // 8, i % 8] for i in range(48)], 1)),
    ("to_maps", "tokens", {"height": 6}, lambda _, x: x.mT.reshape(-1, 4, 6, 8)),
    ("to_maps_like", "tokens input", {}, lambda _, __, like: like),  # there and back
    ("permute", "input", {"order": "3 1 2"}, lambda _, x: torch.einsum("nchw->nwch", x)),
    ("reduce", "input", {"over": "channels", "kind": "max", "keep": True}, lambda _, x: x.max(1, keepdim=True).values),
    ("reduce", "input", {"over": "space"}, lambda _, x: x.flatten(2).mean(2)),
    ("reduce", "tokens", {"over": "tokens", "kind": "min"}, lambda _, x: x.min(1).values),
    ("reduce", "input", {"over": "height", "kind": "sum"}, lambda _, x: torch.einsum("nchw->ncw", x)),
    ("select", "tokens", {"axis": "tokens", "index": 7}, lambda _, x: x[:, 7]),
    ("select", "input", {"axis": "channels", "index": -1}, lambda _, x: x[:, 3]),
    ("slice", "input", {"start": 1, "stop": 3}, lambda _, x: x[:, 1:3]),
    ("slice", "input", {"axis": "width", "start": -3, "stop": -1}, lambda _, x: x[..., 5:7]),
    ("split", "input", {"parts": 2, "index": 1}, lambda _, x: x.chunk(2, 1)[1]),
    ("split", "tokens", {"parts": 4, "index": 2}, lambda _, x: x[:, :, 2:3]),
    ("coordinates", "input", {"radius": True}, lambda _, x: coordinates(x)),
    (
        "pad",
        "input",
        {"left": 1, "right": 2, "top": 3, "bottom": 4, "value": 0.5},
        lambda _, x: nn.ConstantPad2d((1, 2, 3, 4), 0.5)(x),
    ),
    ("pad", "input", {"left": 1, "bottom": 4, "mode": "reflect"}, lambda _, x: nn.ReflectionPad2d((1, 0, 0, 4))(x)),
    ("pad", "input", {"right": 2, "top": 4, "mode": "replicate"}, lambda _, x: nn.ReplicationPad2d((0, 2, 4, 0))(x)),
    ("pad", "input", {"right": 2, "top": 4, "mode": "circular"}, lambda _, x: nn.CircularPad2d((0, 2, 4, 0))(x)),
    ("crop", "input", {"left": 1, "top": 2, "bottom": 1}, lambda _, x: x[:, :, 2:5, 1:]),
    ("shift", "input", {"right": 2, "down": -1}, lambda _, x: moved(x)),
]  # fmt: skip


def network(op: str, sources: str, options: dict[str, Any]) -> fx.GraphModule:
    names = list(dict.fromkeys(sources.split()))
    nodes = [node for name in names for node in BEFORE[name]]
    nodes.append({"id": "x", "op": op, "from": sources.split(), **options})
    outputs = [["y", "x"], *([name, name] for name in names if name != "input")]
    return build(from_canonical({"format": 1, "nodes": nodes, "outputs": outputs}), FIRST, 10)


def test_every_op_has_its_numbers_held() -> None:
    first = {str(options.get("op", name)) for name, (options, _, _) in test_ops.CASES.items()}
    assert first | {op for op, *_ in CASES} | test_ops.ELSEWHERE.keys() == set(OPS)
    for op, test in test_ops.ELSEWHERE.items():
        assert builds(test, op), f"{test} does not build the op {op}"


def builds(test: str, op: str) -> bool:
    """Whether a test, or what it uses of its file, names the op: as a text of its own, as `op: NAME`, or as a key `NAME:`."""
    file, _, name = test.partition("::")
    defined: dict[str, ast.stmt] = {}
    for statement in ast.parse((Path(__file__).parent / file).read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.FunctionDef):
            defined[statement.name] = statement
        for target in getattr(statement, "targets", [getattr(statement, "target", None)]):
            if isinstance(target, ast.Name):
                defined[target.id] = statement
    names, texts = [name], set()
    for one in names:  # grows
        for node in ast.walk(defined[one]):
            if isinstance(node, ast.Name) and node.id in defined and node.id not in names:
                names.append(node.id)
            elif isinstance(node, ast.Constant):
                texts.add(str(node.value))
    return op in texts or any(re.search(rf"\bop: {op}\b|\b{op}: ", text) for text in texts)


def test_a_test_of_another_op_or_of_none_is_told_apart() -> None:
    assert builds("test_attention.py::test_eca_is_timms", "eca")
    assert not builds("test_attention.py::test_eca_is_timms", "cbam")
    assert not builds("test_blur.py::test_it_is_the_gaussian", "blur")  # the layer alone
    with pytest.raises(KeyError):
        builds("test_attention.py::test_that_is_gone", "eca")


@pytest.mark.parametrize(("op", "sources", "options", "reference"), CASES)
def test_numbers_and_gradients(op: str, sources: str, options: dict[str, Any], reference: Reference) -> None:
    torch.manual_seed(0)
    net = network(op, sources, options)
    with torch.no_grad():
        for name, parameter in net.named_parameters():  # away from the ones and zeros of a fresh norm
            if name.startswith("x.") and name != "x.p":
                parameter.normal_()
    x = torch.randn(5, *FIRST, requires_grad=True)
    torch.manual_seed(1)
    outputs = net(x)
    y = outputs["y"]
    torch.manual_seed(1)
    state = dict(net.named_parameters())
    values = [x if name == "input" else outputs[name] for name in sources.split()]
    expected = reference(lambda key: state[f"x.{key}"], *values)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=2e-6)
    weights = torch.randn_like(expected)
    inputs = [x, *(p for name, p in state.items() if name.startswith("x."))]
    ours = torch.autograd.grad((y * weights).sum(), inputs, retain_graph=True)
    theirs = torch.autograd.grad((expected * weights).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


MODULES: dict[str, nn.Module] = {
    "relu": nn.ReLU(), "leaky_relu": nn.LeakyReLU(), "prelu": nn.PReLU(), "relu6": nn.ReLU6(), "elu": nn.ELU(),
    "selu": nn.SELU(), "softplus": nn.Softplus(), "gelu": nn.GELU(), "silu": nn.SiLU(), "mish": nn.Mish(),
    "hardswish": nn.Hardswish(), "sigmoid": nn.Sigmoid(), "hardsigmoid": nn.Hardsigmoid(), "tanh": nn.Tanh(),
    "celu": nn.CELU(), "hardtanh": nn.Hardtanh(), "softsign": nn.Softsign(), "log_sigmoid": nn.LogSigmoid(),
    "hardshrink": nn.Hardshrink(), "softshrink": nn.Softshrink(), "tanhshrink": nn.Tanhshrink(),
    "none": nn.Identity(),
}  # fmt: skip


@pytest.mark.parametrize("kind", MODULES)
def test_activations_are_those_of_torch(kind: str) -> None:
    x = torch.linspace(-8, 8, 5 * math.prod(FIRST)).view(5, *FIRST)
    assert torch.equal(network("activation", "input", {"kind": kind})(x)["y"], MODULES[kind](x))


def test_rrelu_has_in_eval_the_slope_that_torch_has() -> None:
    x = torch.randn(5, *FIRST)
    net = network("activation", "input", {"kind": "rrelu", "low": 0.2, "high": 0.5}).eval()
    assert torch.equal(net(x)["y"], nn.RReLU(0.2, 0.5).eval()(x))


def test_every_activation_is_held() -> None:
    assert set(MODULES) == set(Activation.__args__) == {*ACTIVATIONS, "prelu", "none"}  # type: ignore[attr-defined]


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    net = network("drop_path", "input", {"p": 0.25})
    x = torch.ones(4000, *FIRST)
    y = net(x)["y"]
    kept = y[:, 0, 0, 0]
    assert torch.equal(y, kept.view(-1, 1, 1, 1).expand_as(y))
    assert set(kept.tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert 0.72 < (kept > 0).float().mean() < 0.78
    assert torch.equal(net.eval()(x)["y"], x)


@pytest.mark.parametrize(("options", "start"), [({}, 1e-4), ({"start": 0.25}, 0.25)])
def test_layer_scale_begins_at_its_start(options: dict[str, float], start: float) -> None:
    x = torch.randn(2, *FIRST)
    assert torch.equal(network("layer_scale", "input", options)(x)["y"], x * start)


def test_momentum_is_the_weight_of_the_latest_batch() -> None:
    net, x = network("batch_norm", "input", {"momentum": 0.3}), torch.randn(6, *FIRST) * 2 + 1
    net(x)
    torch.testing.assert_close(net.get_buffer("x.running_mean"), 0.3 * x.mean((0, 2, 3)))
    torch.testing.assert_close(net.get_buffer("x.running_var"), 0.7 + 0.3 * x.var((0, 2, 3)))


def test_layer_mean_batch_norm_in_eval_uses_the_running_mean() -> None:
    torch.manual_seed(0)
    net = network("layer_mean_batch_norm", "tokens", {"momentum": 0.5})
    mean = torch.zeros(4)
    for _ in range(3):
        x = torch.randn(6, *FIRST) + torch.tensor([1.0, 2, 3, 5])[:, None, None]
        z = F.layer_norm(net(x)["tokens"], (4,))
        mean = 0.5 * mean + 0.5 * z.mean((0, 1))
    torch.testing.assert_close(net.get_buffer("x.running_mean"), mean)
    torch.testing.assert_close(net.eval()(x)["y"], z - mean)


def test_pyramid_convolution_passes_the_gradient_check() -> None:
    torch.manual_seed(0)
    options = {"channels": 8, "levels": 4, "norm": "none", "activation": "tanh"}
    nodes = [{"id": "x", "op": "pyramid_conv", "from": ["input"], **options}]
    net = build(from_canonical({"format": 1, "nodes": nodes, "outputs": [["y", "x"]]}), (2, 5, 4), 10).double()
    names, values = zip(*net.named_parameters(), strict=True)
    x = torch.randn(2, 2, 5, 4, dtype=torch.double, requires_grad=True)

    def run(x: Tensor, *weights: Tensor) -> Tensor:
        outputs: dict[str, Tensor] = torch.func.functional_call(net, dict(zip(names, weights, strict=True)), (x,))
        return outputs["y"]

    assert torch.autograd.gradcheck(run, (x, *values), fast_mode=True)


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_pyramid_levels_are_those_of_the_paper(levels: int) -> None:
    options = {"channels": 64, "levels": levels}
    nodes = [{"id": "x", "op": "pyramid_conv", "from": ["input"], **options}]
    net = build(from_canonical({"format": 1, "nodes": nodes, "outputs": [["y", "x"]]}), (64, 9, 9), 10)
    shares = {1: [64], 2: [32, 32], 3: [16, 16, 32], 4: [16] * 4}[levels]
    for level, (count, groups) in enumerate(zip(shares, (1, 4, 8, 16), strict=False)):
        kernel = 3 + 2 * level
        assert net.get_parameter(f"x.level{level}.weight").shape == (count, 64 // groups, kernel, kernel)
