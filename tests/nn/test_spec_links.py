"""Defaults, repeats, shares, several inputs and outputs, nested networks: what they expand to and compute."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deepcv.nn import DeepcvModule
from deepcv.nn.spec import SpecError, build, from_canonical, load

SHAPE = (3, 8, 8)


@pytest.fixture
def images() -> Tensor:
    torch.manual_seed(7)
    return torch.randn(4, *SHAPE)


def written(folder: Path, text: str) -> Path:
    path = folder / "net.yaml"
    path.write_text(text)
    return path


DEFAULTS = """\
parameters: {act: silu}
defaults: {norm: none, activation: $act, bias: false}
templates:
  plain:
    nodes: [{id: conv, op: conv, channels: 4}]
  own:
    defaults: {activation: gelu}
    nodes: [{id: conv, op: conv, channels: 4}, {id: inner, template: plain}]
nodes:
  - {id: a, op: conv, channels: 4}
  - {id: b, template: own}
  - {id: c, op: conv, channels: 4, activation: relu, norm: batch, bias: true}
  - {id: link, op: sum, from: [b, c]}
  - {id: pool, op: global_avg_pool}
  - {id: head, op: linear, features: $classes}
outputs: {logits: head}
"""


def test_defaults_are_inherited_and_the_nearest_wins(tmp_path: Path) -> None:
    options = {node.id: dict(node.options) for node in load(written(tmp_path, DEFAULTS)).nodes}
    assert (options["a"]["norm"], options["a"]["activation"], options["a"]["bias"]) == ("none", "silu", False)
    assert options["b.conv"]["activation"] == "gelu"
    assert options["b.inner.conv"]["activation"] == "gelu"
    assert (options["c"]["norm"], options["c"]["activation"], options["c"]["bias"]) == ("batch", "relu", True)
    assert options["link"]["activation"] == "none"  # a sum inherits nothing
    assert options["head"]["activation"] == "none"


ORDER = """\
defaults: {pre_activation: true, dropout: 0.2}
nodes:
  - {id: a, op: conv, channels: 4}
  - {id: b, op: conv, channels: 4, pre_activation: false, dropout: 0.0}
  - {id: pool, op: global_avg_pool}
outputs: {y: pool}
"""


def test_the_order_and_the_dropout_are_inherited(tmp_path: Path, images: Tensor) -> None:
    network = build(load(written(tmp_path, ORDER)), SHAPE, 10)
    calls = [node.target for node in network.graph.nodes if node.op == "call_module"]
    assert calls == ["a.norm", "a.conv", "a.dropout", "b.conv", "b.norm"]
    network.eval()
    a = network.get_submodule("a.conv")(network.get_submodule("a.norm")(images).relu())
    b = network.get_submodule("b.norm")(network.get_submodule("b.conv")(a)).relu()
    torch.testing.assert_close(network(images)["y"], b.mean((2, 3)), rtol=0, atol=1e-6)


CONVOLUTIONS = ["conv", "depthwise_conv", "separable_conv", "transposed_conv", "pyramid_conv", "meta_conv"]


@pytest.mark.parametrize("op", CONVOLUTIONS)
def test_every_convolution_inherits_the_same_defaults(tmp_path: Path, op: str) -> None:
    channels = "" if op == "depthwise_conv" else ", channels: 4"
    text = ORDER.partition("nodes:")[0] + f"nodes:\n  - {{id: a, op: {op}{channels}}}\noutputs: {{y: a}}\n"
    network = build(load(written(tmp_path, text)), SHAPE, 10)
    calls = [str(node.target) for node in network.graph.nodes if node.op == "call_module"]
    assert (calls[0], calls[-1]) == ("a.norm", "a.dropout")
    assert network.get_submodule("a.dropout").p == 0.2


ADAPT = """\
nodes:
  - {id: a, op: conv, channels: 4}
  - {id: b, op: conv, channels: 6, stride: 2}
  - {id: link, op: OP, from: [a, b], adapt: ADAPT}
  - {id: pool, op: global_avg_pool}
