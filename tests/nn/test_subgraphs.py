"""Parts that are computed again, choices of a search, pieces between outputs."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from deepcv.nn.layers.subgraphs import MixedChoice, SampledChoice
from deepcv.nn.module import Blueprint, DeepcvModule
from deepcv.nn.spec import NetworkSpec, SpecError, build, from_canonical, load, open_choices
from deepcv.nn.spec.compile import Search
from deepcv.nn.subgraphs import split_at
from deepcv.serving.early_exit import EarlyExit

SHAPE = (3, 8, 8)
BLOCKS = """\
parameters: {again: false}
templates:
  block:
    nodes:
      - {id: first, op: conv, channels: 6}
      - {id: drop, op: dropout, p: 0.3}
      - {id: second, op: conv, channels: 6, spectral_norm: true}
      - {id: link, op: sum, from: [input, second]}
nodes:
  - {id: stem, op: conv, channels: 6}
  - {id: body, template: block, repeat: 3, checkpoint: $again}
  - {id: one, op: conv, channels: 6, checkpoint: $again}
  - {id: early, op: global_avg_pool, from: body.0}
  - {id: exit1, op: linear, features: $classes}
  - {id: middle, op: global_avg_pool, from: body.1.first}
  - {id: exit2, op: linear, features: $classes}
  - {id: pool, op: global_avg_pool, from: one}
  - {id: head, op: linear, features: $classes}
outputs: {exit1: exit1, exit2: exit2, logits: head}
"""
STATEFUL = """\
parameters: {again: false}
templates:
  block:
    nodes:
      - {id: mean, op: layer_mean_batch_norm}
      - {id: pick, choice: {small: {op: conv, channels: 6, kernel: 1}, wide: {op: conv, channels: 6}}, n: 2}
      - {id: gate, op: cbam, reduction: 2, spectral_norm: true}  # calls a layer twice
nodes:
  - {id: stem, op: conv, channels: 6}
  - {id: body, template: block, checkpoint: $again}
  - {id: twice, share: body, checkpoint: $again}
  - {id: pool, op: global_avg_pool}
  - {id: head, op: linear, features: $classes}
outputs: {logits: head}
"""
CHOICE = """\
parameters: {pick: wide}
templates:
  wide: {nodes: [{id: a, op: conv, channels: 6, kernel: 5}, {id: b, op: conv, channels: 6}]}
nodes:
  - {id: stem, op: conv, channels: 6}
  - {id: mix, choice: {small: {op: conv, channels: 6, kernel: 1}, wide: {template: wide}, skip: {op: identity}}, pick: $pick}
  - {id: link, pick_from: [stem, mix], pick: mix}
  - {id: pool, op: global_avg_pool}
  - {id: head, op: linear, features: $classes}
outputs: {logits: head}
"""


def spec_of(folder: Path, text: str, **parameters: object) -> NetworkSpec:
    path = folder / "net.yaml"
    path.write_text(text)
    return load(path, parameters)


def images(count: int = 4) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(1))


def built(spec: NetworkSpec, **options: object) -> fx.GraphModule:
    torch.manual_seed(0)
    return build(spec, SHAPE, 10, **options)  # type: ignore[arg-type]


def backward(network: Callable[[Tensor], dict[str, Tensor]], retained: bool = False) -> None:
    total = sum((output.square().sum() for output in network(images()).values()), start=torch.zeros(()))
    if retained:
        total.backward(retain_graph=True)
    total.backward()


def assert_as_far(network: nn.Module, other: nn.Module, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Both have the same gradients and buffers."""
    gradients = {name: parameter.grad for name, parameter in other.named_parameters()} | dict(other.named_buffers())
    expected = {name: parameter.grad for name, parameter in network.named_parameters()} | dict(network.named_buffers())
    torch.testing.assert_close(gradients, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize(("text", "search"), [(BLOCKS, None), (STATEFUL, "sampled"), (STATEFUL, "mixed")])
def test_a_checkpointed_network_has_equal_gradients_statistics_and_keys(
    text: str, search: Search | None, tmp_path: Path
) -> None:
    kept, again = (built(spec_of(tmp_path, text, again=again), search=search) for again in (False, True))
    assert again.state_dict().keys() == kept.state_dict().keys()
    assert "body_1_first_conv" not in again.code
    for step in range(2):
        for network in (kept, again):
            torch.manual_seed(step)  # the dropout
            network.zero_grad()
            backward(network, retained=step == 1)
        assert_as_far(kept, again)


@pytest.mark.parametrize("spectral", ["true", "false"])
def test_a_checkpointed_network_compiles(spectral: str, tmp_path: Path) -> None:
    """With the partition of inductor, which chooses what the backward pass computes again."""
    text = STATEFUL.replace("spectral_norm: true", f"spectral_norm: {spectral}").replace(", n: 2", ", pick: wide")
    kept, again = (built(spec_of(tmp_path, text, again=again)) for again in (False, True))
    torch.compiler.reset()
    compiled = torch.compile(again, backend="aot_eager_decomp_partition", fullgraph=spectral == "false")
    for _ in range(2):
        backward(kept)
        backward(compiled)
    assert_as_far(kept, again, rtol=1e-4, atol=1e-5)


def test_a_checkpointed_network_keeps_less(tmp_path: Path) -> None:
    def kept_bytes(again: bool) -> int:
        network, kept = built(spec_of(tmp_path, BLOCKS, again=again)), 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(images())
        return kept

    assert kept_bytes(True) < 0.6 * kept_bytes(False)


def test_a_checkpointed_network_can_be_copied_and_exported(tmp_path: Path) -> None:
    network = built(spec_of(tmp_path, BLOCKS, again=True))
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.get_submodule("body.0.first.conv").weight.zero_()
    x = images()
    assert not torch.equal(other.eval()(x)["logits"], network.eval()(x)["logits"])
    exported = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)).module()
    torch.testing.assert_close(exported(images(7))["logits"], network(images(7))["logits"])


