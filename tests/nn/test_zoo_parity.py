"""Networks of the zoo against torchvision's and timm's: equal parameters, equal outputs on copied weights."""

from dataclasses import replace

import pytest
import torch

from benchmarks.network_parity import CLASSES, PEERS, TOLERANCE, ZOO, compare, copy_weights, randomise
from deepcv.nn.spec import build, load

SIDE = 64  # pixels; the benchmark takes 224
SLOW = {"hrnet-w18"}  # a thousand nodes


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.acceptance] if name in SLOW else []) for name in PEERS]
)
def test_a_network_is_its_peer(name: str) -> None:
    peer = replace(PEERS[name], side=SIDE)
    parity = compare(name, peer)
    assert parity.parameters == parity.peer_parameters == peer.parameters
    assert parity.scale > 0.1  # the outputs are something
    assert parity.difference <= TOLERANCE


def test_weights_that_are_not_copied_show() -> None:
    """Else the test above could not fail."""
    x = torch.randn(2, 3, SIDE, SIDE)
    theirs, ours = PEERS["resnet-18"].make(), build(load(ZOO / "resnet-18.yaml"), (3, SIDE, SIDE), CLASSES)
    randomise(theirs, x)
    copy_weights(theirs, ours, x)
    with torch.no_grad():
        theirs.get_submodule("layer4.1.bn2").bias[0] += 0.1
        difference = (theirs.eval()(x) - ours.eval()(x)["logits"]).abs().max().item()
    assert difference > 100 * TOLERANCE


def test_layers_that_do_not_match_are_refused() -> None:
    x = torch.randn(2, 3, SIDE, SIDE)
    ours = build(load(ZOO / "resnet-18.yaml", {"depth": 3}), (3, SIDE, SIDE), CLASSES)
    with pytest.raises(ValueError, match="layers in the source"):
        copy_weights(PEERS["resnet-18"].make(), ours, x)
