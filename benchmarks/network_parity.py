"""Zoo networks against torchvision's and timm's own: same number of parameters, and same outputs on the same weights.

    python -m benchmarks.network_parity [--quick]

The peer's weights are drawn at random, running statistics too, and copied layer by layer. `value` is the largest
difference of an output over all networks; a network that differs in parameters, or that is absent, fails the whole.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import timm
import torch
import torchvision
from torch import Tensor, nn

import deepcv.nn
from benchmarks.result import emit
from deepcv.nn.spec import build, load

ZOO = Path(deepcv.nn.__file__).parent / "zoo"
TOLERANCE = 1e-5
CLASSES = 1000


@dataclass(frozen=True)
class Peer:
    """Another library's network, its published number of parameters and the side of the test images in pixels."""

    make: Callable[[], nn.Module]
    parameters: int
    side: int = 224
    quick: bool = False


# ECA-Net's paper gives 24.37 M for both ResNet-50 and ECA-ResNet-50: that is 2²⁰ parameters as a "M", 25,557,118 of them,
# the plain ResNet-50 (25,557,032) plus 16 kernels of 5 or 7. No name of timm is that network: ecaresnet50d (25,576,350)
# and ecaresnet50t (25,573,814) have other stems, nf_ecaresnet50 has no norms. timm's resnet50 with its ECA in each block is.
PEERS = {
    "resnet-18": Peer(partial(torchvision.models.resnet18, weights=None), 11_689_512, quick=True),
    "resnet-50": Peer(partial(torchvision.models.resnet50, weights=None), 25_557_032),
    "densenet-121": Peer(partial(torchvision.models.densenet121, weights=None), 7_978_856),
    "mobilenet-v2": Peer(partial(torchvision.models.mobilenet_v2, weights=None), 3_504_872, quick=True),
    "resnext-50": Peer(partial(torchvision.models.resnext50_32x4d, weights=None), 25_028_904),
    "eca-resnet-50": Peer(partial(timm.create_model, "resnet50", block_args={"attn_layer": "eca"}), 25_557_118),
    "hrnet-w18": Peer(partial(timm.create_model, "hrnet_w18"), 21_299_004),
}


@dataclass(frozen=True)
class Parity:
    """Parameters of both networks and the largest difference of an output, absolute; the scale of the outputs beside it."""

    parameters: int
    peer_parameters: int
    difference: float
    scale: float


def compare(name: str, peer: Peer, images: int = 2) -> Parity:
    """Build both networks, copy the peer's weights, run both in eval mode on the same random images."""
    torch.manual_seed(0)
    theirs = peer.make()
    ours = build(load(ZOO / f"{name}.yaml"), (3, peer.side, peer.side), CLASSES).eval()
    x = torch.randn(images, 3, peer.side, peer.side)
    randomise(theirs, x)
    copy_weights(theirs, ours, x)
    with torch.no_grad():
        expected, got = theirs(x), ours(x)["logits"]
    return Parity(count(ours), count(theirs), (got - expected).abs().max().item(), expected.abs().max().item())


def count(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


@torch.no_grad()
def randomise(network: nn.Module, x: Tensor) -> None:
    """Norms away from the ones and zeros of a fresh network, so that a swapped pair shows; leaves it in eval mode.

    The running statistics are those of `x`: random ones would let the outputs grow without bound.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.uniform_(0.8, 1.2)
        norm.bias.uniform_(-0.1, 0.1)
        norm.momentum = None  # running statistics become the mean over the batches, here of one
    network.train()(x)
    network.eval()


@torch.no_grad()
def copy_weights(source: nn.Module, target: nn.Module, x: Tensor) -> None:
    """Copy all parameters and buffers between two networks of the same layers under different names.

    Layers are paired in the order in which they run, separately for each set of tensor shapes, sides of 1 left out:
    two layers of different shapes may run in another order. Raises ValueError where the layers are not the same.
    """
    ours, theirs = _by_shape(source, x), _by_shape(target, x)
    for shapes in ours.keys() | theirs.keys():
        if len(ours[shapes]) != len(theirs[shapes]):
            raise ValueError(f"{shapes}: {len(ours[shapes])} layers in the source, {len(theirs[shapes])} in the target")
        for layer, twin in zip(ours[shapes], theirs[shapes], strict=True):
            for (_, tensor), (_, other) in zip(_tensors(layer), _tensors(twin), strict=True):
                other.copy_(tensor.reshape(other.shape))


def _by_shape(network: nn.Module, x: Tensor) -> dict[tuple[object, ...], list[nn.Module]]:
    ran: list[nn.Module] = []
    owners = [module for module in network.modules() if any(True for _ in _tensors(module))]
    hooks = [module.register_forward_pre_hook(lambda module, _: ran.append(module)) for module in owners]
    network(x)
    for hook in hooks:
        hook.remove()
    if missed := len(set(owners) - set(ran)):
        raise ValueError(f"{missed} layers with weights did not run")
    layers: dict[tuple[object, ...], list[nn.Module]] = defaultdict(list)
    for module in dict.fromkeys(ran):
        shapes = tuple((name, tuple(side for side in tensor.shape if side > 1)) for name, tensor in _tensors(module))
        layers[shapes].append(module)
    return layers


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only the small networks")
    options = parser.parse_args()
    peers = {name: peer for name, peer in PEERS.items() if peer.quick or not options.quick}
    absent = [name for name in peers if not (ZOO / f"{name}.yaml").exists()]
    networks: dict[str, dict[str, object]] = {}
    largest, same = 0.0, True
    for name, peer in peers.items():
        if name in absent:
            continue
        parity = compare(name, peer)
        largest = max(largest, parity.difference)
        same &= parity.parameters == parity.peer_parameters == peer.parameters
        networks[name] = {"parameters": parity.parameters, "difference": parity.difference, "scale": parity.scale}
        print(name, json.dumps(networks[name]), file=sys.stderr)
    emit(
        "network-parity", value=largest, baseline=TOLERANCE, target="same number of parameters, difference <= 1e-5",
        holds=same and not absent and largest <= TOLERANCE, n=len(networks), networks=networks, absent=absent,
    )  # fmt: skip


if __name__ == "__main__":
    main()