outputs: {y: pool, link: link}
"""


def test_a_link_projects_and_resizes_what_does_not_fit(tmp_path: Path, images: Tensor) -> None:
    network = build(load(written(tmp_path, ADAPT.replace("OP", "sum").replace("ADAPT", "project"))), SHAPE, 10).eval()
    for x in (images, torch.randn(2, 3, 12, 10)):
        a = network.get_submodule("a.norm")(network.get_submodule("a.conv")(x)).relu()
        b = network.get_submodule("b.norm")(network.get_submodule("b.conv")(a)).relu()
        projected = network.get_submodule("link.adapt1.project")(b)
        fitted = nn.functional.interpolate(projected, size=x.shape[2:], mode="bilinear")
        torch.testing.assert_close(network(x)["link"], a + fitted, rtol=0, atol=1e-6)


def test_a_dense_link_resizes_what_does_not_fit(tmp_path: Path, images: Tensor) -> None:
    spec = load(written(tmp_path, ADAPT.replace("OP", "concat").replace("ADAPT", "resize")))
    assert build(spec, SHAPE, 10)(images)["link"].shape == (4, 10, 8, 8)


@pytest.mark.parametrize(
    ("op", "adapt", "message"),
    [
        ("sum", "error", "needs equal shapes"),
        ("sum", "resize", "needs equal channels"),
        ("mean", "resize", "adapt: project"),
    ],
)
def test_a_link_that_may_not_adapt_says_so(tmp_path: Path, op: str, adapt: str, message: str) -> None:
    with pytest.raises(SpecError, match=rf"net\.yaml:4: node 'link': {op} .*{message}"):
        build(load(written(tmp_path, ADAPT.replace("OP", op).replace("ADAPT", adapt))), SHAPE, 10)


REPEAT = """\
parameters: {depth: 3}
templates:
  block:
    parameters: {channels: null, kernel: 3}
    nodes:
      - {id: conv, op: conv, channels: $channels, kernel: $kernel}
      - {id: link, op: sum, from: [input, conv]}
nodes:
  - {id: stem, op: conv, channels: 4}
  - {id: body, template: block, channels: 4, repeat: $depth}
  - {id: grow, op: conv, channels: 4+$index*2, kernel: 1, repeat: 2}
  - {id: pool, op: global_avg_pool}
  - {id: head, op: linear, features: $classes}
  - {id: first, op: global_avg_pool, from: body.0}
  - {id: inner, op: global_avg_pool, from: body.1.conv}
outputs: {logits: head, first: first, inner: inner}
"""


def test_repeat_makes_a_chain_with_numbered_parts(tmp_path: Path, images: Tensor) -> None:
    spec = load(written(tmp_path, REPEAT))
    sources = {node.id: node.sources for node in spec.nodes}
    assert sources["body.1.conv"] == ("body.0.link",)
    assert sources["grow.0"] == ("body.2.link",)
    assert sources["first"] == ("body.0.link",)
    assert {node.id: dict(node.options).get("channels") for node in spec.nodes}["grow.1"] == 6
    network = build(spec, SHAPE, 10)
    assert "body.2.conv.norm.weight" in network.state_dict()
    assert network(images)["inner"].shape == (4, 4)
    assert from_canonical(spec.canonical()) == spec


def test_templates_have_default_parameters(tmp_path: Path) -> None:
    options = {node.id: dict(node.options) for node in load(written(tmp_path, REPEAT)).nodes}
    assert options["body.0.conv"]["kernel"] == 3


SIAMESE = """\
inputs: [left, right]
templates:
  encoder:
    nodes:
      - {id: conv, op: conv, channels: 4}
      - {id: pool, op: global_avg_pool}
      - {id: out, op: linear, features: 5}
nodes:
  - {id: a, template: encoder, from: left}
  - {id: b, share: a, from: right}
  - {id: both, op: concat, from: [a, b]}
  - {id: head, op: linear, features: $classes}
outputs: {logits: head, a: a, b: b}
"""


class TwiceByHand(nn.Module):
    """The network of SIAMESE, from its own modules."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        made = copy.deepcopy(network)
        self.conv, self.norm = made.get_submodule("a.conv.conv"), made.get_submodule("a.conv.norm")
        self.out, self.head = made.get_submodule("a.out"), made.get_submodule("head")

    def encode(self, x: Tensor) -> Tensor:
        """One side."""
        result: Tensor = self.out(torch.relu(self.norm(self.conv(x))).mean((2, 3)))
        return result

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        result: Tensor = self.head(torch.cat([self.encode(left), self.encode(right)], 1))
        return result