def test_a_decided_choice_is_the_network_without_it(tmp_path: Path) -> None:
    network = built(spec_of(tmp_path, CHOICE))
    kinds = {key.rpartition(".")[0] for key in network.state_dict()}
    assert kinds == {
        "stem.conv",
        "stem.norm",
        "mix.wide.a.conv",
        "mix.wide.a.norm",
        "mix.wide.b.conv",
        "mix.wide.b.norm",
        "head",
    }
    skipped = built(spec_of(tmp_path, CHOICE, pick="skip"))
    assert {key.rpartition(".")[0] for key in skipped.state_dict()} == {"stem.conv", "stem.norm", "head"}
    assert built(spec_of(tmp_path, CHOICE), choices={"mix": "skip"}).state_dict().keys() == skipped.state_dict().keys()


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("link", range(2))
def test_fixed_sampled_and_mixed_agree(tmp_path: Path, place: int, link: int) -> None:
    """With one-hot mixing weights; the keys are the same but for those of what the fixed one leaves out."""
    opened = spec_of(
        tmp_path,
        CHOICE.replace(", pick: $pick", "").replace(", pick: mix", "").replace("parameters: {pick: wide}", "# open"),
    )
    choices = open_choices(opened)
    assert choices == {"mix": ("small", "wide", "skip"), "link": ("stem", "mix")}
    sampled, mixed = built(opened, search="sampled"), built(opened, search="mixed")
    assert sampled.state_dict().keys() == mixed.state_dict().keys()
    picks = {"mix": choices["mix"][place], "link": choices["link"][link]}
    fixed = built(opened, choices=picks)
    state = {**mixed.state_dict()}
    assert set(fixed.state_dict()) <= set(state)
    sampled.load_state_dict(state)
    fixed.load_state_dict({key: state[key] for key in fixed.state_dict()})
    for name, at in (("mix", place), ("link", link)):
        layer = sampled.get_submodule(f"_subgraphs.{name}")
        assert isinstance(layer, SampledChoice)
        layer.active = (at,)
        other = mixed.get_submodule(f"_subgraphs.{name}")
        assert isinstance(other, MixedChoice)
        other.mixing = torch.eye(len(choices[name]))[at]
    answers = [network.eval()(images())["logits"] for network in (fixed, sampled, mixed)]
    torch.testing.assert_close(answers[1], answers[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(answers[2], answers[0], rtol=0, atol=1e-6)


def test_another_kind_of_search_is_refused(tmp_path: Path) -> None:
    """Also where no choice is open, and in what a file says."""
    spec = spec_of(tmp_path, BLOCKS)
    with pytest.raises(SpecError, match="search must be one of sampled, mixed, or None, got 'foo'"):
        built(spec, search="foo")
    with pytest.raises(SpecError, match="search must be one of sampled, mixed, or None, got 'foo'"):
        Blueprint.of_plain({**Blueprint(spec, {"input": SHAPE}, 10).plain(), "search": "foo"})


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (["nope"], "outputs: no output 'nope'; there are exit1, exit2, logits"),
        (["logit"], "outputs: no output 'logit'; the closest is 'logits'"),
        ("logits", r"outputs must be a list of names, such as \['logits'\], got the text 'logits'"),
    ],
)
def test_outputs_that_are_not_there_are_told(outputs: list[str], message: str, tmp_path: Path) -> None:
    spec = spec_of(tmp_path, BLOCKS)
    for use in (
        lambda: split_at(built(spec), outputs),
        lambda: built(spec, outputs=outputs),
        lambda: DeepcvModule.from_spec(spec, SHAPE, 10, outputs=outputs),
    ):
        with pytest.raises(SpecError, match=message):
            use()


