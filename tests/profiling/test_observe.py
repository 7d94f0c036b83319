"""Parameters, MACs and bytes of each node against figures written out by hand."""

import math
from pathlib import Path

import pytest
import torch
import toys
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from deepcv.nn import spec
from deepcv.profiling.memory import LiveBytes, training_bytes, weight_bytes
from deepcv.profiling.observe import NodeProfile, macs_of, observe


class Chain(nn.Module):
    """A convolution, a residual link, a mean, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.same = nn.Conv2d(8, 8, 1, bias=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        x = x + self.same(x)
        return self.head(x.mean((2, 3)))


def by_name(module: nn.Module, *shapes: tuple[int, ...]) -> dict[str, NodeProfile]:
    return {node.name: node for node in observe(fx.symbolic_trace(module), *shapes)}


def test_figures_of_a_small_network() -> None:
    nodes = by_name(Chain(), (3, 10, 12))
    places = 10 * 12
    macs = {"conv": 3 * 8 * 9 * places, "same": 8 * 8 * places, "head": 8 * 5}
    assert {name: node.macs for name, node in nodes.items() if node.macs} == macs
    parameters = {"conv": 3 * 8 * 9 + 8, "same": 64, "head": 8 * 5 + 5}
    assert {name: node.parameters for name, node in nodes.items() if node.parameters} == parameters
    image, maps = 4 * 3 * places, 4 * 8 * places
    # Bytes alive while each node runs: the caller keeps the image; a value goes after its last use.
    assert {name: node.live_bytes for name, node in nodes.items()} == {
        "x": image,
        "conv": image + maps,
        "relu": image + 2 * maps,
        "same": image + 2 * maps,  # conv's values are gone
        "add": image + 3 * maps,
        "mean": image + maps + 4 * 8,
        "head": image + 4 * 8 + 4 * 5,
    }
    assert nodes["mean"].shape == (8,)
    assert nodes["add"].made_bytes == maps


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=4), (8, 9, 9), 16 * 2 * 9 * 25),
        (nn.Conv2d(8, 8, 5, padding=4, dilation=2, groups=8), (8, 9, 9), 8 * 25 * 81),
        (nn.ConvTranspose2d(8, 4, 2, stride=2), (8, 5, 5), 8 * 4 * 4 * 25),
        (nn.Linear(7, 3), (11, 7), 11 * 7 * 3),
        (nn.BatchNorm2d(8), (8, 9, 9), 0),
        (nn.GELU(), (8, 9, 9), 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_macs_of_a_layer(layer: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    assert sum(node.macs for node in observe(fx.symbolic_trace(nn.Sequential(layer)), shape)) == macs


@pytest.mark.parametrize("training", [True, False])
def test_attention_is_counted_whole_and_the_mode_is_kept(training: bool) -> None:
    tokens, width = 10, 16
    layer = nn.TransformerEncoderLayer(width, 4, dim_feedforward=32, batch_first=True).train(training)
    network = fx.symbolic_trace(nn.Sequential(layer))
    _, node = observe(network, (tokens, width))
    projections = 4 * width * width + 2 * width * 32
    assert node.macs == tokens * projections + 2 * tokens * tokens * width
    assert layer.training is training
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_leaf_that_nobody_knows_is_seen_inside() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            wide = torch.cat([x] * 10, 1)  # is gone when it returns
            return torch.einsum("nchw,ndhw->ncd", wide, x).relu_()

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
            return isinstance(m, Odd) or super().is_leaf_module(m, qualified_name)

    root = nn.Sequential(Odd())
    (_, node) = observe(fx.GraphModule(root, Tracer().trace(root)), (3, 4, 4))
    assert node.macs == 30 * 3 * 16
    assert node.made_bytes == 4 * 30 * 3
    assert node.live_bytes >= 4 * (3 * 16 + 30 * 16 + 30 * 3)


def test_a_module_used_twice_has_its_parameters_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.scale = nn.Parameter(torch.ones(3, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x)) * self.scale

    nodes = by_name(Twice(), (3, 8, 8))
    assert [(nodes[n].parameters, nodes[n].macs) for n in ("conv", "conv_1", "mul")] == [(84, 5184), (0, 5184), (3, 0)]


def test_a_checkpointed_part_has_its_parameters(tmp_path: Path) -> None:
    (tmp_path / "net.yaml").write_text("""\
nodes:
  - {id: one, op: conv, channels: 4, checkpoint: true}
  - {id: two, share: one}
outputs: {logits: two}
""")
    network = spec.build(spec.load(tmp_path / "net.yaml", {}), (4, 8, 8), 10)
    nodes = observe(network)
    assert sum(node.parameters for node in nodes) == sum(p.numel() for p in network.parameters()) == 4 * 4 * 9 + 8
    assert {node.shares for node in nodes if node.id == "two"} >= {"one"}


def test_a_choice_inside_an_idle_candidate_is_idle(tmp_path: Path) -> None:
    (tmp_path / "net.yaml").write_text("""\
