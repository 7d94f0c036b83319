"""Laws of every op: the formula's shape is the run-time shape, and the graph can be exported, copied and pickled.

An op without a line in `SAMPLES` fails: a node kind without a test is not delivered.
"""

import copy
import io
import pickle
import re
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from deepcv.nn.ops import OPS
from deepcv.nn.spec import SpecError, build, from_canonical
from deepcv.nn.spec.options import fields

# What may stand before the op under test, by the name that its sources use.
BEFORE: dict[str, list[dict[str, Any]]] = {
    "input": [],
    "maps": [{"id": "maps", "op": "conv", "from": ["input"], "channels": 8, "norm": "none", "activation": "tanh"}],
    "other": [{"id": "other", "op": "conv", "from": ["input"], "channels": 8, "norm": "none", "activation": "none"}],
    "small": [{"id": "small", "op": "conv", "from": ["input"], "channels": 8, "stride": 2, "norm": "none"}],
    "gate": [
        {"id": "wide", "op": "conv", "from": ["input"], "channels": 8, "norm": "none"},
        {"id": "gate", "op": "global_avg_pool", "from": ["wide"]},
    ],
    "odd": [{"id": "odd", "op": "slice", "from": ["input"], "start": 1}],
    "flat": [{"id": "flat", "op": "flatten", "from": ["input"]}],
    "tokens": [{"id": "tokens", "op": "to_tokens", "from": ["input"]}],
    "windows": [{"id": "windows", "op": "unfold", "from": ["input"], "stride": 2, "dilation": 2}],
}
ANY_SIZE = "any size"  # works for any height and width: export makes them dynamic too
FIXED = "fixed size"