def test_mixing_weights_get_gradients(tmp_path: Path) -> None:
    opened = spec_of(tmp_path, CHOICE.replace(", pick: $pick", "").replace("parameters: {pick: wide}", "# open"))
    network = built(opened, search="mixed")
    learned = torch.zeros(3, requires_grad=True)
    network.get_submodule("_subgraphs.mix").mixing = learned.softmax(0)
    network(images())["logits"].square().sum().backward()
    assert learned.grad is not None
    assert learned.grad.abs().min() > 0


def test_mixing_weights_move_with_the_network(tmp_path: Path) -> None:
    """Also those in a part that is computed again; they are no keys."""
    network = built(spec_of(tmp_path, STATEFUL, again=True), search="mixed")
    mixing = network.get_submodule("_subgraphs.body__pick").mixing
    assert isinstance(mixing, Tensor)
    assert network.to("meta").get_submodule("_subgraphs.body__pick").mixing.is_meta  # type: ignore[union-attr]
    assert not [key for key in network.state_dict() if "mixing" in key]


def test_an_open_or_wrong_choice_says_so(tmp_path: Path) -> None:
    opened = spec_of(tmp_path, CHOICE.replace(", pick: $pick", "").replace("parameters: {pick: wide}", "# open"))
    with pytest.raises(
        SpecError, match=r"net.yaml:6: node 'mix': the choice is open; set pick to one of small, wide, skip"
    ):
        built(opened)
    with pytest.raises(SpecError, match="no candidate 'large'; there are small, wide, skip"):
        built(opened, choices={"mix": "large"})
    with pytest.raises(SpecError, match="no choice 'mux'; the closest is 'mix'"):
        built(opened, choices={"mux": "wide"})
    with pytest.raises(SpecError, match="no candidate 'huge'"):
        built(spec_of(tmp_path, CHOICE, pick="huge"))


def test_two_may_be_picked(tmp_path: Path) -> None:
    text = CHOICE.replace("pick: mix}", 'n: 2, pick: "stem, mix"}')
    network = built(spec_of(tmp_path, text, pick="skip")).eval()
    x = images()
    stem = network.get_submodule("stem.norm")(network.get_submodule("stem.conv")(x)).relu()
    expected = network.get_submodule("head")((stem + stem).mean((2, 3)))
    torch.testing.assert_close(network(x)["logits"], expected)


def test_a_choice_picks_several_and_repeats(tmp_path: Path) -> None:
    opened = CHOICE.replace("pick: $pick}", "n: 2, repeat: 2}").replace("parameters: {pick: wide}", "# open")
    spec = spec_of(tmp_path, opened)
    assert open_choices(spec) == dict.fromkeys(("mix.0", "mix.1"), ("small", "wide", "skip"))
    picks = {"mix.0": "small, skip", "mix.1": "small, wide"}
    fixed, sampled = built(spec, choices=picks).eval(), built(spec, search="sampled").eval()
    fixed.load_state_dict({key: sampled.state_dict()[key] for key in fixed.state_dict()})
    for name, places in (("mix__0", (0, 2)), ("mix__1", (0, 1))):
        layer = sampled.get_submodule(f"_subgraphs.{name}")
        assert isinstance(layer, SampledChoice)
        layer.active = places

    def conv(x: Tensor, part: str) -> Tensor:
        return fixed.get_submodule(f"{part}.norm")(fixed.get_submodule(f"{part}.conv")(x)).relu()  # type: ignore[no-any-return]

    stem = conv(images(), "stem")
    first = conv(stem, "mix.0.small") + stem
    second = conv(first, "mix.1.small") + conv(conv(first, "mix.1.wide.a"), "mix.1.wide.b")
    expected = fixed.get_submodule("head")(second.mean((2, 3)))
    for network in (fixed, sampled):
        torch.testing.assert_close(network(images())["logits"], expected, rtol=0, atol=1e-6)
    text = CHOICE.replace("pick: $pick", "pick: $pick, repeat: 2")
    parts = {key.split(".conv")[0] for key in built(spec_of(tmp_path, text, pick="small")).state_dict() if "mix" in key}
    assert parts >= {"mix.0.small", "mix.1.small"}


