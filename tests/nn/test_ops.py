"""Each op's numbers against the torch layers that it stands for."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepcv.nn.layers.tensors import largest, smallest
from deepcv.nn.spec import build, from_canonical

SHAPE = (4, 6, 8)
Layers = Callable[[Tensor], Tensor]


def network(
    op: str, sources: tuple[str, ...] = ("input",), shape: tuple[int, int, int] = SHAPE, **options: object
) -> nn.Module:
    """One node `x`, behind `flat` where it takes flat features."""
    nodes = [{"id": "x", "op": op, "from": list(sources), **options}]
    if "flat" in sources:
        nodes.insert(0, {"id": "flat", "op": "flatten", "from": ["input"]})
    return build(from_canonical({"format": 1, "nodes": nodes, "outputs": [["y", "x"]]}), shape, 10)


def conv(net: nn.Module) -> Layers:
    """By hand from the network's own weights: kernel 3, stride 2, padding 1, batch norm in training, ReLU."""
    weight = net.get_parameter("x.conv.weight")
    scale, shift = net.get_parameter("x.norm.weight"), net.get_parameter("x.norm.bias")
    return lambda x: F.relu(F.batch_norm(F.conv2d(x, weight, None, 2, 1), None, None, scale, shift, training=True))


def bare(net: nn.Module) -> Layers:
    weight, bias = net.get_parameter("x.conv.weight"), net.get_parameter("x.conv.bias")
    return lambda x: F.gelu(F.conv2d(x, weight, bias, 1, 4, 2, 2))


def normed(net: nn.Module, x: Tensor, eps: float) -> Tensor:
    return F.batch_norm(x, None, None, net.get_parameter("x.weight"), net.get_parameter("x.bias"), True, 0.1, eps)


def linear(net: nn.Module) -> Layers:
    return lambda x: F.silu(F.linear(x.flatten(1), net.get_parameter("x.weight"), net.get_parameter("x.bias")))


CASES: dict[str, tuple[dict[str, object], tuple[str, ...], Callable[[nn.Module], Layers]]] = {
    "conv": ({"channels": 6, "stride": 2}, ("input",), conv),
    "conv without norm": (
        {"op": "conv", "channels": 6, "kernel": 5, "dilation": 2, "groups": 2, "norm": "none", "activation": "gelu"},
        ("input",),
        bare,
    ),
    "conv dirac": ({"op": "conv", "channels": 6, "stride": 2, "init": "dirac"}, ("input",), conv),
    "whiten": ({}, ("input",), lambda net: partial(F.conv2d, weight=net.x.weight)),
    "linear": ({"features": 5, "activation": "silu"}, ("flat",), linear),
    "max_pool": ({"kernel": 3, "stride": 2, "padding": 1}, ("input",), lambda _: nn.MaxPool2d(3, 2, 1)),
    "avg_pool": ({}, ("input",), lambda _: nn.AvgPool2d(2)),
    "global_avg_pool": ({}, ("input",), lambda _: lambda x: nn.AdaptiveAvgPool2d(1)(x).flatten(1)),
    "global_max_pool": ({}, ("input",), lambda _: lambda x: nn.AdaptiveMaxPool2d(1)(x).flatten(1)),
    "flatten": ({}, ("input",), lambda _: nn.Flatten()),
    "activation": ({"kind": "silu"}, ("input",), lambda _: nn.SiLU()),
    "activation gelu": ({"op": "activation", "kind": "gelu"}, ("input",), lambda _: nn.GELU()),
    "activation relu": ({"op": "activation", "kind": "relu"}, ("input",), lambda _: nn.ReLU()),
    "batch_norm": ({}, ("input",), lambda net: lambda x: normed(net, x, 1e-5)),
    "batch_norm flat": (
        {"op": "batch_norm", "eps": 0.1},
        ("flat",),
        lambda net: lambda x: normed(net, x.flatten(1), 0.1),
    ),
    "dropout": ({"p": 0.3}, ("input",), lambda _: nn.Dropout(0.3)),
    "sum": ({"activation": "relu"}, ("input", "input", "input"), lambda _: lambda x: F.relu(x + x + x)),
    "concat": ({}, ("input", "input"), lambda _: lambda x: torch.cat([x, x], 1)),
    "concat flat": ({"op": "concat"}, ("flat", "flat"), lambda _: lambda x: torch.cat([x.flatten(1)] * 2, 1)),
    "pixel_unshuffle": ({"factor": 2}, ("input",), lambda _: nn.PixelUnshuffle(2)),
    "scale": ({"by": -0.125}, ("input",), lambda _: lambda x: x * -0.125),
    "identity": ({}, ("input",), lambda _: nn.Identity()),
}


