"""Every network of the zoo: what its comment states, and what every network here must be able to do."""

import copy
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, fx
from torch.export import Dim
from torch.utils.flop_counter import FlopCounterMode

from deepcv.nn.spec import NetworkSpec, build, from_canonical, load, zoo
from deepcv.nn.spec.expand import ZOO

RGB32, RGB64, RGB224 = (3, 32, 32), (3, 64, 64), (3, 224, 224)


@dataclass(frozen=True)
class Entry:
    """What a file's comment counts (`shape`, `classes`), and a small variant for the quick tests.

    `step`: the height and width of images may be any multiple of it; None where they are those that it was built for.
    `slow`: even the small variant has hundreds of nodes; its tests are acceptance tests.
    """

    shape: tuple[int, int, int]
    classes: int
    small: Mapping[str, object] = field(default_factory=dict)
    small_shape: tuple[int, int, int] = RGB32
    step: int | None = 1
    slow: bool = False


DEPTHS = {"depth1": 2, "depth2": 2, "depth3": 2, "depth4": 2}
TABLE = {
    "attention-u-net": Entry((3, 256, 256), 2, {"width": 4}, step=16),
    "basic-backbone": Entry(RGB32, 10, {"width": 8}),
    "branched-backbone": Entry(RGB32, 10, {"width": 8}),
    "densenet-121": Entry(RGB224, 1000, {"width": 8, "growth": 4, **DEPTHS}, RGB64, slow=True),
    "densenet-bc": Entry(RGB32, 10, {"growth": 4, "depth": 2}),
    "eca-resnet-50": Entry(RGB224, 1000, {"width": 8}, RGB64, slow=True),
    "hcgnet-a1": Entry(RGB32, 10, {"growth1": 4, "growth2": 4, "growth3": 4}, slow=True),
    "hcgnet-a2": Entry(RGB32, 10, slow=True),
    "hcgnet-a3": Entry(RGB32, 10, slow=True),
    "hrnet-backbone": Entry(RGB32, 10, {"width": 4, "modules": 1}, slow=True),
    "hrnet-heads": Entry(RGB32, 10, {"width": 4}, slow=True),
    "hrnet-small": Entry(RGB32, 10, {"width": 4, "modules": 1}, slow=True),
    "hrnet-w18": Entry(RGB224, 1000, {"width": 4}, RGB64, slow=True),
    "image-classifier": Entry(RGB32, 10, {"width": 8}),
    "keypoint-decoder": Entry((64, 8, 8), 10, {"width": 8}, (64, 8, 8)),
    "keypoint-encoder": Entry(RGB32, 10, {"width": 8}),
    "mobilenet-v2": Entry(RGB224, 1000, {"width": 8, "features": 64}, RGB64),
    "resnet-18": Entry(RGB224, 1000, {"width": 8}, RGB64),
    "resnet-50": Entry(RGB224, 1000, {"width": 8, **DEPTHS}, RGB64),
    "resnet-9": Entry(RGB32, 10, {"width": 8}),
    "resnet-9-exits": Entry(RGB32, 10, {"width": 8}),
    "resnext-50": Entry(RGB224, 1000, {"width": 8, "groups": 4}, RGB64, slow=True),
    "siamese": Entry(RGB32, 10, {"width": 8}),
    "siamese-encoder": Entry(RGB32, 10, {"width": 8}),
    "u-net": Entry((3, 256, 256), 2, {"width": 4}, step=16),
    "vit-tiny": Entry(RGB32, 10, {"features": 24, "depth": 2, "drop_path": 0.1}, step=None),
    "wide-resnet": Entry(RGB32, 10, {"width": 16, "depth": 2}),
}

QUICK = [pytest.param(name, marks=[pytest.mark.acceptance] if entry.slow else []) for name, entry in TABLE.items()]


@cache
def spec(name: str) -> NetworkSpec:
    return load(ZOO / f"{name}.yaml", TABLE[name].small)


@cache
def small(name: str) -> fx.GraphModule:
    """The small variant in eval mode, its norms away from the start values; tests that change it take a copy."""
    torch.manual_seed(0)
    entry = TABLE[name]
    network = build(spec(name), entry.small_shape, 10)
    with torch.no_grad():
        for _ in range(3):
            network(*images(name, 4))
    return network.eval()


def images(name: str, count: int, *, full: bool = False, seed: int = 0) -> tuple[Tensor, ...]:
    entry = TABLE[name]
    shape = entry.shape if full else entry.small_shape
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(count, *shape, generator=generator) for _ in spec(name).inputs)


def assert_same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], tolerance: float = 0) -> None:
    """Within tolerance · max(1, |y|)."""
    assert list(ours) == list(theirs)
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=0, atol=tolerance * max(1, float(expected.abs().max())))


def test_every_file_has_an_entry() -> None:
    assert sorted(TABLE) == zoo()


