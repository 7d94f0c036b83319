"""HCGNet: its gates and its module in numbers, and the zoo's files."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import deepcv.nn
from deepcv.nn.classifier import build_network
from deepcv.nn.layers.gates import ForgetGate, UpdateGate
from deepcv.nn.spec import SpecError, build, from_canonical, load

ZOO = Path(deepcv.nn.__file__).parent / "zoo"
State = dict[str, Tensor]


def context(x: Tensor, state: State, name: str) -> Tensor:
    """Global context by sums over positions: softmax of one score per position, then linear, layer norm, ReLU."""
    scores = (x * state[f"{name}.attend.weight"]).sum(1, keepdim=True) + state[f"{name}.attend.bias"]
    weights = scores.exp() / scores.exp().sum((2, 3), keepdim=True)
    pooled = (weights * x).sum((2, 3))
    hidden = pooled @ state[f"{name}.squeeze.weight"].T + state[f"{name}.squeeze.bias"]
    centred = hidden - hidden.mean(1, keepdim=True)
    normed = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    return (normed * state[f"{name}.norm.weight"] + state[f"{name}.norm.bias"]).clamp(min=0)


def forget(x: Tensor, state: State, name: str) -> Tensor:
    scores = context(x, state, f"{name}.context") @ state[f"{name}.share.weight"].T + state[f"{name}.share.bias"]
    return x / (1 + (-scores).exp())[:, :, None, None]


def update(branches: list[Tensor], state: State, name: str) -> Tensor:
    hidden = context(torch.stack(branches).sum(0), state, f"{name}.context")
    scores = hidden @ state[f"{name}.select.weight"].T + state[f"{name}.select.bias"]
    powers = [score.exp() for score in scores.chunk(len(branches), 1)]
    return sum((power / sum(powers))[:, :, None, None] * x for power, x in zip(powers, branches, strict=True))  # type: ignore[return-value]


def normal(net: nn.Module) -> State:
    """Weights away from the ones and zeros of a fresh norm."""
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)
    return net.state_dict(keep_vars=True)


def check(y: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-6)
    weights = torch.randn_like(y)
    ours = torch.autograd.grad((y * weights).sum(), inputs)
    theirs = torch.autograd.grad((expected * weights).sum(), inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_forget_gate() -> None:
    torch.manual_seed(0)
    gate = ForgetGate(6, 3)
    state = {f"g.{key}": value for key, value in normal(gate).items()}
    x = torch.randn(4, 6, 5, 7, requires_grad=True)
    check(gate(x), forget(x, state, "g"), [x, *gate.parameters()])


@pytest.mark.parametrize("branches", [2, 3])
def test_update_gate(branches: int) -> None:
    torch.manual_seed(0)
    gate = UpdateGate(6, branches, 3)
    state = {f"g.{key}": value for key, value in normal(gate).items()}
    xs = [torch.randn(4, 6, 5, 7, requires_grad=True) for _ in range(branches)]
    check(gate(*xs), update(xs, state, "g"), [*xs, *gate.parameters()])


def test_shares_add_up_to_one() -> None:
    x = torch.randn(2, 6, 5, 7)
    torch.testing.assert_close(UpdateGate(6, 3, 2)(x, x, x), x)


def test_the_ops_are_these_layers() -> None:
    nodes = [
        {"id": "keep", "op": "forget_gate", "from": ["input"], "reduction": 3},
        {"id": "mix", "op": "update_gate", "from": ["input", "keep"]},
    ]
    spec = {"format": 1, "nodes": nodes, "outputs": [["kept", "keep"], ["y", "mix"]]}
    net = build(from_canonical(spec), (6, 5, 7), 10)
    state, x = normal(net), torch.randn(4, 6, 5, 7)
    kept = forget(x, state, "keep")
    torch.testing.assert_close(net(x)["kept"], kept, rtol=0, atol=1e-6)
    torch.testing.assert_close(net(x)["y"], update([x, kept], state, "mix"), rtol=0, atol=1e-6)
    assert state["keep.context.squeeze.weight"].shape == (2, 6)
    assert state["mix.context.squeeze.weight"].shape == (3, 6)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([{"id": "y", "op": "forget_gate", "reduction": 4}], r"forget_gate reduction: 4 leaves nothing of .*'input'"),
        ([{"id": "flat", "op": "flatten"}, {"id": "y", "op": "forget_gate"}], "forget_gate needs feature maps"),
        (
            [{"id": "halved", "op": "max_pool"}, {"id": "y", "op": "update_gate", "from": ["input", "halved"]}],
            r"update_gate needs equal shapes, got 'input' \(3, 8, 8\) and 'halved' \(3, 4, 4\)",
        ),
    ],
)
def test_gates_that_do_not_fit(nodes: list[dict[str, object]], message: str) -> None:
    for before, node in zip(["input", *(node["id"] for node in nodes)], nodes, strict=False):
        node.setdefault("from", [before])
    spec = {"format": 1, "nodes": nodes, "outputs": [["y", "y"]]}
    with pytest.raises(SpecError, match=f"node 'y': {message}"):
        build(from_canonical(spec), (3, 8, 8), 10)


@pytest.mark.parametrize(("name", "parameters"), [("a1", 1_075_008), ("a2", 3_160_684), ("a3", 11_598_264)])
def test_number_of_parameters(name: str, parameters: int) -> None:
    net = build_network(load(ZOO / f"hcgnet-{name}.yaml"), (3, 32, 32), 10)
    assert sum(p.numel() for p in net.parameters()) == parameters


TINY = {"growth1": 4, "growth2": 4, "growth3": 8, "depth": 2}


def test_a1_is_the_network_written_by_hand() -> None:
    """Every node of the file by plain torch calls on the same weights, with few narrow modules."""
    torch.manual_seed(0)
    net = build(load(ZOO / "hcgnet-a1.yaml", TINY), (3, 16, 16), 10)
    s = net.state_dict()

    def norm(x: Tensor, name: str) -> Tensor:
        return F.relu(F.batch_norm(x, None, None, s[f"{name}.weight"], s[f"{name}.bias"], True))

    def conv(x: Tensor, name: str, stride: int = 1, dilation: int = 1) -> Tensor:
        weight = s[f"{name}.conv.weight"]
        padding = dilation * (weight.shape[2] // 2)
        groups = x.shape[1] // weight.shape[1]
        return norm(F.conv2d(x, weight, None, stride, padding, dilation, groups), f"{name}.norm")

    def mix(x: Tensor, name: str, stride: int) -> Tensor:
        kernels = [conv(x, f"{name}.kernel3", stride), conv(x, f"{name}.kernel5", stride, 2)]
        return update(kernels, s, f"{name}.update")

    def block(x: Tensor, name: str) -> Tensor:
        for number in range(2):
            smg = f"{name}.{number}.smg"
            kept = conv(conv(norm(x, f"{smg}.norm"), f"{smg}.squeeze1"), f"{smg}.squeeze2")
            x = torch.cat([x, mix(kept, smg, 1) + forget(kept, s, f"{smg}.forget")], 1)
        return x

    def down(x: Tensor, name: str) -> Tensor:
        return F.conv2d(mix(conv(norm(x, f"{name}.norm"), f"{name}.squeeze"), name, 2), s[f"{name}.excite.conv.weight"])

    x = torch.randn(4, 3, 16, 16)
    y = block(F.conv2d(x, s["stem.conv.weight"], padding=1), "block1")
    y = block(down(block(down(y, "down1"), "block2"), "down2"), "block3")
    expected = F.linear(norm(y, "norm").mean((2, 3)), s["head.weight"], s["head.bias"])
    torch.testing.assert_close(net(x)["logits"], expected, rtol=0, atol=1e-4)


def test_export_with_any_height_and_width() -> None:
    torch.manual_seed(0)
    net = build(load(ZOO / "hcgnet-a1.yaml", TINY), (3, 32, 32), 10).eval()
    sizes = {axis: torch.export.Dim(axis, min=low) for axis, low in (("n", 1), ("height", 16), ("width", 16))}
    dynamic = {0: sizes["n"], 2: sizes["height"], 3: sizes["width"]}
    exported = torch.export.export(net, (torch.randn(2, 3, 32, 32),), dynamic_shapes=(dynamic,)).module()
    for shape in ((2, 3, 32, 32), (1, 3, 47, 29)):
        x = torch.randn(shape)
        torch.testing.assert_close(exported(x)["logits"], net(x)["logits"], rtol=0, atol=1e-5)


def test_a1_learns() -> None:
    torch.manual_seed(0)
    net = build(load(ZOO / "hcgnet-a1.yaml", TINY), (3, 16, 16), 10)
    x, y = torch.randn(8, 3, 16, 16), torch.arange(8)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(9):
        loss = F.cross_entropy(net(x)["logits"], y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