Sample = tuple[str, dict[str, Any], str]  # sources, options, whether the size may change at run time
SAMPLES: dict[str, list[Sample]] = {
    "conv": [
        ("input", {"channels": 6, "stride": 2}, ANY_SIZE),
        ("maps", {"channels": 6, "kernel": 1, "kernel_width": 5, "norm": "group", "activation": "prelu"}, ANY_SIZE),
        ("maps", {"channels": 6, "padding_mode": "reflect", "norm": "layer", "zero_init": True}, ANY_SIZE),
        ("maps", {"channels": 6, "padding_mode": "circular", "norm": "instance", "pre_activation": True}, ANY_SIZE),
        ("maps", {"channels": 6, "spectral_norm": True, "groups": 2, "dilation": 2}, ANY_SIZE),
        ("maps", {"channels": 6, "stride": 2, "stride_width": 1, "padding_width": 0, "dilation_width": 2}, ANY_SIZE),
    ],
    "depthwise_conv": [
        ("input", {"multiplier": 2, "stride": 2, "kernel": 5}, ANY_SIZE),
        ("input", {"kernel": 1, "kernel_width": 5, "stride_width": 2}, ANY_SIZE),
    ],
    "separable_conv": [("maps", {"channels": 6, "between": True}, ANY_SIZE), ("maps", {"channels": 6}, ANY_SIZE)],
    "transposed_conv": [
        ("maps", {"channels": 6}, ANY_SIZE),
        ("maps", {"channels": 6, "kernel": 3, "padding": 1, "output_padding": 1, "groups": 2, "dilation": 2}, ANY_SIZE),
        ("maps", {"channels": 6, "spectral_norm": True, "pre_activation": True}, ANY_SIZE),
    ],
    "pyramid_conv": [("maps", {"channels": 18, "levels": n, "stride": 2}, ANY_SIZE) for n in (1, 2, 3, 4)],
    "whiten": [("input", {}, ANY_SIZE)],
    "linear": [
        ("flat", {"features": 5, "spectral_norm": True}, FIXED),
        ("flat", {"features": 5, "norm": "batch", "activation": "prelu", "dropout": 0.2}, FIXED),
        ("tokens", {"features": 5, "norm": "layer", "activation": "gelu"}, ANY_SIZE),
    ],
    "max_pool": [
        *(("input", {"kernel": 3, "stride": 2, "padding": 1, "ceil_mode": c}, ANY_SIZE) for c in (False, True)),
        ("input", {"kernel": 1, "kernel_width": 3, "stride_width": 2, "padding_width": 1, "ceil_mode": True}, ANY_SIZE),
        ("input", {"kernel": 2, "stride": 1, "dilation": 3, "dilation_width": 2}, ANY_SIZE),
    ],
    "avg_pool": [
        *(
            ("input", {"kernel": 3, "stride": 2, "padding": 1, "count_include_pad": c, "ceil_mode": c}, ANY_SIZE)
            for c in (False, True)
        ),
        ("input", {"kernel": 1, "kernel_width": 3}, ANY_SIZE),
    ],
    "lp_pool": [
        *(("input", {"p": 3.0, "kernel": 3, "stride": 2, "ceil_mode": c}, ANY_SIZE) for c in (False, True)),
        ("input", {"kernel": 3, "kernel_width": 2, "stride_width": 1}, ANY_SIZE),
    ],
    "blur_pool": [("input", {"kernel": k, "stride": s}, ANY_SIZE) for k, s in ((3, 2), (4, 2), (5, 3))],
    "adaptive_avg_pool": [("input", {"height": 3, "width": 2}, ANY_SIZE)],
    "adaptive_max_pool": [("input", {"height": 3}, ANY_SIZE)],
    "global_avg_pool": [("input", {}, ANY_SIZE)],
    "global_max_pool": [("input", {}, ANY_SIZE)],
    "global_gem_pool": [("input", {}, ANY_SIZE)],
    "upsample": [
        ("input", {**size, "mode": m}, ANY_SIZE)
        for m in ("nearest", "bilinear", "bicubic")
        for size in ({"factor": 3}, {"scale": 1.4}, {"height": 9, "width": 5})
    ],
    "resize_like": [("small input", {"mode": m}, ANY_SIZE) for m in ("nearest", "bilinear", "bicubic")],
    "pixel_shuffle": [("maps", {"factor": 2}, ANY_SIZE)],
    "pixel_unshuffle": [("input", {"factor": 2}, FIXED)],  # even sizes only
    "activation": [
        *(("input", {"kind": k}, ANY_SIZE) for k in ("prelu", "mish", "softmax", "none", "log_sigmoid", "tanhshrink")),
        ("input", {"kind": "prelu", "per_channel": True}, ANY_SIZE),
        ("input", {"kind": "rrelu", "low": 0.1}, ANY_SIZE),
        ("input", {"kind": "threshold", "threshold": 0.5, "value": -1.0}, ANY_SIZE),
        ("input", {"kind": "gelu", "approximate": "tanh"}, ANY_SIZE),
        ("input", {"kind": "softplus", "beta": 2.0, "threshold": 3.0}, ANY_SIZE),
        ("input", {"kind": "hardtanh", "low": 0.0, "high": 6.0}, ANY_SIZE),
        ("input", {"kind": "softshrink", "threshold": 0.2}, ANY_SIZE),
    ],
    "batch_norm": [("input", {"zero_init": True}, ANY_SIZE), ("flat", {}, FIXED)],
    "layer_norm": [("input", {}, ANY_SIZE), ("flat", {}, FIXED), ("tokens", {}, ANY_SIZE)],
    "rms_norm": [("input", {}, ANY_SIZE), ("flat", {}, FIXED), ("tokens", {}, ANY_SIZE)],
    "instance_norm": [("input", {}, ANY_SIZE)],
    "group_norm": [("input", {"groups": 2}, ANY_SIZE), ("input", {}, ANY_SIZE)],
    "layer_mean_batch_norm": [("input", {}, ANY_SIZE), ("flat", {}, FIXED), ("tokens", {}, ANY_SIZE)],
    "local_response_norm": [("input", {}, ANY_SIZE)],
    "dropout": [("input", {}, ANY_SIZE)],
    "dropout2d": [("input", {}, ANY_SIZE)],
    "drop_path": [("input", {}, ANY_SIZE), ("tokens", {}, ANY_SIZE), ("gate", {}, ANY_SIZE)],
    "layer_scale": [("input", {}, ANY_SIZE), ("tokens", {}, ANY_SIZE), ("gate", {}, ANY_SIZE)],
    "gaussian_noise": [("input", {}, ANY_SIZE)],
    "sum": [
        ("maps other", {"scale": 0.1}, ANY_SIZE),
        ("maps other maps", {"activation": "relu"}, ANY_SIZE),
        ("maps input", {"adapt": "project", "spectral_norm": True}, ANY_SIZE),
        ("gate flat", {"adapt": "project", "spectral_norm": True}, FIXED),
    ],
    "mean": [("maps other maps", {}, ANY_SIZE)],
    "max": [("maps other maps", {"activation": "relu"}, ANY_SIZE), ("maps small", {"adapt": "resize"}, ANY_SIZE)],
    "absolute_difference": [("maps other", {}, ANY_SIZE), ("tokens tokens", {}, ANY_SIZE)],
    "cosine_similarity": [("maps other", {}, ANY_SIZE), ("gate gate", {}, ANY_SIZE), ("tokens tokens", {}, ANY_SIZE)],
    "normalise": [("input", {}, ANY_SIZE), ("flat", {}, FIXED), ("tokens", {}, ANY_SIZE)],
    "multiply": [("maps gate", {}, ANY_SIZE), ("maps other gate", {}, ANY_SIZE)],
    "concat": [("maps other", {}, ANY_SIZE), ("tokens tokens", {}, ANY_SIZE), ("flat gate", {}, FIXED)],
    "bilinear": [
        ("flat gate", {"features": 5}, FIXED),
        ("tokens tokens", {"features": 5, "spectral_norm": True}, ANY_SIZE),
    ],
    "glu": [("input", {}, ANY_SIZE), ("tokens", {}, ANY_SIZE), ("gate", {}, ANY_SIZE)],
    "alpha_dropout": [("input", {}, ANY_SIZE)],
    "feature_alpha_dropout": [("input", {}, ANY_SIZE)],
    "channel_shuffle": [("maps", {"groups": 4}, ANY_SIZE)],
    "unfold": [("input", {"stride": 2, "dilation": 2}, ANY_SIZE)],
    "fold": [("windows maps", {"stride": 2, "dilation": 2}, ANY_SIZE)],
    "flatten": [("input", {}, ANY_SIZE)],
    "unflatten": [("gate", {"channels": 2, "height": 2, "width": 2}, ANY_SIZE)],
    "to_tokens": [("input", {}, ANY_SIZE)],
    "to_maps": [("tokens", {"height": 6}, FIXED)],
    "to_maps_like": [("tokens input", {}, ANY_SIZE)],
    "permute": [("input", {"order": "3 1 2"}, ANY_SIZE), ("tokens", {"order": "2 1"}, ANY_SIZE)],
    "reduce": [
        ("input", {"over": "channels", "kind": "max", "keep": True}, ANY_SIZE),
        ("input", {"over": "space"}, ANY_SIZE),
        ("tokens", {"over": "tokens", "kind": "min"}, ANY_SIZE),
        ("input", {"over": "height", "kind": "sum"}, ANY_SIZE),
    ],
    "select": [("tokens", {"axis": "tokens"}, ANY_SIZE), ("input", {"axis": "channels", "index": -1}, ANY_SIZE)],
    "slice": [
        ("input", {"start": 1, "stop": 3}, ANY_SIZE),
        ("input", {"axis": "width", "start": -3}, ANY_SIZE),
        ("tokens", {"axis": "tokens", "start": 1}, ANY_SIZE),
        ("input", {"axis": "height", "stop": -2}, ANY_SIZE),
    ],
    "split": [("input", {"parts": 2, "index": 1}, ANY_SIZE), ("tokens", {"parts": 4, "index": 2}, ANY_SIZE)],
    "coordinates": [("input", {"radius": r}, ANY_SIZE) for r in (False, True)],
    "pad": [
        ("input", {"left": 1, "right": 2, "top": 3, "mode": m}, ANY_SIZE)
        for m in ("constant", "reflect", "replicate", "circular")
    ],
    "crop": [("input", {"left": 1, "top": 2, "bottom": 1}, ANY_SIZE)],
    "shift": [("input", {"right": 2, "down": -1}, ANY_SIZE)],
    "scale": [("input", {"by": 0.5}, ANY_SIZE)],
    "identity": [("input", {}, ANY_SIZE)],
    "detach": [("input", {}, ANY_SIZE)],
    "fuse": [
        ("input small", {"to": 0}, FIXED),  # even sizes only
        ("input small", {"to": 1, "spectral_norm": True}, FIXED),
    ],
    "upsample_concat": [("maps small", {"mode": m}, ANY_SIZE) for m in ("nearest", "bilinear")],
    "forget_gate": [("maps", {}, ANY_SIZE)],
    "update_gate": [("maps other", {}, ANY_SIZE)],
    "meta_conv": [
        ("maps", {"channels": 6}, ANY_SIZE),
        ("maps", {"channels": 6, "stride": 2, "norm": "group", "spectral_norm": True}, ANY_SIZE),
    ],
    "blur": [("input", {"sigma": 0.7}, ANY_SIZE)],
    "squeeze_excite": [("maps", {}, ANY_SIZE), ("maps", {"spectral_norm": True}, ANY_SIZE)],
    "eca": [("maps", {}, ANY_SIZE)],
    "cbam": [("maps", {"reduction": 2}, ANY_SIZE)],
    "spatial_gate": [("maps", {}, ANY_SIZE)],
    "attention_gate": [("maps other", {}, ANY_SIZE), ("maps small", {}, ANY_SIZE)],
    "attention": [("tokens", {"heads": 2}, ANY_SIZE), ("tokens tokens", {"heads": 2}, ANY_SIZE)],
    "patch_embed": [("input", {"features": 6, "patch": 2}, FIXED)],  # multiples of the patch only
    "class_token": [("tokens", {}, ANY_SIZE)],
    "positions": [("tokens", {}, FIXED)],
}
# Of whole networks and of what is picked among nodes, whose shape no formula tells: test_libraries.py and test_subgraphs.py.
NO_FORMULA = {"choice", "timm", "torchvision", "feature"}
ALL = [pytest.param(op, *sample, id=f"{op}{i}") for op, samples in SAMPLES.items() for i, sample in enumerate(samples)]
FIRST, SECOND = (4, 6, 8), (4, 12, 10)