def test_shared_nodes_use_the_same_weights_and_gradients_add_up(tmp_path: Path, images: Tensor) -> None:
    network = build(load(written(tmp_path, SIAMESE)), SHAPE, 3)
    by_hand = TwiceByHand(network)
    other = torch.randn_like(images)
    ours, theirs = network(images, other)["logits"], by_hand(images, other)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    for name, peer in (("a.conv.conv", by_hand.conv), ("a.conv.norm", by_hand.norm), ("a.out", by_hand.out)):
        module = network.get_submodule(name)
        torch.testing.assert_close(module.weight.grad, peer.weight.grad, rtol=0, atol=1e-6)
    torch.testing.assert_close(network.get_submodule("a.conv.norm").running_mean, by_hand.norm.running_mean)


def test_shared_weights_stand_once_in_the_state_dict(tmp_path: Path) -> None:
    network = build(load(written(tmp_path, SIAMESE)), SHAPE, 3)
    assert not [key for key in network.state_dict() if key.startswith("b")]
    again = pickle.loads(pickle.dumps(network))  # noqa: S301  our own bytes
    assert again.state_dict().keys() == network.state_dict().keys()


def test_a_pruned_owner_leaves_its_weights_to_those_who_share_them(tmp_path: Path, images: Tensor) -> None:
    spec = load(written(tmp_path, SIAMESE))
    torch.manual_seed(0)
    whole = build(spec, SHAPE, 3)
    part = build(spec, SHAPE, 3, outputs=["b"])
    assert {"a.conv.conv.weight"} <= set(part.state_dict()) < set(whole.state_dict())
    part.load_state_dict(whole.state_dict(), strict=False)
    torch.testing.assert_close(part.eval()(images, images)["b"], whole.eval()(images, images)["b"], rtol=0, atol=0)


def test_inputs_may_have_shapes_of_their_own(tmp_path: Path, images: Tensor) -> None:
    spec = load(written(tmp_path, SIAMESE))
    shapes = {"left": SHAPE, "right": (3, 4, 6)}
    assert build(spec, shapes, 3)(images, torch.randn(4, 3, 4, 6))["logits"].shape == (4, 3)
    with pytest.raises(SpecError, match="must name the inputs left, right, got left"):
        build(spec, {"left": SHAPE}, 3)
    with pytest.raises(SpecError, match="cannot share 'a"):
        build(spec, {"left": SHAPE, "right": (1, 8, 8)}, 3)


SCALES = SIAMESE.replace("[left, right]", "{left: null, right: [4, 6]}")


def test_inputs_may_have_sizes_of_their_own(tmp_path: Path, images: Tensor) -> None:
    spec = load(written(tmp_path, SCALES))
    assert spec.input_shapes(SHAPE) == {"left": SHAPE, "right": (3, 4, 6)}
    assert from_canonical(json.loads(json.dumps(spec.canonical()))) == spec
    plain = load(written(tmp_path, SIAMESE))
    assert "sizes" not in plain.canonical()
    mapped = load(written(tmp_path, SIAMESE.replace("[left, right]", "{left: null, right: null}")))
    assert spec.sha256() != plain.sha256() == mapped.sha256()
    network = DeepcvModule.from_spec(spec, SHAPE, 3).eval()
    small = torch.randn(4, 3, 4, 6)
    again = pickle.loads(pickle.dumps(network))  # noqa: S301  our own bytes
    assert again.blueprint == network.blueprint
    assert torch.equal(again(images, small)["logits"], network(images, small)["logits"])
    with pytest.raises(SpecError, match=r"says that the input 'right' is \(4, 6\), got input_shape \(3, 8, 8\)"):
        build(spec, {"left": SHAPE, "right": (3, 8, 8)}, 3)
    with pytest.raises(SpecError, match="expected sizes of at least 1 of the inputs left, right"):
        from_canonical({**spec.canonical(), "sizes": {"far": [4, 6]}})


