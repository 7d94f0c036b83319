"""Training speed of zoo networks on a GPU: HRNet-W18 against timm's, and a compiled ResNet-18 against torchvision's, compiled.

    python -m benchmarks.network_gpu [eager] [compiled] [--batch-size 128 --units 7 --steps 6 --quick]

Images a second of forward, cross entropy, backward and a step of SGD, in bf16 autocast and channels last, on images of 224×224 that lie
on the GPU. Both sides and a control, a second copy of the peer, run in turn; ratios are of units that follow each other, their
median counts. `value` is the smaller ratio. `holds`: each is at least 1, or within what the control differs from its like in nine of
ten units.
"""

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.result import emit
from deepcv.nn.spec import build, load
from deepcv.nn.spec.expand import ZOO

CLASSES = 1000


def zoo(name: str, side: int) -> nn.Module:
    """A network of the zoo, which answers a mapping."""
    return build(load(ZOO / f"{name}.yaml"), (3, side, side), CLASSES)


def timm_hrnet() -> nn.Module:
    """timm's HRNet-W18."""
    import timm  # late: for this part alone

    made: nn.Module = timm.create_model("hrnet_w18", num_classes=CLASSES)
    return made


def torchvision_resnet() -> nn.Module:
    """torchvision's ResNet-18."""
    import torchvision  # late: for this part alone

    made: nn.Module = torchvision.models.resnet18(weights=None, num_classes=CLASSES)
    return made


def stepper(network: nn.Module, images: Tensor, backend: str) -> Callable[[], None]:
    """One training step of a network on one batch, compiled by a backend where one is named."""
    network = network.to(images.device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    model: Callable[[Tensor], Any] = torch.compile(network, backend=backend) if backend else network
    labels = torch.arange(len(images), device=images.device) % CLASSES

    def step() -> None:
        with torch.autocast(images.device.type, torch.bfloat16):
            outputs = model(images)
            logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs
            loss = nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def seconds_of(step: Callable[[], None], steps: int) -> float:
    """Seconds of so many steps, to the end of the last one on the GPU."""
    synchronise()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    synchronise()
    return time.perf_counter() - started


def synchronise() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compare(
    ours: nn.Module, peer: nn.Module, images: Tensor, units: int, steps: int, backend: str = ""
) -> dict[str, Any]:
    """Images a second of both, the ratio of the rates, and that of a second copy of the peer to the first."""
    networks = {"ours": ours, "peer": peer, "control": copy.deepcopy(peer)}
    started = time.perf_counter()
    sides = {name: stepper(network, images, backend) for name, network in networks.items()}
    for step in sides.values():
        seconds_of(step, 3)
    warm_up_s = time.perf_counter() - started
    spent: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for unit in range(units):
        for name in names[unit % 3 :] + names[: unit % 3]:
            spent[name].append(seconds_of(sides[name], steps))
    ratios, controls = (
        [peer_s / side_s for side_s, peer_s in zip(spent[side], spent["peer"], strict=True)]
        for side in ("ours", "control")
    )
    ratio, lowest = statistics.median(ratios), statistics.quantiles(controls, n=10, method="inclusive")[0]
    rates = {f"{name}_rate": round(len(images) * steps / statistics.median(spent[name]), 1) for name in names}
    return {
        **rates, "ratio": round(ratio, 4), "ratios": [round(one, 4) for one in ratios],
        "control": round(statistics.median(controls), 4), "control_p10": round(lowest, 4),
        "holds": ratio >= min(1.0, lowest), "warm_up_s": round(warm_up_s, 1),
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="eager, compiled; both where none is named")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--units", type=int, default=7, help="of each side")
    parser.add_argument("--steps", type=int, default=6, help="of a unit")
    parser.add_argument(
        "--quick", action="store_true", help="2 images of 64×64, three units of a step, not really compiled"
    )
    options = parser.parse_args()
    batch_size, side, units, steps, backend = options.batch_size, 224, options.units, options.steps, "inductor"
    if options.quick:
        batch_size, side, units, steps, backend = 2, 64, 3, 1, "aot_eager"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = torch.randn(batch_size, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
    parts = {
        "eager": lambda: compare(zoo("hrnet-w18", side), timm_hrnet(), images, units, steps),
        "compiled": lambda: compare(zoo("resnet-18", side), torchvision_resnet(), images, units, steps, backend),
    }
    found = {}
    for part in options.parts or parts:
        found[part] = parts[part]()
        print(part, found[part], file=sys.stderr, flush=True)
    emit(
        "network-gpu", value=min(one["ratio"] for one in found.values()), baseline=1.0, n=units,
        target="images a second >= those of the peer, or within what its copy differs from it",
        holds=all(one["holds"] for one in found.values()), batch_size=batch_size, side=side, steps=steps, **found,
    )  # fmt: skip


if __name__ == "__main__":
    main()
