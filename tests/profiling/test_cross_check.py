"""What torchinfo, fvcore and torch's own counter say of the same networks."""

import re
import sys
from pathlib import Path

import pytest
import torch
import toys
from torch import Tensor, fx, nn
from torch.nn import functional as F

from deepcv.nn import spec
from deepcv.nn.spec.expand import ZOO
from deepcv.profiling import cross_check
from deepcv.profiling.amounts import short
from deepcv.profiling.cross_check import Opinion, flagged, opinions
from deepcv.profiling.observe import macs_of, observe


@pytest.mark.parametrize(("file", "shape"), [("digits", (1, 8, 8)), ("small", (3, 32, 32)), ("medium", (3, 64, 64))])
def test_all_agree_on_convolutional_networks(file: str, shape: tuple[int, int, int]) -> None:
    network = spec.build(spec.load(toys.REPOSITORY / "networks" / f"{file}.yaml", {}), shape, 10)
    macs = sum(node.macs for node in observe(network))
    parameters = sum(p.numel() for p in network.parameters())
    found = {one.counter: one for one in opinions(network, shape)}
    assert found["torch.utils.flop_counter"].macs == macs
    assert found["torchinfo"].parameters == found["fvcore"].parameters == parameters
    assert all(one.macs is not None for one in found.values())
    assert flagged(list(found.values()), parameters, macs) == []


class Products(nn.Module):
    """A product of functions, and attention: what counters miss."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.linear = nn.Linear(16, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(self.norm(x))
        return F.scaled_dot_product_attention(x, x, x) @ x.transpose(1, 2)


def test_disagreement_is_flagged_with_its_reason() -> None:
    network, tokens = fx.symbolic_trace(Products()), 12
    macs = tokens * 16 * 16 + 3 * tokens * tokens * 16
    assert sum(node.macs for node in observe(network, (tokens, 16))) == macs
    found = {one.counter: one for one in opinions(network, (tokens, 16))}
    sentences = flagged(list(found.values()), 16 * 16 + 32, macs)
    assert [sentence.split(" (")[0] for sentence in sentences] == [
        "torchinfo disagrees on MACs",
        "fvcore disagrees on MACs",
    ]
    assert "skips scaled_dot_product_attention" in found["fvcore"].told
    assert "counts also layer_norm" in found["fvcore"].told


def zoo(name: str) -> tuple[fx.GraphModule, dict[str, Opinion]]:
    network = spec.build(spec.load(ZOO / f"{name}.yaml", {}), (3, 32, 32), 10)
    return network, {one.counter: one for one in opinions(network, (3, 32, 32))}


def test_transposed_convolutions_are_why_torchinfo_disagrees_on_a_u_net() -> None:
    network, found = zoo("u-net")
    kernels = [layer.weight.numel() for layer in network.modules() if isinstance(layer, nn.ConvTranspose2d)]
    # Kernels of 2 with a stride of 2: each place of the output, four to one of the input, takes a quarter of the kernel.
    grown = sum(kernel * side * side * 3 for kernel, side in zip(kernels, (2, 4, 8, 16), strict=True))
    assert (
        f"ConvTranspose2d +{short(grown)}: it applies the kernel at each place of the output" in found["torchinfo"].told
    )
    assert grown == pytest.approx(found["torchinfo"].macs - macs_of(observe(network)), rel=0.01)
    for other in ("Linear", "Norm", "functions", "Conv2d +"):
        assert other not in found["torchinfo"].told.replace("ConvTranspose2d", "")


def test_reasons_are_those_of_the_network_at_hand() -> None:
    _, found = zoo("vit-tiny")
    assert re.match(
        "Linear −.*: it counts the weights once per image, however many tokens; functions", found["torchinfo"].told
    )
    assert "Conv" not in found["torchinfo"].told
    _, found = zoo("resnet-9")
    assert found["torchinfo"].told == ""


def test_reasons_of_a_sampled_choice(tmp_path: Path) -> None:
    (tmp_path / "net.yaml").write_text("""\
nodes:
  - {id: stem, op: conv, channels: 8}
  - {id: mix, choice: {small: {op: conv, channels: 8}, skip: {op: identity}}}
  - {id: link, pick_from: [stem, mix]}
outputs: {logits: link}
""")
    network = spec.build(spec.load(tmp_path / "net.yaml", {}), (3, 8, 8), 10, search="sampled")
    _, torchinfo, one = opinions(network, (3, 8, 8))
    assert torchinfo.told == ""  # it sees the layers of the candidate that runs
    assert f"leaves out what no running candidate takes −{short(8 * 8 * 9 * 64)}" in one.told


def test_two_percent_are_the_border() -> None:
    assert Opinion("other", 100, 1020, "").disagrees(100, 1000) == ()
    assert Opinion("other", 103, 1021, "").disagrees(100, 1000) == ("parameters", "MACs")
    assert Opinion("other", None, None, "").disagrees(100, 1000) == ()
    assert flagged([Opinion("other", 1, 1000, "why")], 100, 1000) == ["other disagrees on parameters (why)"]


def test_a_counter_that_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchinfo", None)
    monkeypatch.setitem(sys.modules, "fvcore.nn", None)
    found = opinions(nn.Conv2d(1, 1, 1), (1, 4, 4))
    assert [one.macs for one in found] == [16, None, None]
    assert found[1].told == "torchinfo is not installed: pip install 'deepcv-mlops[profile]'"
    assert found[2].told.startswith("fvcore is not installed")


def test_a_counter_that_fails_says_so() -> None:
    def fails(_network: nn.Module, _images: list[Tensor]) -> Opinion:
        raise RuntimeError("no such thing\nand more")

    one = cross_check._ask("odd", fails, nn.Identity(), [torch.zeros(1)])
    assert one == Opinion("odd", None, None, "could not count: RuntimeError: no such thing")


def test_asking_leaves_the_network_as_it_was() -> None:
    network = spec.build(spec.load(toys.REPOSITORY / "networks" / "digits.yaml", {}), (1, 8, 8), 10).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    opinions(network, (1, 8, 8))
    assert network.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
