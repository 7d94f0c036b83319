"""Networks against each other on CIFAR-10-JPEG: the same images, recipe and epochs, test accuracy beside multiply-adds.

    python -m benchmarks.architectures --path cifar10-jpeg.tar.gz hrnet-small resnet-9:width=37 --images 10000 --epochs 8 --seeds 0 1 2

A network is a file, or a name of the zoo, with its parameters behind a colon; the last one named is the baseline. Training uses
the first `--images` of a shuffled train split. `holds`: the first network is at most 0.3 points below the baseline. On a GPU
`--jobs 6` trains six at a time.
"""

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.result import emit
from benchmarks.trainings import config_of, in_parallel, network_of, prepared, test_accuracy, with_train_images
from deepcv.data.shards import Dataset
from deepcv.nn.spec import NetworkSpec, build
from deepcv.training.config import TrainConfig
from deepcv.training.fit import fit

POINTS = -0.3


def mega_macs(spec: NetworkSpec, shards: Dataset) -> float:
    """Millions of multiply-adds of one image."""
    network = build(spec, shards.input_shape, len(shards.classes)).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *shards.input_shape))
    return counter.get_total_flops() / 2e6


def trained(shards: Dataset, base: TrainConfig, job: tuple[str, int]) -> tuple[float, float]:
    """Test accuracy of one network with one seed, and the seconds that it took."""
    text, seed = job
    started = time.perf_counter()
    accuracy = test_accuracy(fit(network_of(text), shards, replace(base, seed=seed, threads=1)), shards)
    seconds = time.perf_counter() - started
    print(f"{text} seed {seed}: test {accuracy:.4f} in {seconds:.0f} s", file=sys.stderr, flush=True)
    return accuracy, seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", help="NAME or FILE.yaml, with parameters: resnet-9:width=24")
    parser.add_argument("--path", type=Path, required=True, help="the tar of CIFAR-10-JPEG, or a folder of shards")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--optimizer", default="muon")
    parser.add_argument("--lr", type=float, default=0.015)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--quick", action="store_true", help="1,000 images, one epoch, one seed")
    options = parser.parse_args()
    if options.quick:
        options.images, options.epochs, options.seeds = 1_000, 1, options.seeds[:1]
    base = replace(
        config_of("cifar10-jpeg"), epochs=options.epochs, batch_size=options.batch_size, optimizer=options.optimizer,
        lr=options.lr, weight_decay=options.weight_decay,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        shards = with_train_images(prepared(options.path, Path(name)), options.images)
        jobs = [(text, seed) for text in options.networks for seed in options.seeds]
        found = dict(zip(jobs, in_parallel(partial(trained, shards, base), jobs, options.jobs), strict=True))
        table = {}
        for text in options.networks:
            accuracies, seconds = zip(*(found[text, seed] for seed in options.seeds), strict=True)
            table[text] = {
                "accuracy": round(statistics.mean(accuracies), 4), "seeds": [round(one, 4) for one in accuracies],
                "mega_macs": round(mega_macs(network_of(text), shards), 1), "seconds": round(sum(seconds)),
            }  # fmt: skip
    first, last = (table[text]["accuracy"] for text in (options.networks[0], options.networks[-1]))
    emit(
        "architectures", value=first, baseline=last, n=len(options.seeds), target=f">= {POINTS} points of the baseline",
        holds=(first - last) * 100 >= POINTS, points=round((first - last) * 100, 2), images=options.images,
        epochs=options.epochs, batch_size=options.batch_size, optimizer=options.optimizer, lr=options.lr,
        weight_decay=options.weight_decay, networks=table,
    )  # fmt: skip


if __name__ == "__main__":
    main()
