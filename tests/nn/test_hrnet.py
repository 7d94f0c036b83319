"""Streams of several resolutions: the exchange and the four heads, in numbers and in the zoo's files."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import deepcv.nn
from deepcv.nn.classifier import build_network
from deepcv.nn.spec import SpecError, build, from_canonical, load

ZOO = Path(deepcv.nn.__file__).parent / "zoo"

# Three streams of 4, 6 and 5 channels; the odd height and width are where halving and doubling do not cancel.
STREAMS = [
    {"id": "a", "op": "conv", "from": ["input"], "channels": 4},
    {"id": "b", "op": "conv", "from": ["a"], "channels": 6, "stride": 2},
    {"id": "c", "op": "conv", "from": ["b"], "channels": 5, "stride": 2},
]
CHANNELS = (4, 6, 5)
HALVES = ((7, 10), (4, 5), (2, 3))


def network(*nodes: dict[str, object], shape: tuple[int, int, int] = (3, 7, 10), **outputs: str) -> nn.Module:
    outputs = outputs or {"a": "a", "b": "b", "c": "c", "y": "y"}
    spec = {"format": 1, "nodes": [*STREAMS, *nodes], "outputs": [list(pair) for pair in outputs.items()]}
    return build(from_canonical(spec), shape, 10)


def fuse(to: int, sources: tuple[str, ...] = ("a", "b", "c"), **options: object) -> dict[str, object]:
    return {"id": "y", "op": "fuse", "from": list(sources), "to": to, **options}


class Exchange(nn.Module):
    """By hand: what each of the three streams gives to stream `to`."""

    def __init__(self, to: int) -> None:
        super().__init__()
        self.to = to
        self.paths = nn.ModuleList()
        for number, channels in enumerate(CHANNELS):
            layers: list[nn.Module] = []
            if number > to:
                layers = [nn.Conv2d(channels, CHANNELS[to], 1, bias=False), nn.BatchNorm2d(CHANNELS[to])]
                layers += [nn.Upsample(HALVES[to], mode="nearest")]
            for left in reversed(range(to - number)):
                width = channels if left else CHANNELS[to]
                layers += [nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width)]
                layers += [nn.ReLU()] if left else []
            self.paths.append(nn.Sequential(*layers))

    def forward(self, *streams: Tensor) -> Tensor:
        parts = [path(stream) for path, stream in zip(self.paths, streams, strict=True)]
        return F.relu(parts[0] + parts[1] + parts[2])


@pytest.mark.parametrize("to", [0, 1, 2])
def test_fuse_is_the_sum_written_by_hand(to: int) -> None:
    torch.manual_seed(0)
    net, hand = network(fuse(to)), Exchange(to)
    mine = [parameter for key, parameter in net.named_parameters() if key.startswith("y.")]
    theirs = list(hand.parameters())
    assert [p.shape for p in mine] == [p.shape for p in theirs]
    with torch.no_grad():
        for parameter, twin in zip(mine, theirs, strict=True):
            twin.copy_(nn.init.normal_(parameter))
    x = torch.randn(4, 3, 7, 10)
    out = net(x)
    expected = hand(*(out[name] for name in "abc"))
    torch.testing.assert_close(out["y"], expected, rtol=0, atol=1e-6)
    weights = torch.randn_like(expected)
    ours = torch.autograd.grad((out["y"] * weights).sum(), mine, retain_graph=True)
    by_hand = torch.autograd.grad((expected * weights).sum(), theirs)
    torch.testing.assert_close(ours, by_hand, rtol=1e-5, atol=1e-5)


def test_fuse_with_another_norm_and_activation() -> None:
    torch.manual_seed(0)
    net = network(fuse(2, norm="none", activation="silu"))
    x = torch.randn(4, 3, 7, 10)
    out = net(x)

    def halved(x: Tensor, part: str) -> Tensor:
        return F.conv2d(x, net.get_parameter(f"y.{part}.conv.weight"), net.get_parameter(f"y.{part}.conv.bias"), 2, 1)

    total = halved(F.silu(halved(out["a"], "from0.0")), "from0.1") + halved(out["b"], "from1.0") + out["c"]
    torch.testing.assert_close(out["y"], F.silu(total), rtol=0, atol=1e-6)
    named = network(fuse(0, norm="group", activation="prelu")).state_dict()
    assert {"y.from1.conv.weight", "y.from1.norm.weight", "y.activation.weight"} <= set(named)
    assert not {"y.from1.conv.bias", "y.from1.norm.running_mean"} & set(named)


def test_fuse_inherits_norm_and_activation(tmp_path: Path) -> None:
    (tmp_path / "net.yaml").write_text(
        "defaults: {norm: group, activation: silu}\n"
        "nodes:\n"
        "  - {id: fine, op: conv, channels: 4}\n"
        "  - {id: coarse, op: conv, channels: 6, stride: 2}\n"
        "  - {id: inherited, op: fuse, to: 0, from: [fine, coarse]}\n"
        "  - {id: told, op: fuse, to: 0, from: [fine, coarse], norm: batch, activation: relu}\n"
        "outputs: {inherited: inherited, told: told}\n"
    )
    spec = load(tmp_path / "net.yaml")
    activations = {node.id: dict(node.options)["activation"] for node in spec.nodes}
    assert activations == {"fine": "silu", "coarse": "silu", "inherited": "silu", "told": "relu"}
    net = build(spec, (3, 8, 8), 10)
    assert isinstance(net.get_submodule("inherited.from1.norm"), nn.GroupNorm)
    assert isinstance(net.get_submodule("told.from1.norm"), nn.BatchNorm2d)


@pytest.mark.parametrize("to", [0, 1])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_upsample_concat(to: int, mode: str) -> None:
    names = ("a", "b", "c")[to:]
    node = {"id": "y", "op": "upsample_concat", "from": list(names), "mode": mode}
    out = network(node)(torch.randn(2, 3, 7, 10))
    expected = torch.cat([F.interpolate(out[name], HALVES[to], mode=mode) for name in names], 1)
    assert torch.equal(out["y"], expected)
    assert torch.equal(out["y"][:, : CHANNELS[to]], out[names[0]])


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (fuse(3), "to: 3 must be the number of an input, from 0 to 2"),
        (fuse(0, ("b", "a")), r"from the highest resolution to the lowest, but 'a' \(4, 7, 10\) comes after 'b'"),
        (fuse(1, ("a", "c")), r"half the one before: 1 halvings of 'a' \(4, 7, 10\) do not give 'c' \(5, 2, 3\)"),
        ({"id": "y", "op": "upsample_concat", "from": ["a", "b"], "to": 2}, "to: 2 must be the number of an input"),
    ],
)
def test_streams_that_do_not_fit(node: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=f"node 'y': {node['op']} .*{message}"):
        network(node)


def test_fuse_needs_feature_maps() -> None:
    flat = {"id": "flat", "op": "flatten", "from": ["c"]}
    with pytest.raises(SpecError, match="node 'y': fuse needs feature maps"):
        network(flat, fuse(0, ("a", "flat")))


def test_weights_do_not_depend_on_the_size_of_the_images() -> None:
    """On images of one pixel all streams have one resolution, and still the lower ones are projected and halved."""
    small, large = (network(fuse(1), shape=(3, side, side)).state_dict() for side in (1, 32))
    assert {key: value.shape for key, value in small.items()} == {key: value.shape for key, value in large.items()}


# file, input shape, classes, parameters
FILES = [
    ("hrnet-w18", (3, 224, 224), 1000, 21_299_004),
    ("hrnet-small", (3, 32, 32), 10, 730_186),
    ("hrnet-small", (1, 28, 28), 10, 729_610),
    ("hrnet-heads", (3, 32, 32), 10, 744_373),
]


@pytest.mark.parametrize(("name", "shape", "classes", "parameters"), FILES)
def test_number_of_parameters(name: str, shape: tuple[int, int, int], classes: int, parameters: int) -> None:
    net = build_network(load(ZOO / f"{name}.yaml"), shape, classes)
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_hrnet_w18_is_timms() -> None:
    pytest.importorskip("timm")
    pytest.importorskip("torchvision")
    from benchmarks.network_parity import PEERS, compare

    peer = replace(PEERS["hrnet-w18"], side=64)
    parity = compare("hrnet-w18", peer)
    assert parity.parameters == parity.peer_parameters == peer.parameters
    assert parity.difference <= 1e-5
    assert parity.scale > 0.1


@pytest.mark.parametrize("name", ["hrnet-small", "hrnet-heads"])
def test_export_with_any_height_and_width(name: str) -> None:
    torch.manual_seed(0)
    net = build(load(ZOO / f"{name}.yaml", {"width": 8}), (3, 32, 32), 10).eval()
    sizes = {axis: torch.export.Dim(axis, min=low) for axis, low in (("n", 1), ("height", 16), ("width", 16))}
    dynamic = {0: sizes["n"], 2: sizes["height"], 3: sizes["width"]}
    exported = torch.export.export(net, (torch.randn(2, 3, 32, 32),), dynamic_shapes=(dynamic,)).module()
    for shape in ((2, 3, 32, 32), (1, 3, 47, 29)):
        x = torch.randn(shape)
        expected: dict[str, Tensor] = net(x)
        for output, y in exported(x).items():
            torch.testing.assert_close(y, expected[output], rtol=0, atol=1e-5)


def test_every_head_has_its_size_and_learns() -> None:
    torch.manual_seed(0)
    net = build(load(ZOO / "hrnet-heads.yaml", {"width": 8}), (3, 16, 24), 10)
    x, y = torch.randn(8, 3, 16, 24), torch.arange(8)
    mean: Callable[[Tensor], Tensor] = lambda maps: maps.square().mean()  # noqa: E731  a loss that zero maps end
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    losses = []
    for _ in range(9):
        out = net(x)
        loss = F.cross_entropy(out["logits"], y) + F.cross_entropy(out["labels"], y[:, None, None].expand(8, 16, 24))
        loss = loss + mean(out["heatmaps"] - 1) + mean(out["level1"]) + mean(out["level2"])
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert {name: tuple(maps.shape[1:]) for name, maps in out.items()} == {
        "heatmaps": (17, 16, 24),
        "labels": (10, 16, 24),
        "level0": (56, 16, 24),
        "level1": (56, 8, 12),
        "level2": (56, 4, 6),
        "logits": (10,),
    }
