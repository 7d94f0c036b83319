"""A network from YAML against the same network written by hand: forward, training step, dispatch, build.

    python -m benchmarks.network_speed [--quick]

One thread, CPU seconds, pairs of both sides in turn; a control compares the hand-written network with a second copy of itself in the
same run. `dispatch_us` is what a node costs more than by hand, on images so small that little else counts. `same_ops`: both
run the same sequence of aten operations, forward and backward. `graphs`: compiled graphs of the YAML network (one, without break).
`build_ms`: from file to network with weights, per 100 nodes, warm.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.result import emit
from deepcv.nn.spec import build, load

YAML = """\
parameters: {width: 32}
defaults: {bias: false}
templates:
  residual:
    parameters: [channels]
    nodes:
      - {id: first, op: conv, channels: $channels}
      - {id: second, op: conv, channels: $channels, activation: none}
      - {id: link, op: sum, from: [input, second], activation: relu}
nodes:
  - {id: stem, op: conv, channels: $width}
  - {id: one, template: residual, channels: $width, repeat: 3}
  - {id: down1, op: conv, channels: $width*2, stride: 2}
  - {id: two, template: residual, channels: $width*2, repeat: 3}
  - {id: down2, op: conv, channels: $width*4, stride: 2}
  - {id: three, template: residual, channels: $width*4, repeat: 3}
  - {id: pool, op: global_avg_pool}
  - {id: head, op: linear, features: $classes}
