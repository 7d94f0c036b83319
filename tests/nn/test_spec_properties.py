"""Laws over random networks: the inferred shape is the shape at run time, and the canonical form loses nothing."""

import json
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcv.nn.spec import SpecError, build, from_canonical, load

CHANNELS = st.sampled_from([2, 4, 8, "$width", "$width*2", "$classes+1"])
OPS = st.one_of(
    st.fixed_dictionaries(
        {"op": st.just("conv"), "channels": CHANNELS},
        optional={
            "kernel": st.integers(1, 5),
            "stride": st.integers(1, 3),
            "dilation": st.integers(1, 2),
            "padding": st.integers(0, 3),
            "groups": st.sampled_from([1, 2]),
            "bias": st.booleans(),
            "norm": st.sampled_from(["batch", "none"]),
            "activation": st.sampled_from(["relu", "gelu", "silu", "none"]),
        },
    ),
    st.fixed_dictionaries(
        {"op": st.sampled_from(["max_pool", "avg_pool"])},
        optional={"kernel": st.integers(1, 3), "stride": st.integers(1, 3), "padding": st.integers(0, 1)},
    ),
    st.fixed_dictionaries({"op": st.just("linear"), "features": CHANNELS}),
    st.fixed_dictionaries({"op": st.just("scale"), "by": st.floats(-2, 2)}),
    st.fixed_dictionaries({"op": st.just("dropout"), "p": st.floats(0, 0.9)}),
    st.fixed_dictionaries({"op": st.just("pixel_unshuffle"), "factor": st.integers(2, 3)}),
    st.sampled_from(["batch_norm", "flatten", "global_avg_pool", "global_max_pool", "identity"]).map(
        lambda op: {"op": op}
    ),
    st.just({"op": "activation", "kind": "silu"}),
    st.just({"template": "twice", "channels": "$width"}),
    st.sampled_from(["sum", "concat"]).map(lambda op: {"op": op, "from": 2}),
)
TEMPLATES = {
    "twice": {
        "parameters": ["channels"],
        "nodes": [
            {"id": "first", "op": "conv", "channels": "$channels"},
            {"id": "second", "op": "conv", "channels": "$channels"},
            {"id": "link", "op": "sum", "from": ["first", "second"]},
        ],
    }
}


@settings(max_examples=120, deadline=None)
@given(
    chain=st.lists(OPS, min_size=1, max_size=6),
    side=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    data=st.data(),
)
def test_inferred_shapes_hold_and_canonical_round_trips(
    chain: list[dict[str, object]], side: tuple[int, int], data: st.DataObject
) -> None:
    nodes: list[dict[str, object]] = []
    for number, op in enumerate(chain):
        before = ["input", *(str(node["id"]) for node in nodes)]
        node = {"id": f"n{number}", **op}
        if node.get("from") == 2:
            node["from"] = [before[-1], data.draw(st.sampled_from(before))]
        nodes.append(node)
    # Every node is an output: each inferred shape is compared, and none is unused.
    document = {
        **({"parameters": {"width": 4}} if "$width" in str(nodes) else {}),
        **({"templates": TEMPLATES} if any("template" in node for node in nodes) else {}),
        "nodes": nodes,
        "outputs": {f"y{number}": f"n{number}" for number in range(len(nodes))},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        spec = load(path)
    canonical = spec.canonical()
    again = from_canonical(json.loads(json.dumps(canonical)))
    assert again == spec
    assert json.dumps(again.canonical()) == json.dumps(canonical)

    shape = (2, *side)
    try:
        net = build(spec, shape, 3)
    except SpecError as error:
        assert "node 'n" in str(error)  # noqa: PT017  a random chain may not fit; then the error names the node
        return
    shapes = {name: node.meta["shape"] for name, node in net.graph.output_node().args[0].items()}  # type: ignore[union-attr]
    outputs = net(torch.randn(5, *shape))
    assert list(outputs) == [f"y{number}" for number in range(len(nodes))]
    assert {name: tuple(y.shape[1:]) for name, y in outputs.items()} == shapes
    state = build(again, shape, 3).state_dict()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in net.state_dict().items()}
    net.load_state_dict(state)


def work(count: int) -> int:
    """How many functions are called to build a chain of so many residual links and, among them, convolutions."""
    nodes: list[dict[str, object]] = [{"id": "n0", "op": "identity", "from": ["input"]}]
    for number in range(1, count):
        conv = {"op": "conv", "channels": 2, "kernel": 1, "norm": "none", "from": [f"n{number - 1}"]}
        link = {"op": "sum", "from": [f"n{number - 1}", f"n{max(number - 9, 0)}"]}
        nodes.append({"id": f"n{number}", **(link if number % 4 else conv)})
    spec = from_canonical({"format": 1, "nodes": nodes, "outputs": [["y", f"n{count - 1}"]]})
    calls = 0

    def counted(*_: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(counted)
    try:
        build(spec, (2, 4, 4), 3)
    finally:
        sys.setprofile(None)
    return calls


def test_twice_as_many_nodes_are_about_twice_the_work() -> None:
    """In calls, not in seconds, which a busy machine stretches."""
    work(10)  # what is done once in a process
    assert work(2000) < 2.02 * work(1000)  # a loop over the modules at each module gives 2.05
