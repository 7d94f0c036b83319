"""The loader of small images: DeepCV's gather against per-sample DataLoaders of transforms.v2 on tensors and on Pillow images.

    python -m benchmarks.loader [--quick]

All sides: 32×32 photographs in memory, shuffled, flip, crop from 4 pixels of padding (reflected), float32 batches of 256,
normalised as batches (ours in channels-last memory). One core, CPU seconds of all processes, a DataLoader with 0, 1 and 2
workers (its best counts).
"""

import argparse
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torchvision.transforms import v2

from benchmarks.small_images import BATCH, SIDE, judge, normalise, one_core, photographs
from deepcv.data.augmentation import Augmentation
from deepcv.data.loaders import TrainLoader
from deepcv.data.shards import Split


def deepcv(loader: TrainLoader) -> Iterator[Tensor]:
    """One epoch of DeepCV's batches, normalised as its networks do it."""
    return (normalise(batch.images_nchw) for batch in loader)


def transform(*last: Callable[[object], object]) -> Callable[[object], Tensor]:
    """The per-sample pipeline of transforms.v2."""
    return v2.Compose([v2.RandomHorizontalFlip(), v2.RandomCrop(SIDE, padding=4, padding_mode="reflect"), *last])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer images and rounds, within 60 s")
    quick = parser.parse_args().quick
    one_core()
    count, rounds = (4_096, 2) if quick else (16_384, 5)
    images_nhwc = photographs(count)
    split = Split(images_nhwc.numpy(), torch.zeros(count, dtype=torch.int64).numpy())
    loader = TrainLoader(
        split, batch_size=BATCH, augmentation=Augmentation(flip=True, shift=4), seed=0, device=torch.device("cpu")
    )
    judge(
        "loader", lambda: deepcv(loader), images_nhwc, rounds,
        on_tensors=transform(), on_pictures=transform(v2.PILToTensor()), at_least=(5, 8),
    )  # fmt: skip


if __name__ == "__main__":
    main()