STREAMS = """\
templates:
  exchange:
    inputs: [fine, coarse]
    nodes:
      - {id: down, op: conv, channels: 4, stride: 2, from: fine}
      - {id: low, op: sum, from: [coarse, down]}
      - {id: high, op: conv, channels: 4, from: fine}
    outputs: [high, low]
nodes:
  - {id: fine, op: conv, channels: 4}
  - {id: coarse, op: conv, channels: 4, stride: 2}
  - {id: mix, template: exchange, from: [fine, coarse], repeat: 2}
  - {id: a, op: global_avg_pool, from: mix.high}
  - {id: b, op: global_avg_pool, from: mix.low}
  - {id: both, op: concat, from: [a, b]}
  - {id: head, op: linear, features: $classes}
outputs: {logits: head, high: mix.high}
"""


def test_templates_with_several_inputs_and_outputs_repeat(tmp_path: Path, images: Tensor) -> None:
    spec = load(written(tmp_path, STREAMS))
    sources = {node.id: node.sources for node in spec.nodes}
    assert sources["mix.1.down"] == ("mix.0.high",)
    assert sources["mix.1.low"] == ("mix.0.low", "mix.1.down")
    assert sources["b"] == ("mix.1.low",)
    assert build(spec, SHAPE, 10)(images)["high"].shape == (4, 4, 8, 8)


def test_outputs_are_pruned_and_keys_stay(tmp_path: Path, images: Tensor) -> None:
    spec = load(written(tmp_path, STREAMS))
    whole, part = build(spec, SHAPE, 10), build(spec, SHAPE, 10, outputs=["high"])
    assert set(part.state_dict()) < set(whole.state_dict())
    assert not [key for key in part.state_dict() if key.startswith("head")]
    part.load_state_dict(whole.state_dict(), strict=False)
    torch.testing.assert_close(part.eval()(images)["high"], whole.eval()(images)["high"], rtol=0, atol=0)
    with pytest.raises(SpecError, match="no output 'hihg'; the closest is 'high'"):
        build(spec, SHAPE, 10, outputs=["hihg"])


WRONG = [
    ("repeat of zero", REPEAT.replace("depth: 3", "depth: 0"), 10, "repeat must be a whole number from 1 to 10000, got 0"),
    ("huge repeat", REPEAT.replace("depth: 3", "depth: 6000"), 7, "more than 10000 nodes"),
    ("repeat of a text", REPEAT.replace("$depth", "many"), 10, "repeat must be a whole number"),
    ("unknown default", DEFAULTS.replace("norm: none,", "nrom: none,", 1), 2, "unknown key 'nrom'; the closest is 'norm'"),
    ("default of a wrong kind", DEFAULTS.replace("norm: none,", "norm: bach,", 1), 2, "norm must be one of batch"),
    ("share of nothing", SIAMESE.replace("share: a", "share: aa"), 10, "no node 'aa' above it; the closest is 'a'"),
    ("share of a later one", SIAMESE.replace("share: a,", "share: both,"), 10, "no node 'both' above it"),
    ("share with options", SIAMESE.replace("share: a", "share: a, channels: 3"), 10, "unknown key 'channels'"),
    ("no from beside several inputs", SIAMESE.replace(", from: left", ""), 9, "needs the key 'from': there are several"),
    ("input twice", SIAMESE.replace("[left, right]", "[left, left]"), 1, "the input 'left' stands twice"),
    ("node named as an input", SIAMESE.replace("id: both", "id: left"), 11, "an input has this name"),
    ("too few inputs", STREAMS.replace("[fine, coarse], rep", "[fine], rep"), 12, "takes 2 inputs (fine, coarse), got 1"),
    ("several outputs as one", STREAMS.replace("high: mix.high}", "high: mix}"), 17, "'mix' has several outputs"),
    ("output and outputs", STREAMS.replace("    outputs: [high, low]", "    outputs: [high]\n    output: low"), 8, "either"),
    ("checkpoint of a text", STREAMS.replace("repeat: 2", "checkpoint: 1"), 12, "checkpoint must be true or false, got 1"),
    ("no such network", SIAMESE.replace("share: a", "spec: ../etc/passwd"), 10, "no network '../etc/passwd' in the zoo"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "message"), [wrong[1:] for wrong in WRONG], ids=[wrong[0] for wrong in WRONG])
def test_a_wrong_link_is_an_error_with_its_line(text: str, line: int, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(SpecError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}:{line}: "), str(caught.value)
    assert message in str(caught.value)
