"""Attention on feature maps: numbers against timm and against formulas written out, and graphs of any size."""

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from timm.layers import EcaModule, SEModule
from timm.layers.cbam import CbamModule
from torch import Tensor, nn

from deepcv.nn.layers.feature_attention import eca_kernel
from deepcv.nn.spec import SpecError, build, from_canonical

MAPS = ("squeeze_excite", "eca", "cbam", "spatial_gate")


def network(*nodes: dict[str, object], shape: tuple[int, int, int], **outputs: str) -> nn.Module:
    """A network of these nodes, each `from` the input unless it says otherwise."""
    nodes = tuple({"from": ["input"], **node} for node in nodes)
    spec = from_canonical({"format": 1, "nodes": nodes, "outputs": list(outputs.items())})
    return build(spec, shape, 10)


def one(op: str, channels: int, **options: object) -> nn.Module:
    return network({"id": "x", "op": op, **options}, shape=(channels, 6, 8), y="x")


def agree(net: nn.Module, reference: nn.Module, channels: int, names: dict[str, str]) -> None:
    """Outputs and gradients with the reference's weights, in training, then the output in eval."""
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.5)
    state = reference.state_dict()
    net.load_state_dict({f"x.{ours}": state[theirs] for ours, theirs in names.items()})
    ours = torch.randn(3, channels, 6, 8, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    y, expected = net(ours)["y"], reference(theirs)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-6)
    (y**2).sum().backward()
    (expected**2).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(net.eval()(ours)["y"], reference.eval()(ours), rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [16, 64, 72, 200, 512])
