"""The shipped network files: what each comment and the README state about them."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from deepcv.nn.classifier import build_network
from deepcv.nn.spec import SpecError, build, load

NETWORKS = Path(__file__).parents[2] / "networks"

# file, input shape, classes, parameters
SHIPPED = [
    ("digits.yaml", (1, 8, 8), 10, 38_122),
    ("small.yaml", (3, 32, 32), 10, 423_136),
    ("small.yaml", (1, 28, 28), 10, 420_576),
    ("several-targets.yaml", (3, 32, 32), 10, 423_264),
    ("airbench.yaml", (3, 32, 32), 10, 2_563_104),
    ("airbench.yaml", (1, 28, 28), 10, 2_553_632),
    ("airbench94.yaml", (3, 32, 32), 10, 1_972_768),
    ("airbench-wide.yaml", (3, 32, 32), 10, 9_918_752),
    ("medium.yaml", (3, 64, 64), 10, 1_969_386),
    ("medium.yaml", (1, 97, 65), 10, 1_968_810),
    ("timm.yaml", (3, 64, 64), 10, 3_383_818),
]


def test_every_shipped_file_is_here() -> None:
    assert {path.name for path in NETWORKS.glob("*.yaml")} == {"contrastive.yaml", *(name for name, *_ in SHIPPED)}


def test_the_probe_of_the_contrastive_network_teaches_it_nothing() -> None:
    torch.manual_seed(0)
    net = build(load(NETWORKS / "contrastive.yaml"), (1, 28, 28), 10)
    assert sum(p.numel() for p in net.parameters()) == 437_434
    outputs = net(torch.randn(8, 1, 28, 28))
    taught = {
        output: {
            name
            for name, p in net.named_parameters()
            if torch.autograd.grad(loss, p, retain_graph=True, allow_unused=True)[0] is not None
        }
        for output, loss in (("logits", outputs["logits"].sum()), ("embedding", outputs["embedding"].sum()))
    }
    assert taught["logits"] == {"head.weight", "head.bias"}
    assert taught["embedding"] == {name for name, _ in net.named_parameters()} - taught["logits"]


@pytest.mark.parametrize(("name", "shape", "classes", "parameters"), SHIPPED)
def test_size_shape_and_a_training_step(name: str, shape: tuple[int, int, int], classes: int, parameters: int) -> None:
    torch.manual_seed(0)
    net = build(load(NETWORKS / name), shape, classes)
    assert sum(p.numel() for p in net.parameters()) == parameters
    x, y = torch.randn(8, *shape), torch.arange(8) % classes
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    losses = []
    for _ in range(9):
        outputs = net(x)
        logits = outputs.pop("logits")
        assert logits.shape == (8, classes)
        loss = F.cross_entropy(logits, y) + sum(output.square().mean() for output in outputs.values())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        learned = [p for p in net.parameters() if p.requires_grad]
        assert all(p.grad is not None and p.grad.isfinite().all() for p in learned)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("name", sorted({name for name, *_ in SHIPPED} - {"timm.yaml"}))
def test_width_is_a_parameter(name: str) -> None:
    narrow, wide = (build(load(NETWORKS / name, {"width": w}), (1, 16, 16), 10) for w in (8, 16))
    ratio = sum(p.numel() for p in wide.parameters()) / sum(p.numel() for p in narrow.parameters())
    assert 3 < ratio < 4


@pytest.mark.parametrize(
    ("head", "outputs", "message"),
    [
        ("op: linear, features: $classes", "{scores: head}", r"net.yaml:3: node 'head': no output is called logits; .*scores"),
        ("op: linear, features: 7", "{logits: head}", r"net.yaml:3: node 'head': the output logits .*\(10\).* got \(7,\)"),
        ("op: identity", "{logits: input, all: head}", r"net.yaml:2: .* the output logits .* got \(1, 8, 8\)"),
    ],
)  # fmt: skip
def test_a_network_that_does_not_classify_is_refused(head: str, outputs: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "net.yaml").write_text(
        f"nodes:\n  - {{id: flat, op: flatten}}\n  - {{id: head, {head}}}\noutputs: {outputs}\n"
    )
    with pytest.raises(SpecError, match=message):
        build_network(load(tmp_path / "net.yaml"), (1, 8, 8), 10)


def test_two_inputs_that_would_get_the_same_image_are_refused(tmp_path: Path) -> None:
    (tmp_path / "net.yaml").write_text(
        "inputs: [left, right]\nnodes:\n  - {id: both, op: concat, from: [left, right]}\n  - {id: pool, op: global_avg_pool}\n"
        "  - {id: head, op: linear, features: $classes}\noutputs: {logits: head}\n"
    )
    spec = load(tmp_path / "net.yaml")
    with pytest.raises(
        SpecError,
        match=r"net.yaml:3: node 'both': the inputs left and right are both 1×8×8: .* losses triplet or supcon",
    ):
        build_network(spec, (1, 8, 8), 10)


@pytest.mark.parametrize(("name", "side"), [("small.yaml", 8), ("airbench.yaml", 14)])
def test_it_says_which_images_are_too_small(name: str, side: int) -> None:
    with pytest.raises(SpecError, match=rf"{name}:\d+: node 'half3.pool': .*larger than"):
        build(load(NETWORKS / name), (3, side, side), 10)


@pytest.mark.parametrize(("name", "padding"), [("small.yaml", 1), ("airbench.yaml", 0)])
def test_it_is_the_network_written_by_hand(name: str, padding: int) -> None:
    """Same numbers from plain torch calls on the same weights: the file says what its comment says."""
    torch.manual_seed(0)
    net = build(load(NETWORKS / name, {"width": 16}), (3, 32, 32), 10)
    state = net.state_dict()

    def norm(x: torch.Tensor, part: str) -> torch.Tensor:
        return F.batch_norm(x, None, None, state[f"{part}.weight"], state[f"{part}.bias"], True)

    def halve(x: torch.Tensor, part: str, padding: int = 1) -> torch.Tensor:
        x = F.max_pool2d(F.conv2d(x, state[f"{part}.widen.conv.weight"], padding=padding), 2)
        return F.gelu(norm(x, f"{part}.norm"))

    def conv(x: torch.Tensor, part: str, padding: int = 1) -> torch.Tensor:
        return norm(F.conv2d(x, state[f"{part}.conv.weight"], padding=padding), f"{part}.norm")

    x = torch.randn(4, 3, 32, 32)
    y = F.relu(F.conv2d(x, state["whiten.weight"]))
    y = F.gelu(conv(halve(y, "half1", padding), "mix1", padding))
    y = F.gelu(conv(halve(y, "half2"), "mix2"))
    kept = halve(y, "half3")
    y = F.gelu(kept + conv(F.gelu(conv(kept, "mix3")), "more3"))
    expected = 0.2 * F.linear(y.amax((2, 3)), state["head.weight"])
    torch.testing.assert_close(net(x)["logits"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("digits.yaml", (1, 8, 8)),
        ("small.yaml", (3, 32, 32)),
        ("airbench.yaml", (3, 32, 32)),
        ("medium.yaml", (3, 64, 64)),
    ],
)
def test_onnx(name: str, shape: tuple[int, int, int], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    net = build(load(NETWORKS / name), shape, 10).eval()
    file = tmp_path / "net.onnx"
    torch.onnx.export(
        net,
        (torch.randn(2, *shape),),
        file,
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        output_names=["logits"],
        verbose=False,
    )
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for n in (1, 5):
        x = torch.randn(n, *shape)
        expected = net(x)["logits"].detach()
        (y,) = session.run(["logits"], {session.get_inputs()[0].name: x.numpy()})
        assert (torch.from_numpy(y) - expected).abs().max() <= 1e-4 * expected.abs().clamp(min=1).max()