outputs: {logits: head}
"""
RATIO, DISPATCH_US, BUILD_MS = 1.02, 2.0, 300.0


class ConvNorm(nn.Module):
    """Convolution and batch norm."""

    def __init__(self, inside: int, outside: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(outside)

    def forward(self, x: Tensor) -> Tensor:
        """Without an activation."""
        result: Tensor = self.norm(self.conv(x))
        return result


class Residual(nn.Module):
    """Two convolutions and a link around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = ConvNorm(channels, channels), ConvNorm(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps of the same shape."""
        return F.relu(x + self.second(F.relu(self.first(x))))


class ByHand(nn.Module):
    """The network of YAML as one would write it."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.stem = ConvNorm(3, width)
        self.one = nn.Sequential(*(Residual(width) for _ in range(3)))
        self.down1 = ConvNorm(width, width * 2, 2)
        self.two = nn.Sequential(*(Residual(width * 2) for _ in range(3)))
        self.down2 = ConvNorm(width * 2, width * 4, 2)
        self.three = nn.Sequential(*(Residual(width * 4) for _ in range(3)))
        self.head = nn.Linear(width * 4, classes)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits (n, classes)."""
        x = self.one(F.relu(self.stem(x)))
        x = self.two(F.relu(self.down1(x)))
        x = self.three(F.relu(self.down2(x)))
        return {"logits": self.head(torch.mean(x, (2, 3)))}


class Operations(TorchDispatchMode):
    """Writes down every aten operation."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # torch's own form
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def forward(network: nn.Module, images: Tensor) -> None:
    """One pass without gradients."""
    with torch.no_grad():
        network(images)


def step(network: nn.Module, images: Tensor) -> None:
    """Forward, backward, and a step of SGD."""
    network.zero_grad(set_to_none=True)
    F.cross_entropy(network(images)["logits"], torch.zeros(len(images), dtype=torch.int64)).backward()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter -= 1e-6 * parameter.grad  # type: ignore[operator]  # it has one


def operations(network: nn.Module, images: Tensor) -> list[str]:
    """The aten operations of a training step's forward and backward."""
    network.zero_grad(set_to_none=True)
    with Operations() as seen:
        network(images)["logits"].sum().backward()
    return seen.names


def compare(
    work: Callable[[nn.Module, Tensor], None], sides: dict[str, nn.Module], images: Tensor, pairs: int, repeat: int
) -> dict[str, list[float]]:
    """CPU seconds of `repeat` runs of each side, `pairs` times, the sides in turn."""
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for network in sides.values():
        work(network, images)
    names = list(sides)
    for pair in range(pairs):
        for name in names[pair % 3 :] + names[: pair % 3]:
            started = time.process_time()
            for _ in range(repeat):
                work(sides[name], images)
            spent[name].append((time.process_time() - started) / repeat)
    return spent


def ratios(spent: dict[str, list[float]], side: str) -> list[float]:
    """Of a side to the hand-written one, pair by pair."""
    return [a / b for a, b in zip(spent[side], spent["hand"], strict=True)]


def build_ms(path: Path, nodes: int) -> float:
    """Milliseconds per 100 nodes from file to network, median of 7, warm."""
    times = []
    for _ in range(8):
        started = time.process_time()
        build(load(path), (3, 32, 32), 10)
        times.append(time.process_time() - started)
    return statistics.median(times[1:]) * 1e3 / nodes * 100


def compiled_graphs(network: nn.Module, images: Tensor) -> int:
    """How many graphs dynamo makes of the network; `fullgraph` raises on a break."""
    graphs = 0

    def count(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., object]:
        nonlocal graphs
        graphs += 1
        return graph.forward

    torch.compile(network, backend=count, fullgraph=True)(images)
    return graphs


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer pairs, within 60 s")
    parser.add_argument("--pairs", type=int, default=60)
    pairs = 12 if (options := parser.parse_args()).quick else options.pairs
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "net.yaml")
        path.write_text(YAML)
        torch.manual_seed(0)
        ours = build(load(path), (3, 32, 32), 10)
        nodes = len(ours.graph.nodes)
        per_100_ms = build_ms(path, len(load(path).nodes))
        tiny = build(load(path, {"width": 1}), (3, 4, 4), 10)
    hand = ByHand(32, 10)
    hand.load_state_dict(dict(zip(hand.state_dict(), ours.state_dict().values(), strict=True)))
    images = torch.randn(16, 3, 32, 32)
    same_ops = operations(ours, images) == operations(hand, images)
    same = torch.equal(ours.eval()(images)["logits"], hand.eval()(images)["logits"])
    for network in (ours, hand):
        network.train()
    sides = {"yaml": ours, "hand": hand, "control": copy.deepcopy(hand)}
    figures = {}
    holds = same_ops and same
    for name, work in (("forward", forward), ("step", step)):
        spent = compare(work, sides, images, pairs, 1)
        median, control = statistics.median(ratios(spent, "yaml")), ratios(spent, "control")
        p90 = statistics.quantiles(control, n=10)[-1]
        figures[name] = {
            "ratio": round(median, 4), "control": round(statistics.median(control), 4), "control_p90": round(p90, 4),
            "ms": round(statistics.median(spent["hand"]) * 1e3, 2),
        }  # fmt: skip
        holds = holds and median <= RATIO and median <= p90
    small = {"yaml": tiny.eval(), "hand": ByHand(1, 10).eval(), "control": ByHand(1, 10).eval()}
    spent = compare(forward, small, torch.randn(1, 3, 4, 4), pairs, 20)
    dispatch_us = statistics.median(a - b for a, b in zip(spent["yaml"], spent["hand"], strict=True)) * 1e6 / nodes
    graphs = compiled_graphs(ours.eval(), images)
    emit(
        "network_speed", value=figures["step"]["ratio"], baseline=1.0, n=pairs,
        target=f"same aten operations; median ratio <= {RATIO} and <= the control's 90th percentile; "
        f"<= {DISPATCH_US} us a node; one graph; <= {BUILD_MS:g} ms per 100 nodes",
        holds=holds and dispatch_us <= DISPATCH_US and graphs == 1 and per_100_ms <= BUILD_MS,
        forward=figures["forward"], step=figures["step"], same_ops=same_ops, same_outputs=same, nodes=nodes,
        dispatch_us=round(dispatch_us, 3), graphs=graphs, build_ms_per_100_nodes=round(per_100_ms, 1),
    )  # fmt: skip


if __name__ == "__main__":
    main()