def test_squeeze_excite_is_timms(channels: int) -> None:
    names = {key: key for key in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")}
    agree(one("squeeze_excite", channels), SEModule(channels), channels, names)


def test_squeeze_excite_as_in_efficientnet() -> None:
    reference = SEModule(96, rd_channels=4, act_layer=nn.SiLU)
    net = one("squeeze_excite", 96, hidden=4, activation="silu")
    agree(net, reference, 96, {key: key for key in reference.state_dict()})


@pytest.mark.parametrize(
    ("options", "theirs"),
    [({"bias": False}, {"bias": False}), ({"gate": "hardsigmoid"}, {"gate_layer": "hard_sigmoid"})],
)
def test_squeeze_excite_as_in_mobilenet(options: dict[str, object], theirs: dict[str, Any]) -> None:
    reference = SEModule(72, rd_ratio=1 / 4, **theirs)
    agree(
        one("squeeze_excite", 72, reduction=4, **options), reference, 72, {key: key for key in reference.state_dict()}
    )


def test_squeeze_excite_with_another_reduction_and_divisor() -> None:
    reference = SEModule(72, rd_ratio=1 / 5, rd_divisor=3)
    assert reference.fc1.out_channels == 15  # 14.4, to a multiple of 3
    net = one("squeeze_excite", 72, reduction=5, divisor=3)
    agree(net, reference, 72, {key: key for key in reference.state_dict()})


@pytest.mark.parametrize(
    ("options", "reference", "kernel"),
    [
        ({"kernel": 7}, EcaModule(kernel_size=7), 7),
        ({"gamma": 1.0}, EcaModule(64, gamma=1), 7),
        ({"b": 4.0}, EcaModule(64, beta=4), 5),
    ],
)
def test_eca_with_another_kernel(options: dict[str, float], reference: nn.Module, kernel: int) -> None:
    net = one("eca", 64, **options)
    assert net.get_parameter("x.conv.weight").numel() == kernel
    agree(net, reference, 64, {"conv.weight": "conv.weight"})


@pytest.mark.parametrize("channels", [2**power for power in range(4, 12)] + [48, 720])
def test_eca_is_timms(channels: int) -> None:
    agree(one("eca", channels), EcaModule(channels), channels, {"conv.weight": "conv.weight"})


@pytest.mark.parametrize(("channels", "kernel"), [(8, 3), (16, 3), (64, 3), (128, 5), (512, 5), (2048, 7)])
def test_kernel_of_eca(channels: int, kernel: int) -> None:
    assert eca_kernel(channels) == kernel
    assert kernel == 3 or abs(kernel - (math.log2(channels) + 1) / 2) <= 1  # an odd number beside the formula's


CBAM = {
    "channel.fc1.weight": "channel.fc1.weight",
    "channel.fc2.weight": "channel.fc2.weight",
    "spatial.conv.weight": "spatial.conv.conv.weight",
    **{
        f"spatial.norm.{key}": f"spatial.conv.bn.{key}"
        for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    },
}


@pytest.mark.parametrize("channels", [16, 40, 256])
def test_cbam_is_timms(channels: int) -> None:
    agree(one("cbam", channels), CbamModule(channels), channels, CBAM)


def test_cbam_with_another_reduction_and_kernel() -> None:
    reference = CbamModule(40, rd_ratio=1 / 4, spatial_kernel_size=3)
    agree(one("cbam", 40, reduction=4, kernel=3), reference, 40, CBAM)


def test_spatial_gate_is_the_second_half_of_cbam() -> None:
    names = {ours.removeprefix("spatial."): t for ours, t in CBAM.items() if ours.startswith("spatial.")}
    reference = CbamModule(8, spatial_kernel_size=3)
    reference.channel = nn.Identity()
    agree(one("spatial_gate", 8, kernel=3), reference, 8, names)


def gate_by_hand(state: dict[str, Tensor], skip: Tensor, gate: Tensor) -> Tensor:
    """Equation 1 of arXiv 1804.03999 at a resolution of half the skip link's: W_x first, the resizes written out."""
    theta = torch.einsum("oc,nchw->nohw", state["x.skip.weight"][:, :, 0, 0], skip)
    theta = sum((theta[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)), torch.zeros(())) / 4
    phi = torch.einsum("oc,nchw->nohw", state["x.gate.weight"][:, :, 0, 0], gate)
    q = (theta + phi + state["x.gate.bias"].view(-1, 1, 1)).clamp(min=0)
    score = torch.einsum("c,nchw->nhw", state["x.psi.weight"][0, :, 0, 0], q) + state["x.psi.bias"]
    alpha = 1 / (1 + torch.exp(-score))
    for axis in (1, 2):  # between two values, at a quarter and at three quarters of the way; the border repeats
        last = alpha.shape[axis] - 1
        before = torch.cat([alpha.narrow(axis, 0, 1), alpha.narrow(axis, 0, last)], axis)
        after = torch.cat([alpha.narrow(axis, 1, last), alpha.narrow(axis, last, 1)], axis)
        pairs = torch.stack([0.75 * alpha + 0.25 * before, 0.75 * alpha + 0.25 * after], axis + 1)
        alpha = pairs.flatten(axis, axis + 1)
    return skip * alpha.unsqueeze(1)


@pytest.mark.parametrize(("options", "hidden"), [({}, 3), ({"hidden": 5}, 5)])
def test_attention_gate_is_the_equation(options: dict[str, int], hidden: int) -> None:
    torch.manual_seed(0)
    down = {"id": "down", "op": "conv", "channels": 12, "stride": 2}
    gate = {"id": "x", "op": "attention_gate", "from": ["input", "down"], **options}
    net = network(down, gate, shape=(6, 8, 10), y="x", g="down")
    assert net.get_parameter("x.skip.weight").shape == (hidden, 6, 1, 1)
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    skip = torch.randn(4, 6, 8, 10)
    outputs = net(skip)
    by_hand = gate_by_hand(net.state_dict(), skip, outputs["g"])
    torch.testing.assert_close(outputs["y"], by_hand, rtol=0, atol=1e-6)
    assert not torch.allclose(outputs["y"], skip, atol=0.1)


def test_attention_gate_of_equal_sizes_has_no_resize() -> None:
    net = network({"id": "x", "op": "attention_gate", "from": ["input", "input"]}, shape=(4, 5, 7), y="x")
    x = torch.randn(2, 4, 5, 7)
    part = net.get_submodule("x")
    alpha = torch.sigmoid(part.psi(torch.relu(part.skip(x) + part.gate(x))))
    torch.testing.assert_close(net(x)["y"], x * alpha, rtol=0, atol=1e-6)


def all_of_them() -> nn.Module:
    chain: list[dict[str, object]] = [{"id": "stem", "op": "conv", "channels": 16}]
    for op in MAPS:
        chain.append({"id": op, "op": op, "from": [chain[-1]["id"]]})
    chain.append({"id": "down", "op": "conv", "channels": 8, "stride": 2, "from": [chain[-1]["id"]]})
    chain.append({"id": "gate", "op": "attention_gate", "from": ["stem", "down"]})
    return network(*chain, shape=(3, 16, 16), y="gate").eval()


def test_export_with_any_batch_height_and_width() -> None:
    net = all_of_them()
    dynamic = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=8), 3: torch.export.Dim("w", min=8)}
    exported = torch.export.export(net, (torch.randn(2, 3, 16, 20),), dynamic_shapes=(dynamic,)).module()
    for shape in ((1, 3, 16, 16), (3, 3, 9, 22)):
        x = torch.randn(shape)
        torch.testing.assert_close(exported(x)["y"], net(x)["y"], rtol=0, atol=1e-6)


def test_copies_give_the_same() -> None:
    net = all_of_them()
    x = torch.randn(2, 3, 16, 16)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):  # noqa: S301  our own bytes
        assert torch.equal(twin(x)["y"], net(x)["y"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"op": "cbam", "kernel": 4}, "must be odd"),
        ({"op": "eca", "kernel": 2}, "must be odd"),
        ({"op": "squeeze_excite", "from": ["flat"]}, "needs feature maps"),
        ({"op": "spatial_gate", "from": ["flat"]}, "needs feature maps"),
        ({"op": "attention_gate", "from": ["input", "flat"]}, "needs feature maps"),
        ({"op": "attention_gate", "from": ["input", "input", "input"]}, "needs two inputs"),
    ],
)
def test_what_does_not_fit(options: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        network({"id": "flat", "op": "flatten"}, {"id": "x", **options}, shape=(4, 8, 8), y="x")
