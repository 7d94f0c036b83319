"""Networks against each other on CIFAR-10-JPEG: the same images, recipe and epochs, test accuracy beside multiply-adds.

    python -m benchmarks.architectures --path cifar10-jpeg.tar.gz hrnet-small resnet-9:width=24 --images 10000 --epochs 8 --seeds 0 1 2

A network is a file, or a name of the zoo, with its parameters behind a colon; the last one named is the baseline. Training uses
the first `--images` of a shuffled train split. `holds`: the first network is at most 0.3 points below the baseline.
"""

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.result import emit
from benchmarks.trainings import config_of, prepared, test_accuracy, with_train_images
from deepcv.data.shards import Dataset
from deepcv.nn.spec import NetworkSpec, build, load
from deepcv.nn.spec.expand import ZOO
from deepcv.training.fit import fit

POINTS = -0.3


def named(text: str) -> tuple[str, NetworkSpec]:
    """A network of the command line: `resnet-9:width=24,depth=2`."""
    name, _, given = text.partition(":")
    parameters = {
        key: yaml.safe_load(value) for key, _, value in (one.partition("=") for one in given.split(",") if one)
    }
    path = Path(name) if name.endswith(".yaml") else ZOO / f"{name}.yaml"
    return text, load(path, parameters)


def mega_macs(spec: NetworkSpec, shards: Dataset) -> float:
    """Millions of multiply-adds of one image."""
    network = build(spec, shards.input_shape, len(shards.classes)).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *shards.input_shape))
    return counter.get_total_flops() / 2e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", help="NAME or FILE.yaml, with parameters: resnet-9:width=24")
    parser.add_argument("--path", type=Path, required=True, help="the tar of CIFAR-10-JPEG")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--lr", type=float, default=0.015)
    parser.add_argument("--quick", action="store_true", help="1,000 images, one epoch, one seed")
    options = parser.parse_args()
    if options.quick:
        options.images, options.epochs, options.seeds = 1_000, 1, options.seeds[:1]
    networks = dict(named(text) for text in options.networks)
    with tempfile.TemporaryDirectory() as name:
        shards = with_train_images(prepared(options.path, Path(name)), options.images)
        base = config_of("cifar10-jpeg")
        table = {}
        for text, spec in networks.items():
            started = time.process_time()
            found = [
                test_accuracy(
                    fit(spec, shards, replace(base, epochs=options.epochs, lr=options.lr, seed=seed, threads=1)), shards
                )
                for seed in options.seeds
            ]
            table[text] = {
                "accuracy": round(statistics.mean(found), 4), "seeds": [round(one, 4) for one in found],
                "mega_macs": round(mega_macs(spec, shards), 1), "cpu_s": round(time.process_time() - started),
            }  # fmt: skip
            print(text, table[text], file=sys.stderr, flush=True)
    first, last = (table[text]["accuracy"] for text in (options.networks[0], options.networks[-1]))
    emit(
        "architectures", value=first, baseline=last, n=len(options.seeds), target=f">= {POINTS} points of the baseline",
        holds=(first - last) * 100 >= POINTS, points=round((first - last) * 100, 2), images=options.images,
        epochs=options.epochs, networks=table,
    )  # fmt: skip


if __name__ == "__main__":
    main()
