"""sha256 of the weights after two short epochs of every training that docs/results.md has long figures of.

    python -m benchmarks.fingerprints --cifar SHARDS --fashion SHARDS > now
    PYTHONPATH=OTHER_CHECKOUT python benchmarks/fingerprints.py --cifar SHARDS --fashion SHARDS > then     # from that checkout's folder
    diff then now

Where a line is the same, so are the bits of that training in both checkouts on this machine, and the figures of one hold for the
other. SHARDS are those of `benchmarks.shards`. One thread; a minute and a half.
"""

import argparse
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks import blur_curriculum, contrastive, verification
from benchmarks.embeddings import RESNET, config, network, of_split
from benchmarks.result import ROOT
from benchmarks.trainings import config_of, network_of, params_of, with_train_images
from deepcv.data.loaders import Views
from deepcv.data.shards import Dataset, open_shards
from deepcv.nn.spec import NetworkSpec, load
from deepcv.training.config import TrainConfig
from deepcv.training.fit import fit
from deepcv.training.losses import Term
from deepcv.training.schedules import Piecewise

IMAGES, VAL_IMAGES = 1500, 500
RECIPES = ("cifar10-jpeg-fast", "cifar10-jpeg-robust", "fashion-mnist", "fashion-mnist-accurate")
UNUSED = contrastive.UNUSED
Training = tuple[str, NetworkSpec, Dataset, TrainConfig]


def few(path: Path) -> Dataset:
    """Some images of a dataset."""
    shards = with_train_images(open_shards(path), IMAGES)
    return replace(shards, val=of_split(shards.val, np.arange(min(VAL_IMAGES, len(shards.val.labels)))))


def trainings(cifar: Dataset, fashion: Dataset) -> Iterator[Training]:
    """Each with a name."""
    for example in RECIPES:
        params = params_of(example)
        spec = load(ROOT / params.network, dict(params.network_parameters))
        yield example, spec, cifar if example.startswith("cifar") else fashion, replace(config_of(example), threads=1)
    simclr = Term("nt_xent", "embedding", options={"temperature": 0.2})
    yield "simclr", network(RESNET, width=8), fashion, config(
        batch_size=256, optimizer="muon", lr=0.01, weight_decay=0.1, augmentation=contrastive.STRONG, views=Views(2),
        losses=(UNUSED["logits"], UNUSED["features"], simclr),
    )  # fmt: skip
    for side in ("cross_entropy", "augmix", "jensen_shannon", "triplet"):
        losses = [Term("cross_entropy"), UNUSED["features"], UNUSED["embedding"]]
        if side == "jensen_shannon":
            losses.append(Term("jensen_shannon"))
        if side == "triplet":
            options = {"distance": "cosine", "mining": "semi_hard"}
            losses[2] = Term("triplet", "embedding", weight=0.1, options=options)
        mixed = side in ("augmix", "jensen_shannon")
        yield f"term {side}", network(RESNET, width=8), fashion, config(
            batch_size=128, lr=0.004, losses=tuple(losses),
            augmentation=contrastive.AUGMIX if mixed else contrastive.Recipe(),
            views=Views(3, "clean") if side == "jensen_shannon" else Views(),
        )  # fmt: skip
    for loss in ("triplet", "supcon"):
        yield f"siamese {loss}", network(verification.SIAMESE, width=32), fashion, config(
            batch_size=512, lr=0.003, augmentation=verification.AUGMENTED,
            losses=(Term("none", "logits"), verification.LOSSES[loss]),
        )  # fmt: skip
    plain = replace(config_of("cifar10-jpeg"), threads=1)
    for name, schedules in blur_curriculum.SCHEDULES.items():
        blurred = load(ROOT / "benchmarks/blur_curriculum.yaml", {"width": 8})
        yield f"blur {name}", blurred, cifar, replace(plain, schedules=dict(schedules))
    sgd = replace(plain, optimizer="sgd", weight_decay=5e-4, label_smoothing=0.0, batch_size=128)
    decay = {"lr": Piecewise(((0.0, 0.1), (0.5, 0.01)), "step")}
    for name, shards in (("cifar", cifar), ("fashion", fashion)):
        small = network_of("networks/small.yaml:width=8")
        yield f"one cycle {name}", small, shards, sgd
        yield f"step decay {name}", small, shards, replace(sgd, schedules=decay)


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, required=True, help="prepared shards of CIFAR-10-JPEG")
    parser.add_argument("--fashion", type=Path, required=True, help="prepared shards of Fashion-MNIST")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, spec, shards, settings in trainings(few(options.cifar), few(options.fashion)):
        weights = fit(spec, shards, replace(settings, epochs=2)).classifier.state_dict().values()
        content = b"".join(value.numpy().tobytes() for value in weights)
        print(f"{hashlib.sha256(content).hexdigest()[:12]}  {name}", flush=True)


if __name__ == "__main__":
    main()