# Ops that take inputs of several shapes, or whose formula has several lines, and the tests that hold their numbers.
ELSEWHERE = {
    "detach": "test_ops.py::test_what_is_learned_after_detach_teaches_nothing_before_it",
    "choice": "test_subgraphs.py::test_two_may_be_picked",
    "timm": "test_libraries.py::test_a_timm_network_is_what_timm_makes",
    "torchvision": "test_libraries.py::test_torchvision_networks_and_their_inner_values",
    "feature": "test_libraries.py::test_timm_features_are_taken_by_level",
    "fuse": "test_hrnet.py::test_fuse_is_the_sum_written_by_hand",
    "upsample_concat": "test_hrnet.py::test_upsample_concat",
    "forget_gate": "test_hcgnet.py::test_the_ops_are_these_layers",
    "update_gate": "test_hcgnet.py::test_the_ops_are_these_layers",
    "meta_conv": "test_meta_convolution.py::test_norm_and_activation_follow_as_in_conv",
    "blur": "test_blur.py::test_the_op_is_the_gaussian",
    "squeeze_excite": "test_attention.py::test_squeeze_excite_is_timms",
    "eca": "test_attention.py::test_eca_is_timms",
    "cbam": "test_attention.py::test_cbam_is_timms",
    "spatial_gate": "test_attention.py::test_spatial_gate_is_the_second_half_of_cbam",
    "attention_gate": "test_attention.py::test_attention_gate_is_the_equation",
    "attention": "test_tokens.py::test_attention_is_timms",
    "patch_embed": "test_tokens.py::test_patch_embed_is_timms_and_tells_tokens_row_by_row",
    "class_token": "test_tokens.py::test_class_token_and_positions",
    "positions": "test_tokens.py::test_class_token_and_positions",
}


@pytest.mark.parametrize("name", CASES)
def test_numbers_and_gradients(name: str) -> None:
    options, sources, reference = CASES[name]
    torch.manual_seed(0)
    net = network(**{"op": name, "sources": sources, **options})  # type: ignore[arg-type]
    for parameter in net.parameters():  # away from the ones and zeros of a fresh norm
        nn.init.normal_(parameter)
    x = torch.randn(5, *SHAPE)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.manual_seed(1)
    y = net(ours)["y"]
    torch.manual_seed(1)
    expected = reference(net)(theirs)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-6)
    weights = torch.randn_like(expected)
    (y * weights).sum().backward()
    (expected * weights).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)


def test_conv_in_eval_uses_running_statistics() -> None:
    net = network("conv", channels=6)
    x = torch.randn(16, *SHAPE)
    layers = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
    layers.load_state_dict({k.replace("x.conv", "0").replace("x.norm", "1"): v for k, v in net.state_dict().items()})
    for _ in range(3):
        torch.testing.assert_close(net(x)["y"], layers(x), rtol=0, atol=0)
    net.eval(), layers.eval()
    torch.testing.assert_close(net(x)["y"], layers(x), rtol=0, atol=0)


def test_what_is_learned_after_detach_teaches_nothing_before_it() -> None:
    conv = {"id": "c", "op": "conv", "channels": 6, "from": ["input"]}
    nodes = [conv, {"id": "x", "op": "detach", "from": ["c"]}, {"id": "p", "op": "conv", "channels": 2, "from": ["x"]}]
    net = build(
        from_canonical({"format": 1, "nodes": nodes, "outputs": [["c", "c"], ["x", "x"], ["p", "p"]]}), SHAPE, 10
    )
    found = net(torch.randn(5, *SHAPE))
    assert torch.equal(found["x"], found["c"])
    assert not found["x"].requires_grad
    found["p"].square().sum().backward()
    learns = {name for name, parameter in net.named_parameters() if parameter.grad is not None}
    assert learns == {name for name, _ in net.named_parameters() if name.startswith("p.")}


def test_dropout_follows_train_and_eval() -> None:
    net = network("dropout", p=0.5)
    x = torch.ones(1000, *SHAPE)
    assert 0.49 < (net(x)["y"] == 0).float().mean() < 0.51
    assert torch.equal(net.eval()(x)["y"], x)


@pytest.mark.parametrize(
    ("options", "has_bias"),
    [({}, False), ({"bias": True}, True), ({"norm": "none"}, True), ({"norm": "none", "bias": False}, False)],
)
def test_bias_defaults_to_off_before_a_norm(options: dict[str, object], has_bias: bool) -> None:
    assert ("x.conv.bias" in network("conv", channels=6, **options).state_dict()) == has_bias  # type: ignore[arg-type]


def test_convolutions_start_with_he() -> None:
    torch.manual_seed(0)
    net = network("conv", channels=512, shape=(64, 8, 8), norm="none")
    weight = net.get_parameter("x.conv.weight")
    assert weight.mean().abs() < 1e-3
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.01)
    assert net.get_parameter("x.conv.bias").count_nonzero() == 0


@pytest.mark.parametrize("op", ["global_max_pool", "cbam"])
def test_the_largest_values_pass_gradients_on_where_bfloat16_is_compiled(op: str) -> None:
    """torch.amax looks for the places of its values in values that the compiled code rounds otherwise: 0 / 0."""
    conv = {"id": "c", "op": "conv", "channels": 8, "activation": "gelu", "from": ["input"]}
    nodes = [conv, {"id": "x", "op": op, "from": ["c"]}]
    torch.manual_seed(0)
    net = build(from_canonical({"format": 1, "nodes": nodes, "outputs": [["y", "x"]]}), (3, 8, 8), 10)
    torch.compiler.reset()
    with torch.autocast("cpu", torch.bfloat16):
        y = torch.compile(net)(torch.randn(16, 3, 8, 8))["y"]
    y.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("extreme", [largest, smallest])
def test_places_of_equal_values_share_the_gradient(extreme: Callable[..., Tensor]) -> None:
    """In bfloat16 many places are equal that were not before they were rounded: the first alone would be a worse guess."""
    maps = torch.zeros(1, 1, 2, 2, requires_grad=True)
    extreme(maps, (2, 3)).backward(torch.tensor([[8.0]]))
    assert maps.grad is not None
    assert maps.grad.tolist() == [[[[2, 2], [2, 2]]]]
