"""How weights start, and spectral norm while they learn."""

import math
import pickle
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn.utils import parametrizations

from deepcv.nn.spec import SpecError, build, from_canonical


def network(shape: tuple[int, int, int], *nodes: dict[str, Any]) -> fx.GraphModule:
    chain = [{"from": [nodes[i - 1]["id"] if i else "input"], **node} for i, node in enumerate(nodes)]
    return build(from_canonical({"format": 1, "nodes": chain, "outputs": [["y", nodes[-1]["id"]]]}), shape, 10)


FLAT = {"id": "flat", "op": "flatten"}
# Fans of a weight (out, in): in * k², out * k²; torch's count of a transposed convolution's fans is the other way round.
LAYERS: dict[str, tuple[dict[str, Any], str, int, int]] = {
    "conv": ({"op": "conv", "channels": 96}, "x.conv", 64 * 9, 96 * 9),
    "transposed_conv": ({"op": "transposed_conv", "channels": 96, "kernel": 3}, "x.conv", 96 * 9, 64 * 9),
    "linear": ({"op": "linear", "features": 300}, "x", 576, 300),
}


def weight_of(layer: str, **options: Any) -> torch.Tensor:
    torch.manual_seed(0)
    node, path, _, _ = LAYERS[layer]
    before = [FLAT] if layer == "linear" else []
    net = network((64, 3, 3), *before, {"id": "x", **node, **options, "bias": True})
    assert (net.get_parameter(f"{path}.bias").count_nonzero() == 0) == (options["init"] != "torch")
    return net.get_parameter(f"{path}.weight").detach()


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("init", "variance"),
    [
        ("he", lambda fan_in, _: 2 / fan_in),
        ("he_fan_out", lambda _, fan_out: 2 / fan_out),
        ("xavier", lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
        ("xavier_normal", lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
        ("torch", lambda fan_in, _: 1 / (3 * fan_in)),
    ],
)
def test_the_variance_of_an_init(layer: str, init: str, variance: Any) -> None:
    weight = weight_of(layer, init=init)
    assert weight.std().item() == pytest.approx(math.sqrt(variance(*LAYERS[layer][2:])), rel=0.02)
    assert abs(weight.mean()) < 0.01 * weight.std() + 1e-3


TOKENS = {"id": "tokens", "op": "to_tokens"}
SEVERAL: list[tuple[list[dict[str, Any]], list[str]]] = [  # nodes, the layers of the last one that start so
    ([{"op": "meta_conv", "channels": 6}], ["conv.static"]),
    ([{"op": "patch_embed", "features": 12, "patch": 2}], ["proj"]),
    ([TOKENS, {"op": "attention", "heads": 4}], ["qkv", "proj"]),
    ([TOKENS, {"op": "attention", "heads": 4, "from": ["tokens", "tokens"]}], ["q", "kv", "proj"]),
    ([{"op": "squeeze_excite"}], ["fc1", "fc2"]),
    ([{"op": "cbam", "reduction": 4}], ["channel.fc1", "channel.fc2", "spatial.conv"]),
    ([{"op": "attention_gate", "from": ["input", "input"]}], ["skip", "gate", "psi"]),
    ([{"op": "fuse", "from": ["input", "input"], "to": 0}], ["from1.conv"]),
    ([{"id": "half", "op": "max_pool"}, {"op": "fuse", "from": ["input", "half"], "to": 1}], ["from0.0.conv"]),
]


@pytest.mark.parametrize(("nodes", "parts"), SEVERAL, ids=[nodes[-1]["op"] for nodes, _ in SEVERAL])
def test_layers_of_several_parts_start_as_told_and_the_rest_of_them_as_ever(
    nodes: list[dict[str, Any]], parts: list[str]
) -> None:
    states = []
    for init in ({}, {"init": "constant", "init_value": 0.25}):
        torch.manual_seed(0)
        states.append(network((16, 4, 4), *nodes[:-1], {"id": "x", **nodes[-1], **init}).state_dict())
    before, after = states
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    weights = {f"x.{part}.weight" for part in parts}
    assert weights <= changed <= weights | {f"x.{part}.bias" for part in parts}
    assert all((after[key] == (0.25 if key in weights else 0)).all() for key in changed)
    with pytest.raises(SpecError, match="dirac"):
        network((16, 4, 4), *nodes[:-1], {"id": "x", **nodes[-1], "init": "dirac"})


@pytest.mark.parametrize("op", ["depthwise_conv", "separable_conv", "transposed_conv", "pyramid_conv"])
def test_every_convolution_starts_at_its_init_value(op: str) -> None:
    channels = {} if op == "depthwise_conv" else {"channels": 8}
    net = network((4, 6, 6), {"id": "x", "op": op, **channels, "init": "constant", "init_value": 0.25, "norm": "none"})
    values = {name.rpartition(".")[2]: set(p.flatten().tolist()) for name, p in net.named_parameters()}
    assert values == {"weight": {0.25}, "bias": {0.0}}


@pytest.mark.parametrize("layer", LAYERS)
def test_inits_with_fixed_numbers(layer: str) -> None:
    assert weight_of(layer, init="zeros").count_nonzero() == 0
    assert (weight_of(layer, init="constant", init_value=0.25) == 0.25).all()
    truncated = weight_of(layer, init="truncated_normal")
    assert truncated.abs().max() <= 0.04
    assert truncated.std().item() == pytest.approx(0.0176, rel=0.02)  # 0.02 cut at two standard deviations
    wider = weight_of(layer, init="truncated_normal", init_value=0.1)
    torch.testing.assert_close(wider, truncated * 5)
    rows = weight_of(layer, init="orthogonal").flatten(1)
    product = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    torch.testing.assert_close(product, torch.eye(len(product)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "node",
    [
        {"op": "conv", "channels": 8, "norm": norm, "activation": "none", "zero_init": True}
        for norm in ("batch", "layer", "instance", "group", "rms", "layer_mean_batch")
    ]
    + [{"op": op, "channels": 8, "activation": "none", "zero_init": True} for op in ("transposed_conv", "pyramid_conv")]
    + [
        {"op": op, "zero_init": True}
        for op in ("batch_norm", "layer_norm", "rms_norm", "instance_norm", "group_norm", "layer_mean_batch_norm")
    ],
)
def test_zero_init_silences_a_branch_until_it_learns(node: dict[str, Any]) -> None:
    net = network((8, 6, 6), {"id": "x", **node})
    y = net(torch.randn(4, 8, 6, 6))["y"]
    assert y.count_nonzero() == 0
    (y * torch.randn_like(y)).sum().backward()
    scale = next(p for name, p in net.named_parameters() if name in ("x.weight", "x.norm.weight"))
    assert scale.grad is not None
    assert scale.grad.abs().sum() > 0


def spectral_network() -> fx.GraphModule:
    torch.manual_seed(0)
    return network(
        (3, 8, 8),
        {"id": "a", "op": "conv", "channels": 12, "spectral_norm": True, "norm": "none"},
        FLAT,
        {"id": "b", "op": "linear", "features": 5, "spectral_norm": True},
    )


def largest(layer: Any) -> float:
    return float(torch.linalg.svdvals(layer.normalised().detach().flatten(1))[0])


def test_spectral_norm_is_one_at_the_start_and_after_50_steps() -> None:
    net = spectral_network()
    layers = [net.get_submodule("a.conv"), net.get_submodule("b")]
    net.eval()
    assert [largest(layer) for layer in layers] == pytest.approx([1, 1], abs=0.1)  # 15 iterations from a random start
    before = [float(torch.linalg.svdvals(layer.weight.detach().flatten(1))[0]) for layer in layers]  # type: ignore[operator, union-attr]
    optimizer = torch.optim.SGD(net.train().parameters(), lr=0.05, momentum=0.9)
    x, target = torch.randn(32, 3, 8, 8), torch.randint(0, 5, (32,))
    for _ in range(50):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x)["y"] * 10, target).backward()
        optimizer.step()
    net.eval()
    after = [float(torch.linalg.svdvals(layer.weight.detach().flatten(1))[0]) for layer in layers]  # type: ignore[operator, union-attr]
    assert [largest(layer) for layer in layers] == pytest.approx([1, 1], abs=0.02)
    assert all(abs(a - b) > 1e-3 for a, b in zip(before, after, strict=True))  # the weights did move