def network(op: str, sources: str, options: dict[str, Any], shape: tuple[int, int, int]) -> fx.GraphModule:
    """The op as the node `x`, behind the nodes that its sources need."""
    names = sources.split()
    nodes = [node for name in dict.fromkeys(names) for node in BEFORE[name]]
    nodes.append({"id": "x", "op": op, "from": names, **options})
    return build(from_canonical({"format": 1, "nodes": nodes, "outputs": [["y", "x"]]}), shape, 10)


def promised(net: fx.GraphModule) -> tuple[int, ...]:
    outputs: Any = net.graph.output_node().args[0]
    shape: tuple[int, ...] = outputs["y"].meta["shape"]
    return shape


def test_every_op_has_a_sample() -> None:
    assert SAMPLES.keys() | NO_FORMULA == set(OPS)


@pytest.mark.parametrize(("op", "sources", "options", "size"), ALL)
def test_the_formula_is_the_shape_at_run_time(op: str, sources: str, options: dict[str, Any], size: str) -> None:
    for shape in (FIRST, SECOND):
        net = network(op, sources, options, shape)
        for mode in (True, False):
            y = net.train(mode)(torch.randn(3, *shape))["y"]
            assert tuple(y.shape) == (3, *promised(net))
        if size == ANY_SIZE and shape == FIRST and not list(net.parameters()):
            expected = promised(network(op, sources, options, SECOND))
            assert tuple(net(torch.randn(3, *SECOND))["y"].shape[1:]) == expected  # nothing of FIRST is frozen in


