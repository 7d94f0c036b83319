"""A network holds no value longer than its last use: as few as the order of its nodes allows."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.liveness import Storages, peak
from benchmarks.network_speed import YAML, ByHand, operations
from deepcv.nn.spec import build, load

# Of each node the places of its sources among what came before, 0 for the input; one aten operation each.
Graph = list[tuple[int, ...]]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Random networks of sums and of steps."""
    nodes: Graph = []
    for place in range(draw(st.integers(2, 14))):
        several = place > 0 and draw(st.booleans())
        sources = st.integers(0, place)
        nodes.append((draw(sources), draw(sources)) if several else (draw(sources),))
    return nodes


def with_every_end_used(graph: Graph) -> tuple[Graph, list[int]]:
    """The places that no other node takes: the outputs."""
    used = {source for sources in graph for source in sources}
    return graph, [place for place in range(1, len(graph) + 1) if place not in used]


def fewest(graph: Graph, outputs: list[int]) -> list[int]:
    """How many values must be alive right after each node is computed: itself, its sources, all that a later node or an output needs.

    By trying: a value is let go as soon as no way leads from it any more.
    """
    counts = []
    for now in range(1, len(graph) + 1):
        needed = {now, *graph[now - 1]}
        for value in range(1, now + 1):
            later = any(value in graph[other - 1] for other in range(now + 1, len(graph) + 1))
            if later or value in outputs:
                needed.add(value)
        counts.append(len(needed - {0}))
    return counts


def written(graph: Graph, outputs: list[int]) -> str:
    """The graph as a network file."""
    name = ["input", *(f"n{place}" for place in range(1, len(graph) + 1))]
    lines = ["nodes:"]
    for place, sources in enumerate(graph, start=1):
        op = "op: sum" if len(sources) == 2 else "op: scale, by: 0.5"
        lines.append(f"  - {{id: n{place}, {op}, from: [{', '.join(name[source] for source in sources)}]}}")
    return "\n".join([*lines, "outputs: {" + ", ".join(f"o{place}: n{place}" for place in outputs) + "}"])


@settings(max_examples=200, deadline=None)
@given(graphs())
def test_live_values_are_as_few_as_the_order_allows(graph: Graph) -> None:
    graph, outputs = with_every_end_used(graph)
    with TemporaryDirectory() as folder:
        path = Path(folder, "net.yaml")
        path.write_text(written(graph, outputs))
        network = build(load(path), (1, 2, 2), 1)
    images = torch.randn(1, 1, 2, 2)
    storages = Storages()
    storages.follow_not(images)
    with storages, torch.no_grad():
        network(images)
    assert storages.live == fewest(graph, outputs)


def test_the_peak_is_that_of_the_network_written_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "net.yaml"
    path.write_text(YAML)
    ours, hand = build(load(path, {"width": 4}), (3, 16, 16), 10), ByHand(4, 10)
    images = torch.randn(2, 3, 16, 16)
    for training in (False, True):
        assert peak(ours, images, training=training) <= 1.02 * peak(hand, images, training=training)


def test_its_aten_operations_are_those_of_the_network_written_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "net.yaml"
    path.write_text(YAML)
    ours, hand = build(load(path, {"width": 4}), (3, 16, 16), 10), ByHand(4, 10)
    images = torch.randn(2, 3, 16, 16)
    seen = operations(ours, images)
    assert len(seen) > 200  # forward and backward
    assert seen == operations(hand, images)
