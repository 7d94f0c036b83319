"""How weights start, and spectral norm while they learn."""

import math
import pickle
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn.utils import parametrizations, parametrize

from deepcv.nn.layers.spectral import Spectral
from deepcv.nn.ops import OPS
from deepcv.nn.spec import SpecError, build, from_canonical
from deepcv.nn.spec.options import fields


def network(shape: tuple[int, int, int], *nodes: dict[str, Any]) -> fx.GraphModule:
    chain = [{"from": [nodes[i - 1]["id"] if i else "input"], **node} for i, node in enumerate(nodes)]
    return build(from_canonical({"format": 1, "nodes": chain, "outputs": [["y", nodes[-1]["id"]]]}), shape, 10)


FLAT = {"id": "flat", "op": "flatten", "from": ["input"]}
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
SMALL = {"id": "small", "op": "conv", "channels": 5, "stride": 2}
POOL = {"id": "pool", "op": "global_avg_pool", "from": ["input"]}
SEVERAL: list[tuple[list[dict[str, Any]], list[str]]] = [  # nodes, the layers of the last one that start so
    ([{"op": "meta_conv", "channels": 6}], ["conv.static"]),
    ([{"op": "patch_embed", "features": 12, "patch": 2}], ["proj"]),
    ([TOKENS, {"op": "attention", "heads": 4}], ["qkv", "proj"]),
    ([TOKENS, {"op": "attention", "heads": 4, "from": ["tokens", "tokens"]}], ["q", "kv", "proj"]),
    ([{"op": "squeeze_excite"}], ["fc1", "fc2"]),
    ([{"op": "cbam", "reduction": 4}], ["channel.fc1", "channel.fc2", "spatial.conv"]),
    ([{"op": "attention_gate", "from": ["input", "input"]}], ["skip", "gate", "psi"]),
    ([{"op": "fuse", "from": ["input", "input"], "to": 0}], ["from1.conv"]),
    ([{"id": "halved", "op": "max_pool"}, {"op": "fuse", "from": ["input", "halved"], "to": 1}], ["from0.0.conv"]),
    ([{"op": "eca"}], ["conv"]),
    ([{"op": "spatial_gate"}], ["conv"]),
    ([{"op": "forget_gate"}], ["context.attend", "context.squeeze", "share"]),
    ([{"op": "update_gate", "from": ["input", "input"]}], ["context.attend", "context.squeeze", "select"]),
    ([SMALL, {"op": "sum", "from": ["input", "small"], "adapt": "project"}], ["adapt1.project"]),
    ([SMALL, {"op": "mean", "from": ["input", "small"], "adapt": "project"}], ["adapt1.project"]),
    ([POOL, FLAT, {"op": "sum", "from": ["pool", "flat"], "adapt": "project"}], ["adapt1.project"]),
]
IDS = [nodes[-1]["op"] for nodes, _ in SEVERAL]
ONE_KERNEL = {
    "meta_conv",
    "eca",
    "spatial_gate",
    "sum",
    "mean",
}  # of a convolution; a projection of flat features is linear


@pytest.mark.parametrize(("nodes", "parts"), SEVERAL, ids=IDS)
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


@pytest.mark.parametrize("nodes", [nodes for nodes, _ in SEVERAL], ids=IDS)
def test_dirac_is_for_one_kernel(nodes: list[dict[str, Any]]) -> None:
    told = {"id": "x", **nodes[-1], "init": "dirac"}
    if nodes[-1]["op"] in ONE_KERNEL and FLAT not in nodes:
        network((16, 4, 4), *nodes[:-1], told)
    else:
        with pytest.raises(SpecError, match="dirac"):
            network((16, 4, 4), *nodes[:-1], told)


def test_dirac_starts_a_meta_convolution_as_the_identity() -> None:
    plain = {"norm": "none", "activation": "none", "init": "dirac"}
    net = network((4, 6, 6), {"id": "x", "op": "meta_conv", "channels": 8, **plain})
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(net(x)["y"][:, :4], x)


def test_dirac_starts_eca_as_a_gate_by_the_channel_itself() -> None:
    x = torch.randn(2, 16, 6, 6)
    expected = x * x.mean((2, 3), keepdim=True).sigmoid()
    torch.testing.assert_close(network((16, 6, 6), {"id": "x", "op": "eca", "init": "dirac"})(x)["y"], expected)


