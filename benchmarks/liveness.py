"""Memory at run time: what a YAML network holds at its worst moment, against the same network written by hand.

    python -m benchmarks.liveness [--quick]

`peak` counts the bytes of all storages that operations made and that are still alive, seen by a TorchDispatchMode: in a pass without
gradients and in a training step. `checkpoint` compares densenet-121 of the zoo with `checkpoint: true` on its dense layers and
without: the training peak, and whether gradients are equal bit for bit. That live values are optimal for the order of the nodes
is a test, tests/nn/test_liveness.py.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.network_speed import YAML, ByHand
from benchmarks.result import emit
from deepcv.nn.spec import build, load
from deepcv.nn.spec.expand import ZOO

RATIO, SAVED = 1.02, 0.4


class Storages(TorchDispatchMode):
    """Follows every storage that an operation makes; `peak` is the largest sum of bytes alive, `live` how many were after each."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.known: set[int] = set()
        self.peak = 0
        self.live: list[int] = []

    def follow_not(self, *tensors: Tensor) -> None:
        """Leave out what was there before: inputs and weights."""
        self.known.update(tensor.untyped_storage()._cdata for tensor in tensors)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # torch's own form
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (key := tensor.untyped_storage()._cdata) not in self.known:
                storage = tensor.untyped_storage()
                self.alive[key] = (StorageWeakRef(storage), storage.nbytes())
        self.alive = {key: (ref, size) for key, (ref, size) in self.alive.items() if not ref.expired()}
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))
        self.live.append(len(self.alive))
        return result


def peak(network: nn.Module, images: Tensor, *, training: bool) -> int:
    """Bytes alive at the worst moment of one pass, or of one forward and backward."""
    network.train(training).zero_grad(set_to_none=True)
    storages = Storages()
    storages.follow_not(images, *network.parameters(), *network.buffers())
    with storages, torch.set_grad_enabled(training):
        output = network(images)["logits"]
        if training:
            F.cross_entropy(output, torch.zeros(len(images), dtype=torch.int64)).backward()
    return storages.peak


def checkpointing(size: int, batch: int) -> dict[str, Any]:
    """Training peaks of densenet-121 with all values kept and with dense layers computed again; whether gradients are equal."""
    images = torch.randn(batch, 3, size, size)
    peaks, gradients = [], []
    for again in (False, True):
        torch.manual_seed(0)
        network = build(load(ZOO / "densenet-121.yaml", {"checkpoint": again}), (3, size, size), 10)
        peaks.append(peak(network, images, training=True))
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
    equal = all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())  # type: ignore[arg-type]
    return {"kept_mb": round(peaks[0] / 1e6, 1), "again_mb": round(peaks[1] / 1e6, 1),
            "saved": round(1 - peaks[1] / peaks[0], 3), "equal_gradients": equal}  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller images")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "net.yaml")
        path.write_text(YAML)
        torch.manual_seed(0)
        ours = build(load(path), (3, 32, 32), 10)
    hand = ByHand(32, 10)
    images = torch.randn(8, 3, 32, 32)
    ratios = {
        name: peak(ours, images, training=training) / peak(hand, images, training=training)
        for name, training in (("no_grad", False), ("training", True))
    }
    densenet = checkpointing(64 if quick else 128, 4 if quick else 8)
    worst = max(ratios.values())
    emit(
        "liveness", value=worst, baseline=1.0, n=1,
        target=f"peak <= {RATIO} x by hand; checkpoint saves >= {SAVED:.0%} of the training peak with equal gradients",
        holds=worst <= RATIO and densenet["saved"] >= SAVED and densenet["equal_gradients"],
        peaks={name: round(ratio, 4) for name, ratio in ratios.items()}, checkpoint=densenet,
    )  # fmt: skip


if __name__ == "__main__":
    main()