@pytest.mark.parametrize(("op", "sources", "options", "size"), ALL)
def test_export_copy_and_pickle_give_equal_outputs(op: str, sources: str, options: dict[str, Any], size: str) -> None:
    torch.manual_seed(0)
    net = network(op, sources, options, FIRST)
    net(torch.randn(4, *FIRST))  # one training step's statistics
    net.eval()
    other = (4, 14, 11) if size == ANY_SIZE else FIRST
    x = torch.randn(5, *other)
    expected = net(x)["y"]
    sizes: dict[int, Any] = {0: torch.export.Dim.DYNAMIC}
    if size == ANY_SIZE:
        sizes |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(net, (torch.randn(3, *FIRST),), dynamic_shapes=(sizes,), strict=False)
    torch.testing.assert_close(exported.module()(x)["y"], expected, rtol=1e-5, atol=1e-6)
    file = io.BytesIO(pickle.dumps(net))
    for again in (copy.deepcopy(net), pickle.load(file)):  # noqa: S301  our own bytes
        assert torch.equal(again(x)["y"], expected)
        assert list(again.state_dict()) == list(net.state_dict())
        assert not again.training


@pytest.mark.parametrize(("op", "sources", "options", "size"), ALL)
def test_gradients_reach_every_parameter(op: str, sources: str, options: dict[str, Any], size: str) -> None:
    del size
    torch.manual_seed(0)
    net = network(op, sources, options, FIRST)
    own = {name: p for name, p in net.named_parameters() if name.startswith("x.") and p.requires_grad}
    with torch.no_grad():
        for p in own.values():
            nn.init.normal_(p)
    y = net(torch.randn(4, *FIRST))["y"]
    weights: Tensor = torch.randn_like(y)
    if y.requires_grad:
        (y * weights).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in own.values())