def projection(kind: str, **options: Any) -> tuple[torch.Tensor, fx.GraphModule]:
    """The weight that brings 64 channels of `maps`, or 576 `flat` features, to 96, and its network; the sum's first input is 0."""
    torch.manual_seed(0)
    zero = {"channels": 96, "init": "zeros", "norm": "none", "activation": "none"}
    nodes: list[dict[str, Any]] = [{"id": "zero", "op": "conv", **zero}]
    if kind == "flat":
        nodes += [POOL | {"from": ["zero"]}, FLAT]
    sources = ["zero", "input"] if kind == "maps" else ["pool", "flat"]
    net = network((64, 3, 3), *nodes, {"id": "x", "op": "sum", "from": sources, "adapt": "project", **options})
    return net.get_parameter("x.adapt1.project.weight").detach().flatten(1), net


@pytest.mark.parametrize(
    ("kind", "init", "variance"),
    [
        ("maps", None, 2 / 64),
        ("maps", "he_fan_out", 2 / 96),
        ("maps", "xavier", 2 / (64 + 96)),
        ("maps", "torch", 1 / (3 * 64)),
        ("flat", None, 1 / (3 * 576)),
        ("flat", "he", 2 / 576),
        ("flat", "xavier_normal", 2 / (576 + 96)),
    ],
)
def test_the_variance_of_a_projection(kind: str, init: str | None, variance: float) -> None:
    weight, _ = projection(kind, init=init)
    assert weight.std().item() == pytest.approx(math.sqrt(variance), rel=0.03)


@pytest.mark.parametrize("kind", ["maps", "flat"])
def test_projections_with_fixed_numbers(kind: str) -> None:
    x = torch.randn(2, 64, 3, 3)
    assert projection(kind, init="zeros")[1](x)["y"].count_nonzero() == 0  # the first input alone
    weight, _ = projection(kind, init="orthogonal")
    product = weight @ weight.T if kind == "flat" else weight.T @ weight
    torch.testing.assert_close(product, torch.eye(len(product)), rtol=0, atol=1e-5)
    assert projection(kind, init="truncated_normal", init_value=0.1)[0].abs().max() <= 0.2


def test_dirac_makes_a_projection_that_keeps_the_first_channels() -> None:
    x = torch.randn(2, 64, 3, 3)
    torch.testing.assert_close(projection("maps", init="dirac")[1](x)["y"][:, :64], x, rtol=0, atol=1e-6)


def test_the_variance_of_the_layers_of_a_gate() -> None:
    torch.manual_seed(0)
    node = {"id": "x", "op": "forget_gate", "reduction": 3}
    for init, variances in (({"init": "xavier"}, (2 / 385, 2 / 512, 2 / 512)), ({}, (2 / 384, 1 / 1152, 1 / 384))):
        net = network((384, 3, 3), node | init)
        for part, variance in zip(("context.attend", "context.squeeze", "share"), variances, strict=True):
            weight = net.get_parameter(f"x.{part}.weight")
            assert weight.std().item() == pytest.approx(
                math.sqrt(variance), rel=0.1 if part == "context.attend" else 0.02
            )


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
    + [
        {"op": op, "channels": 8, "activation": "none", "zero_init": True}
        for op in ("transposed_conv", "pyramid_conv", "separable_conv", "meta_conv")
    ]
    + [{"op": "depthwise_conv", "activation": "none", "zero_init": True}]
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


@pytest.mark.parametrize(
    ("options", "start"), [({}, 0.25), ({"slope": 0.1}, 0.1), ({"slope": 0, "per_channel": True}, 0)]
)
def test_prelu_starts_from_its_slope(options: dict[str, Any], start: float) -> None:
    net = network((8, 6, 6), {"id": "x", "op": "activation", "kind": "prelu", **options})
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(net(x)["y"], torch.where(x > 0, x, start * x))
    assert net.get_parameter("x.weight").numel() == (8 if options.get("per_channel") else 1)


def spectral_network() -> fx.GraphModule:
    torch.manual_seed(0)
    return network(
        (3, 8, 8),
        {"id": "a", "op": "conv", "channels": 12, "spectral_norm": True, "norm": "none"},
        FLAT | {"from": ["a"]},
        {"id": "b", "op": "linear", "features": 5, "spectral_norm": True},
    )


def largest(layer: Any) -> float:
    weight = layer.normalised().detach()
    return float(torch.linalg.svdvals((weight.transpose(0, 1) if layer.transposed else weight).flatten(1))[0])


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


