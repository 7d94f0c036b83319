"""Every op can be written as ONNX: stage `export` comes after a whole training, which would be lost on one that cannot."""

import warnings
from typing import Any

import pytest
import torch
from test_op_laws import BEFORE, FIRST, NO_FORMULA, SAMPLES
from torch.export import Dim

from deepcv.nn.ops import FAMILIES, OPS
from deepcv.nn.ops.activation import ActivationOp
from deepcv.nn.spec import build, from_canonical
from deepcv.nn.spec.options import fields

KINDS = fields(ActivationOp)["kind"][0].__args__
MORE: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "activation": [("input", {"kind": kind}) for part in KINDS for kind in getattr(part, "__args__", [part])],
}
QUICK = ("poolings",)


def node(name: str, op: str, sources: str, options: dict[str, Any]) -> dict[str, Any]:
    return {"id": name, "op": op, "from": sources.split(), **options}


def of_family(family: str) -> list[dict[str, Any]]:
    """All samples of a family's ops as nodes, behind those that they need."""
    samples = {op: [sample[:2] for sample in SAMPLES.get(op, [])] + MORE.get(op, []) for op in FAMILIES[family]}
    tried = [node(f"{op}{i}", op, *sample) for op, of_op in samples.items() for i, sample in enumerate(of_op)]
    pending = [source for one in tried for source in one["from"] if source != "input"]
    before = [one for source in pending for one in BEFORE[source]]
    return [*{one["id"]: one for one in before}.values(), *tried]


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=[] if family in QUICK else [pytest.mark.acceptance])
        for family, ops in FAMILIES.items()
        if not ops.keys() <= NO_FORMULA  # of whole networks each would have to be tried
    ],
)
def test_every_op_is_in_onnx_what_it_is_in_torch(family: str) -> None:
    """As `export` does it: for one size of images, and any number of them."""
    onnxruntime = pytest.importorskip("onnxruntime")
    nodes = of_family(family)
    ends = [[one["id"], one["id"]] for one in nodes]
    torch.manual_seed(0)
    net = build(from_canonical({"format": 1, "nodes": nodes, "outputs": ends}), FIRST, 10)
    net(torch.randn(4, *FIRST))  # one training step's statistics
    net.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            net, (torch.randn(2, *FIRST),), dynamo=True, verbose=False, dynamic_shapes=({0: Dim("n", min=1)},)
        )
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())  # type: ignore[union-attr]
    x = torch.randn(3, *FIRST)
    with torch.no_grad():
        expected = net(x)
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    errors = {
        name: float(((torch.from_numpy(one) - y).abs() / y.abs().clamp(min=1)).max())
        for (name, y), one in zip(expected.items(), found, strict=True)
    }
    assert {name: error for name, error in errors.items() if not error <= 1e-4} == {}  # NaN is not
    assert {one["op"] for one in nodes} >= FAMILIES[family].keys() - NO_FORMULA


def test_every_op_but_whole_networks_and_what_is_picked_from_is_tried() -> None:
    tried = {one["op"] for family in FAMILIES for one in of_family(family)}
    assert tried >= OPS.keys() - NO_FORMULA