@pytest.mark.parametrize(("op", "sources", "options", "size"), ALL)
def test_an_op_whose_kernel_learns_takes_init_and_spectral_norm(
    op: str, sources: str, options: dict[str, Any], size: str
) -> None:
    del size
    learned = [p for name, p in network(op, sources, options, FIRST).named_parameters() if name.startswith("x.")]
    if op not in ("class_token", "positions") and any(p.requires_grad and p.dim() > 1 for p in learned):
        assert {"init", "init_value", "spectral_norm"} <= fields(OPS[op]).keys()


CLASHES: list[tuple[str, str, dict[str, Any], str]] = [  # op, sources, options, a part of the message
    ("conv", "flat", {"channels": 4}, "needs feature maps"),
    ("conv", "maps", {"channels": 6, "groups": 4}, "groups: 4 does not divide channels: 6"),
    ("conv", "maps", {"channels": 6, "kernel": 3, "kernel_width": 2, "init": "dirac"}, "needs an odd kernel"),
    ("conv", "maps", {"channels": 6, "padding": 0, "kernel": 1, "kernel_width": 9}, "(1, 9) is larger than"),
    ("conv", "maps", {"channels": 6, "padding": 6, "padding_mode": "reflect"}, "reflect padding of 6"),
    ("conv", "maps", {"channels": 6, "norm": "group", "norm_groups": 4}, "4 groups do not divide"),
    ("conv", "maps", {"channels": 6, "norm": "none", "zero_init": True}, "there is no norm"),
    ("conv", "maps", {"channels": 6, "norm": "local_response", "zero_init": True}, "local response norm has none"),
    ("conv", "maps", {"channels": 6, "init": "zeros", "spectral_norm": True}, "which is 0 after init: zeros"),
    ("conv", "maps", {"channels": 6, "init": "constant", "spectral_norm": True}, "which is 0 after init: constant"),
    ("separable_conv", "maps", {"channels": 6, "norm": "group", "norm_groups": 4}, "4 groups do not divide"),
    ("depthwise_conv", "tokens", {}, "needs feature maps"),
    ("depthwise_conv", "input", {"init": "dirac"}, "groups: 1"),
    ("separable_conv", "maps", {"channels": 4, "init": "dirac"}, "groups: 1"),
    ("separable_conv", "flat", {"channels": 4}, "needs feature maps"),
    ("transposed_conv", "gate", {"channels": 4}, "needs feature maps"),
    ("transposed_conv", "maps", {"channels": 6, "groups": 4}, "does not divide channels: 6"),
    ("transposed_conv", "maps", {"channels": 6, "output_padding": 2}, "must be less than the stride"),
    ("transposed_conv", "maps", {"channels": 6, "padding": 6}, "leaves nothing of"),
    ("pyramid_conv", "maps", {"channels": 3}, "fewer than one for each of levels: 4"),
    ("pyramid_conv", "flat", {"channels": 8}, "needs feature maps"),
    ("whiten", "maps", {}, "works on the input images only"),
    ("linear", "maps", {"features": 4}, "needs flat features (F,) or tokens (T, F)"),
    ("linear", "tokens", {"features": 4, "norm": "batch"}, "use layer norm"),
    ("linear", "flat", {"features": 4, "init": "truncated_normal", "init_value": -0.1}, "must not be negative"),
    ("linear", "flat", {"features": 4, "init": "dirac"}, "is for convolutions"),
    ("max_pool", "input", {"kernel": 7}, "a window of (7, 7) is larger"),
    ("avg_pool", "input", {"kernel": 2, "padding": 2}, "more than half of kernel"),
    (
        "avg_pool",
        "input",
        {"kernel": 1, "kernel_width": 3, "padding": 1},
        "padding: 1 is more than half of kernel: (1, 3)",
    ),
    ("max_pool", "input", {"kernel": 3, "dilation_width": 4}, "a window of (3, 9) is larger"),
    ("lp_pool", "tokens", {}, "needs feature maps"),
    ("blur_pool", "small", {"kernel": 7}, "reflect padding of 3"),
    ("adaptive_avg_pool", "flat", {}, "needs feature maps"),
    ("adaptive_max_pool", "flat", {}, "needs feature maps"),
    ("global_avg_pool", "flat", {}, "needs feature maps"),
    ("global_max_pool", "flat", {}, "needs feature maps"),
    ("global_gem_pool", "flat", {}, "needs feature maps"),
    ("upsample", "tokens", {}, "needs feature maps"),
    ("upsample", "input", {"width": 5}, "width: 5 needs a height too"),
    ("upsample", "input", {"scale": 0.1}, "scale: 0.1 leaves nothing of"),
    ("resize_like", "input flat", {}, "needs feature maps"),
    ("resize_like", "maps other input", {}, "takes two inputs"),
    ("pixel_shuffle", "input", {"factor": 3}, "a multiple of 9"),
    ("pixel_unshuffle", "input", {"factor": 4}, "multiples of 4"),
    ("activation", "input", {"kind": "relu", "slope": 0.1}, "slope is for kind: leaky_relu and prelu, got kind: relu"),
    ("activation", "input", {"kind": "relu", "alpha": 0.1}, "alpha is for kind: elu and celu"),
    ("activation", "input", {"kind": "relu", "per_channel": True}, "per_channel is for kind: prelu"),
    ("activation", "input", {"kind": "relu", "threshold": 0.0}, "threshold is for kind: softplus and hardshrink and"),
    ("activation", "input", {"kind": "hardtanh", "low": 1.0}, "low must be less than high, got low: 1, high: 1"),
    ("activation", "input", {"kind": "rrelu", "high": 0.1}, "low must be less than high, got low: 0.125, high: 0.1"),
    ("activation", "input", {"kind": "softshrink", "threshold": -0.5}, "must not be negative"),
    ("activation", "tokens", {"kind": "prelu", "per_channel": True}, "is for feature maps (C, H, W) and flat features"),
    ("batch_norm", "tokens", {}, "use layer norm"),
    ("instance_norm", "flat", {}, "needs feature maps"),
    ("group_norm", "maps", {"groups": 3}, "3 groups do not divide"),
    ("local_response_norm", "flat", {}, "needs feature maps"),
    ("dropout2d", "flat", {}, "needs feature maps"),
    ("sum", "maps input", {}, "needs equal shapes"),
    (
        "sum",
        "maps other",
        {"init": "he"},
        "init, init_value and spectral_norm are for adapt: project, got adapt: error",
    ),
    ("mean", "maps other", {"spectral_norm": True, "adapt": "resize"}, "are for adapt: project, got adapt: resize"),
    ("mean", "maps input", {}, "needs equal shapes"),
    ("max", "maps input", {}, "needs equal shapes"),
    ("absolute_difference", "maps input", {}, "needs equal shapes"),
    ("absolute_difference", "maps other maps", {}, "takes two inputs"),
    ("cosine_similarity", "maps flat", {}, "needs equal shapes"),
    ("multiply", "maps input", {}, "needs shapes equal to"),
    ("multiply", "input gate", {}, "a number per channel"),
    ("concat", "maps small", {}, "equal height and width"),
    ("concat", "maps tokens", {}, "equal height and width"),
    ("bilinear", "tokens gate", {"features": 5}, "equally many tokens"),
    ("bilinear", "gate gate gate", {"features": 5}, "takes two inputs"),
    ("bilinear", "gate gate", {"features": 5, "init": "dirac"}, "is for convolutions"),
    ("glu", "odd", {}, "an even number of channels"),
    ("feature_alpha_dropout", "flat", {}, "needs feature maps"),
    ("channel_shuffle", "maps", {"groups": 3}, "groups: 3 does not divide the channels"),
    ("unfold", "input", {"kernel": 9, "padding": 0}, "a window of (9, 9) is larger"),
    ("fold", "windows input", {}, "needs 48 tokens of a multiple of 9 features"),
    ("fold", "windows input maps", {}, "takes two inputs"),
    ("unflatten", "gate", {"channels": 2, "height": 2, "width": 3}, "needs 12 flat features"),
    ("to_tokens", "flat", {}, "needs feature maps"),
    ("to_maps", "tokens", {}, "a square"),
    ("to_maps", "tokens", {"height": 5}, "a multiple of height: 5"),
    ("to_maps", "input", {}, "needs tokens"),
    ("to_maps_like", "tokens small", {}, "needs 12 tokens"),
    ("to_maps_like", "tokens input input", {}, "takes two inputs"),
    ("permute", "input", {"order": "1 2"}, "each of 1 2 3 once"),
    ("permute", "input", {"order": "x y z"}, "each of 1 2 3 once"),
    ("reduce", "tokens", {"over": "height"}, "has no axis height; it has tokens, features"),
    ("reduce", "flat", {"over": "features"}, "use keep: true"),
    ("select", "tokens", {"axis": "tokens", "index": 48}, "outside the 48 tokens"),
    ("select", "flat", {"axis": "features"}, "use slice"),
    ("slice", "input", {"start": 3, "stop": 3}, "no part of the 4 channels"),
    ("slice", "input", {"stop": 5}, "no part of the 4 channels"),
    ("split", "input", {"parts": 3}, "does not split"),
    ("split", "input", {"parts": 2, "index": 2}, "does not split"),
    ("coordinates", "flat", {}, "needs feature maps"),
    ("pad", "input", {"top": 6, "mode": "reflect"}, "must be smaller than the maps"),
    ("crop", "input", {"left": 4, "right": 4}, "nothing is left"),
    ("shift", "input", {"right": -8}, "leaves nothing"),
    ("fuse", "input small", {"to": 2}, "must be the number of an input, from 0 to 1"),
    ("fuse", "input flat", {"to": 0}, "needs feature maps"),
    ("upsample_concat", "maps flat", {}, "needs feature maps"),
    ("forget_gate", "flat", {}, "needs feature maps"),
    ("update_gate", "maps input", {}, "needs equal shapes"),
    ("meta_conv", "flat", {"channels": 6}, "needs feature maps"),
    ("blur", "flat", {}, "needs feature maps"),
    ("squeeze_excite", "flat", {}, "needs feature maps"),
    ("eca", "tokens", {}, "needs feature maps"),
    ("cbam", "tokens", {}, "needs feature maps"),
    ("spatial_gate", "flat", {}, "needs feature maps"),
    ("attention_gate", "maps flat", {}, "needs feature maps"),
    ("attention", "tokens", {"heads": 3}, "heads: 3 does not divide the features"),
    ("attention", "maps", {"heads": 2}, "needs tokens (T, D)"),
    ("patch_embed", "input", {"features": 6, "patch": 4}, "multiples of patch: 4"),
    ("class_token", "maps", {}, "needs tokens (T, D)"),
    ("positions", "flat", {}, "needs tokens (T, D)"),
]
FITS_ALL = {
    "layer_norm", "rms_norm", "layer_mean_batch_norm", "dropout", "alpha_dropout", "drop_path", "layer_scale",
    "gaussian_noise", "normalise", "flatten", "scale", "identity", "detach",
}  # fmt: skip


def test_every_op_has_a_clash_or_takes_any_shape() -> None:
    assert {op for op, *_ in CLASHES} | FITS_ALL | NO_FORMULA == set(OPS)


@pytest.mark.parametrize(("op", "sources", "options", "message"), CLASHES)
def test_a_shape_that_does_not_fit_is_named(op: str, sources: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)) as caught:
        network(op, sources, options, FIRST)
    assert f"node 'x': {op} " in str(caught.value)


@pytest.mark.parametrize(("op", "shape"), [("instance_norm", (4, 1, 1)), ("coordinates", (4, 1, 8))])
def test_maps_that_are_too_small_are_refused(op: str, shape: tuple[int, int, int]) -> None:
    with pytest.raises(SpecError, match=r"needs (more than one pixel|two rows)"):
        network(op, "input", {}, shape)