def test_spectral_norm_has_the_numbers_of_torch() -> None:
    net = spectral_network()
    theirs = parametrizations.spectral_norm(nn.Linear(768, 5))
    ours: Any = net.get_submodule("b")
    norm: Any = theirs.parametrizations.weight[0]
    with torch.no_grad():
        theirs.parametrizations.weight.original.copy_(ours.weight)  # type: ignore[operator, union-attr]
        theirs.bias.copy_(ours.bias)
        norm._u.copy_(ours.left)
        norm._v.copy_(ours.right)
    x = torch.randn(4, 768)
    for training in (True, True, False):
        theirs.train(training), ours.train(training)
        ours.zero_grad(), theirs.zero_grad()
        a, b = ours(x), theirs(x)
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        a.square().sum().backward(), b.square().sum().backward()
        torch.testing.assert_close(ours.weight.grad, theirs.parametrizations.weight.original.grad)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("op", "options", "parts"),
    [
        ("conv", {"channels": 6, "groups": 2}, ["conv"]),
        ("depthwise_conv", {"multiplier": 2}, ["conv"]),
        ("separable_conv", {"channels": 6}, ["depthwise", "conv"]),
        ("transposed_conv", {"channels": 6, "kernel": 3, "groups": 2, "output_padding": 1, "dilation": 2}, ["conv"]),
        ("pyramid_conv", {"channels": 8, "levels": 2}, ["level0", "level1"]),
    ],
)
def test_every_convolution_with_spectral_norm_is_the_plain_one_with_torchs_weight(
    op: str, options: dict[str, Any], parts: list[str]
) -> None:
    torch.manual_seed(0)
    ours = network((4, 6, 7), {"id": "x", "op": op, **options, "spectral_norm": True})
    plain = network((4, 6, 7), {"id": "x", "op": op, **options})
    plain.load_state_dict({key: value for key, value in ours.state_dict().items() if key in plain.state_dict()})
    for part in parts:
        theirs, layer = plain.get_submodule(f"x.{part}"), ours.get_submodule(f"x.{part}")
        norm: Any = parametrizations.spectral_norm(theirs).parametrizations.weight[0]  # type: ignore[union-attr, index]
        norm._u.copy_(layer.left)
        norm._v.copy_(layer.right)
    x = torch.randn(3, 4, 6, 7)
    for training in (True, True, False):  # the first two move the singular vectors
        torch.testing.assert_close(ours.train(training)(x)["y"], plain.train(training)(x)["y"], rtol=1e-5, atol=1e-5)


def test_spectral_norm_keeps_the_plain_keys_and_is_pickled() -> None:
    net = spectral_network()
    assert list(net.state_dict()) == ["a.conv.weight", "a.conv.bias", "a.conv.left", "a.conv.right",
                                      "b.weight", "b.bias", "b.left", "b.right"]  # fmt: skip
    again = pickle.loads(pickle.dumps(net))  # noqa: S301  our own bytes
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(again(x)["y"], net(x)["y"])
    fresh = spectral_network()
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh.eval()(x)["y"], net.eval()(x)["y"])
