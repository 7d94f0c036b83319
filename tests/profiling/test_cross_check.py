"""What torchinfo, fvcore and torch's own counter say of the same networks."""

import sys

import pytest
import torch
import toys
from torch import Tensor, fx, nn
from torch.nn import functional as F

from deepcv.nn import spec
from deepcv.profiling import cross_check
from deepcv.profiling.cross_check import Opinion, flagged, opinions
from deepcv.profiling.observe import observe


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