@pytest.mark.parametrize("name", QUICK)
def test_its_canonical_form_copy_and_pickle_are_the_same_network(name: str) -> None:
    assert from_canonical(spec(name).canonical()) == spec(name)
    network, x = small(name), images(name, 2)
    with torch.no_grad():
        expected = network(*x)
        assert_same(copy.deepcopy(network)(*x), expected)
        assert_same(pickle.loads(pickle.dumps(network))(*x), expected)  # noqa: S301  our own bytes
    assert all(value.isfinite().all() for value in expected.values())


@pytest.mark.parametrize("name", QUICK)
def test_safetensors_bring_its_weights_back(name: str, tmp_path: Path) -> None:
    network, x = small(name), images(name, 2)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    torch.manual_seed(1)
    other = build(spec(name), TABLE[name].small_shape, 10).eval()
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    with torch.no_grad():
        assert_same(other(*x), network(*x))


@pytest.mark.parametrize("name", QUICK)
def test_a_training_step_reaches_all_weights_and_lowers_the_loss(name: str) -> None:
    network, x = copy.deepcopy(small(name)).train(), images(name, 8)
    with torch.no_grad():
        targets = {key: torch.randn_like(value) for key, value in network(*x).items()}

    def loss() -> Tensor:
        torch.manual_seed(1)  # what dropout leaves out
        return torch.stack([(y - targets[key]).square().mean() for key, y in network(*x).items()]).sum()

    before = loss()
    before.backward()  # type: ignore[no-untyped-call]
    learned = {key: parameter for key, parameter in network.named_parameters() if parameter.requires_grad}
    assert not [key for key, p in learned.items() if p.grad is None or not p.grad.isfinite().all()]
    norm = torch.stack([p.grad.norm() for p in learned.values()]).norm()  # type: ignore[union-attr]
    with torch.no_grad():
        for parameter in learned.values():
            parameter -= 1e-3 / norm * parameter.grad  # a short step straight down
        assert loss() < before


@pytest.mark.parametrize("name", QUICK)
def test_it_compiles_without_a_graph_break(name: str) -> None:
    network, x = small(name), images(name, 2)
    torch.compiler.reset()
    with torch.no_grad():
        assert_same(torch.compile(network, fullgraph=True, backend="eager")(*x), network(*x))


@pytest.mark.parametrize("name", QUICK)
def test_it_exports_for_any_batch_and_size(name: str) -> None:
    exported = export(name, small(name), images(name, 2))
    entry = TABLE[name]
    shape = entry.small_shape
    if entry.step:
        shape = (shape[0], shape[1] + 3 * entry.step, shape[2] + 5 * entry.step)
    x = tuple(torch.randn(3, *shape) for _ in images(name, 1))
    with torch.no_grad():
        assert_same(exported.module()(*x), small(name)(*x), 1e-6)


def export(name: str, network: fx.GraphModule, x: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """With a dynamic batch, and height and width where its entry says so."""
    step, dynamic = TABLE[name].step, {0: Dim.DYNAMIC}
    if step == 1:
        dynamic |= {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    elif step:
        dynamic |= {2: step * Dim("h", min=2), 3: step * Dim("w", min=2)}
    return torch.export.export(network, x, dynamic_shapes=(dynamic,) * len(x))


@pytest.mark.acceptance
@pytest.mark.parametrize("name", TABLE)
def test_its_comment_states_its_size(name: str) -> None:
    entry, path = TABLE[name], ZOO / f"{name}.yaml"
    comment = " ".join(line.lstrip("# ") for line in path.read_text().split("\nparameters")[0].splitlines())
    stated = re.findall(r"([\d,]+) parameters, ([\d.]+) G MACs", comment)[-1]
    network = build(load(path), entry.shape, entry.classes).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*images(name, 1, full=True))
    assert int(stated[0].replace(",", "")) == sum(parameter.numel() for parameter in network.parameters())
    digits = len(stated[1].partition(".")[2])
    assert stated[1] == f"{counter.get_total_flops() / 2e9:.{digits}f}"


@pytest.mark.acceptance
@pytest.mark.parametrize("name", TABLE)
def test_onnx_computes_the_same(name: str, tmp_path: Path) -> None:
    """The network as its file has it, in ONNX Runtime, with another batch than it was exported with."""
    import onnxruntime

    torch.manual_seed(0)
    entry, x = TABLE[name], images(name, 2, full=True)
    network = build(load(ZOO / f"{name}.yaml"), entry.shape, entry.classes).eval()
    with torch.no_grad():
        expected = network(*(one[:1] for one in x)) | network(*x)
    path = tmp_path / "net.onnx"
    torch.onnx.export(network, x, path, dynamo=True, dynamic_shapes=({0: Dim.DYNAMIC},) * len(x), verbose=False)
    session = onnxruntime.InferenceSession(path)
    feeds = {one.name: value.numpy() for one, value in zip(session.get_inputs(), x, strict=True)}
    got = dict(zip(expected, map(torch.from_numpy, session.run(None, feeds)), strict=True))
    assert_same(got, expected, 1e-4)