def test_choices_of_the_params_are_what_the_file_would_pick(tmp_path: Path) -> None:
    """With one digest, and before the file's own pick; each repetition is a choice of its own."""
    path = tmp_path / "net.yaml"
    told = spec_of(tmp_path, CHOICE, pick="skip")
    other = load(path, {"pick": "wide"}, {"mix": "skip"})
    assert other == told
    assert other.sha256() == told.sha256() != load(path).sha256()
    opened = CHOICE.replace("pick: $pick}", "repeat: 2}").replace("parameters: {pick: wide}", "# open")
    open_spec, picks = spec_of(tmp_path, opened), {"mix.0": "small", "mix.1": "skip"}
    spec = load(path, {}, picks)
    assert from_canonical(spec.canonical()) == spec
    network = built(spec)
    assert {key.split(".conv")[0] for key in network.state_dict() if key.startswith("mix")} >= {"mix.0.small"}
    expected = built(open_spec, choices=picks)
    assert network.state_dict().keys() == expected.state_dict().keys()
    assert torch.equal(network(images())["logits"], expected(images())["logits"])


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"mix": "wide"}, r"net\.yaml: network_choices: no choice 'mix'; the closest is 'mix\.\d'"),
        ({"mix.0": "wid"}, r"net\.yaml: network_choices: mix\.0 has no candidate 'wid'; the closest is 'wide'"),
        (
            {"mix.1": "small, wide"},
            r"net\.yaml:6: node 'mix\.1': choice picks 1 of its candidates, got pick: 'small, wide'",
        ),
        ({"stem": "wide"}, "network_choices: no choice 'stem'; there are mix.0, mix.1, link"),
    ],
)
def test_wrong_choices_of_the_params_are_told_as_the_file_is_read(
    choices: dict[str, str], message: str, tmp_path: Path
) -> None:
    spec_of(tmp_path, CHOICE.replace("pick: $pick}", "pick: $pick, repeat: 2}"))
    with pytest.raises(SpecError, match=message):
        load(tmp_path / "net.yaml", {}, choices)


def test_a_network_without_choices_says_so(tmp_path: Path) -> None:
    spec_of(tmp_path, BLOCKS)
    with pytest.raises(SpecError, match="network_choices: no choice 'mix'; there are none"):
        load(tmp_path / "net.yaml", {}, {"mix": "wide"})


def test_pieces_between_outputs_compute_the_network(tmp_path: Path) -> None:
    network = built(spec_of(tmp_path, BLOCKS)).eval()
    x = images()
    expected = network(x)
    values = {"input": x}
    for name, piece in zip(expected, split_at(network, list(expected)), strict=True):
        made = piece.module(*(values[one] for one in piece.inputs))
        values |= zip(piece.outputs, [made] if isinstance(made, Tensor) else made, strict=True)
        torch.testing.assert_close(values[piece.outputs[0]], expected[name], rtol=0, atol=0)
    kept = [len(list(piece.module.graph.nodes)) for piece in split_at(network, list(expected))]
    assert sum(kept) < 3 * kept[0] + len(list(network.graph.nodes))  # nothing is computed twice


def test_early_exit_gives_each_image_the_answer_of_its_exit(tmp_path: Path) -> None:
    network = built(spec_of(tmp_path, BLOCKS)).eval()
    x = images(64)
    with torch.no_grad():
        outputs = network(x)
    sure = outputs["exit1"].softmax(1).amax(1)
    threshold = float(sure.median())
    left = EarlyExit(network.train(), ["exit1", "exit2", "logits"], [threshold, 2.0])(x)
    assert not any(module.training for module in network.modules())
    assert torch.equal(left.exits == 0, sure >= threshold)
    assert set(left.exits.tolist()) == {0, 2}
    for place, name in ((0, "exit1"), (2, "logits")):
        chosen = left.exits == place
        torch.testing.assert_close(left.logits[chosen], outputs[name][chosen])
    likeliest = outputs["exit1"].softmax(1).sort(1).values
    margin = likeliest[:, -1] - likeliest[:, -2]
    left = EarlyExit(network, ["exit1", "exit2", "logits"], [float(margin.median()), 2.0], "margin")(x)
    assert torch.equal(left.exits == 0, margin >= margin.median())
    with pytest.raises(ValueError, match="3 exits need 2 thresholds"):
        EarlyExit(network, ["exit1", "exit2", "logits"], [0.5])