templates:
  inner: {nodes: [{id: pick, choice: {small: {op: conv, channels: 4, kernel: 1}, wide: {op: conv, channels: 4}}}]}
nodes:
  - {id: mix, choice: {skip: {op: identity}, deep: {template: inner}}}
outputs: {logits: mix}
""")
    network = spec.build(spec.load(tmp_path / "net.yaml", {}), (4, 8, 8), 10, search="sampled")
    nodes = observe(network)
    assert {node.id for node in nodes if not node.is_idle} == {"input", "mix.skip", "mix"}
    assert macs_of(nodes) == 0
    assert sum(node.macs for node in nodes) == 64 * 4 * 4 * (1 + 9)
    assert sum(node.parameters for node in nodes) == sum(p.numel() for p in network.parameters())
    names = {node.id: node.name for node in nodes}
    (mix,) = (node for node in nodes if node.id == "mix")
    assert mix.inputs == (names["mix.skip"], names["mix.deep.pick"])


def test_views_and_operations_in_place_make_nothing() -> None:
    nodes = by_name(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 2)), (3, 4, 4))
    assert {name: node.made_bytes for name, node in nodes.items()} == {
        "input_1": 0, "_0": 4 * 64, "_1": 0, "_2": 0, "_3": 8,
    }  # fmt: skip
    assert max(node.live_bytes for node in nodes.values()) == 4 * (48 + 64 + 2)


@pytest.mark.parametrize("file", ["digits", "small", "medium"])
def test_shipped_networks_add_up(file: str) -> None:
    network = spec.build(spec.load(toys.REPOSITORY / "networks" / f"{file}.yaml", {}), (3, 32, 32), 10)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    nodes = observe(network)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(1, 3, 32, 32))
    assert sum(node.macs for node in nodes) == counter.get_total_flops() / 2
    assert sum(node.parameters for node in nodes) == sum(p.numel() for p in network.parameters())
    graph = {node.name: node for node in network.graph.nodes}
    assert all(
        node.shape == graph[node.name].meta["shape"] and node.id == graph[node.name].meta["id"] for node in nodes
    )
    training_bytes(network, [(3, 32, 32)])
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("file", ["digits", "small", "medium"])
def test_the_peak_is_that_of_the_network_itself(file: str) -> None:
    """The code that fx makes drops values as the interpreter does; and so does a count of last uses in the graph."""
    network = spec.build(spec.load(toys.REPOSITORY / "networks" / f"{file}.yaml", {}), (3, 32, 32), 10).eval()
    image = torch.zeros(1, 3, 32, 32)
    with torch.no_grad(), LiveBytes(network) as live:
        live.add(image)
        network(image)
    nodes = observe(network)
    assert live.peak == max(node.live_bytes for node in nodes)
    sizes = {node.name: 4 * math.prod(node.shape or ()) for node in nodes}
    last_use = {source: place for place, node in enumerate(nodes) for source in node.inputs}
    for place, node in enumerate(nodes):
        alive = {
            one.name for one in nodes[: place + 1] if one.kind == "input" or last_use.get(one.name, place) >= place
        }
        # Pools make the places of the maxima too, 8 bytes each, and drop them.
        extra = 2 * sizes[node.name] if node.kind == "max_pool2d" else 0
        assert node.live_bytes == sum(sizes[name] for name in alive) + extra, node.name


def test_an_input_of_unknown_shape() -> None:
    with pytest.raises(ValueError, match=r"give it, e\.g\. observe\(network, \(3, 224, 224\)\)"):
        observe(fx.symbolic_trace(Chain()))


def test_bytes_of_training_by_hand() -> None:
    places = 10 * 12
    saved = (
        3 * places  # the image, for conv's weights
        + 8 * places  # what relu gives; the 1×1 convolution takes the same
        + 8  # the means, for the head's weights
    )
    assert training_bytes(fx.symbolic_trace(Chain()), [(3, 10, 12)]) == 4 * saved
    norm = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.BatchNorm2d(4))
    assert training_bytes(norm, [(1, 1, 1)]) == 4 * (1 + 4)  # two statistics a channel are saved once per batch


def test_a_checkpoint_keeps_its_input_alone() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(5)))
            self.head = nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(checkpoint(self.layers, x, use_reentrant=False))

    network = Checkpointed()
    assert training_bytes(network, [(8,)]) == 4 * (8 + 8)  # x, and what the head takes
    assert training_bytes(nn.Sequential(network.layers, network.head), [(8,)]) == 4 * (8 + 5 * 8)


def test_bytes_of_weights() -> None:
    tied = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4))
    tied[1].weight = tied[0].weight
    assert weight_bytes(tied) == 4 * 16 + 4 * 4 * 4 + 8  # norm: two parameters, two statistics, a count of 64 bits