TRANSPOSED = {"kernel": 3, "groups": 2, "output_padding": 1, "dilation": 2}
SPECTRAL: list[tuple[list[dict[str, Any]], list[str]]] = [
    *SEVERAL,
    ([{"op": "conv", "channels": 6, "groups": 2}], ["conv"]),
    ([{"op": "depthwise_conv", "multiplier": 2}], ["conv"]),
    ([{"op": "separable_conv", "channels": 6}], ["depthwise", "conv"]),
    ([{"op": "transposed_conv", "channels": 6, **TRANSPOSED}], ["conv"]),
    ([{"op": "pyramid_conv", "channels": 8, "levels": 2}], ["level0", "level1"]),
    ([POOL, {"op": "linear", "features": 5, "norm": "layer"}], ["linear"]),
    ([POOL, {"op": "bilinear", "features": 5, "from": ["pool", "pool"]}], [""]),
]


def test_every_op_that_takes_init_takes_spectral_norm_and_has_its_numbers_held() -> None:
    for key in ("init", "init_value", "spectral_norm"):
        assert {op for op, kind in OPS.items() if key in fields(kind)} == {nodes[-1]["op"] for nodes, _ in SPECTRAL}


@pytest.mark.parametrize(("nodes", "parts"), SPECTRAL, ids=[nodes[-1]["op"] for nodes, _ in SPECTRAL])
def test_every_op_with_spectral_norm_is_the_plain_one_with_torchs_weight(
    nodes: list[dict[str, Any]], parts: list[str]
) -> None:
    torch.manual_seed(0)
    layers = [f"x.{part}".rstrip(".") for part in parts]
    before, last = nodes[:-1], {"id": "x", **nodes[-1]}
    ours, plain = (network((16, 4, 4), *before, last | {"spectral_norm": wanted}) for wanted in (True, False))
    plain.load_state_dict({key: value for key, value in ours.state_dict().items() if key in plain.state_dict()})
    assert {name for name, module in ours.named_modules() if isinstance(module, Spectral)} == set(layers)
    for path in layers:
        theirs, layer = plain.get_submodule(path), ours.get_submodule(path)
        assert largest(layer) == pytest.approx(1, abs=0.1)
        norm: Any = parametrizations.spectral_norm(theirs).parametrizations.weight[0]  # type: ignore[union-attr, index]
        norm._u.copy_(layer.left)
        norm._v.copy_(layer.right)
    x = torch.randn(3, 16, 4, 4)
    for training in (True, True, False):  # the first two move the singular vectors
        # meta_conv looks at its weight's shape too, which costs torch one iteration more.
        with parametrize.cached() if last["op"] == "meta_conv" else nullcontext():
            expected = plain.train(training)(x)["y"]
        torch.testing.assert_close(ours.train(training)(x)["y"], expected, rtol=1e-5, atol=1e-5)


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


def test_plain_weights_get_the_singular_vectors_of_their_own() -> None:
    plain = {
        name: 3 * value
        for name, value in spectral_network().state_dict().items()
        if name.split(".")[-1] not in ("left", "right")
    }
    net = spectral_network()
    torch.manual_seed(5)
    plain["b.weight"] = torch.randn_like(plain["b.weight"])
    missing = net.load_state_dict(plain, strict=False).missing_keys
    assert missing == ["a.conv.left", "a.conv.right", "b.left", "b.right"]
    layer = net.eval().get_submodule("b")
    assert torch.linalg.matrix_norm(layer.normalised(), 2).item() == pytest.approx(1, abs=0.05)  # 3 and more without


def test_bilinear_layers_compute_under_autocast_on_a_cpu() -> None:
    for spectral_norm in (False, True):
        nodes = [
            {"id": "c", "op": "conv", "channels": 4, "from": ["input"]},
            {"id": "p", "op": "global_avg_pool", "from": ["c"]},
            {"id": "x", "op": "bilinear", "features": 5, "from": ["p", "p"], "spectral_norm": spectral_norm},
        ]
        net = build(from_canonical({"format": 1, "nodes": nodes, "outputs": [["y", "x"]]}), (3, 8, 8), 10).eval()
        x = torch.randn(2, 3, 8, 8)
        expected = net(x)["y"]
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.allclose(net(x)["y"].float(), expected, atol=0.02, rtol=0.05)
