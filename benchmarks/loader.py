"""The loader of small images: DeepCV's gather against per-sample DataLoaders of transforms.v2 on tensors and on Pillow images.

    python -m benchmarks.loader [--quick]

All sides: 32×32 photographs in memory, shuffled, flip, crop from 4 pixels of padding (reflected), float32 batches of 256,
normalised as batches (ours in channels-last memory). One core, CPU seconds of all processes, a DataLoader with 0, 1 and 2
workers (its best counts).
"""

import argparse
from collections.abc import Callable, Iterator

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from benchmarks.result import emit
from benchmarks.small_images import BATCH, SIDE, batches, compare, normalise, one_core, photographs
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
    tensors = list(images_nhwc.permute(0, 3, 1, 2).contiguous())
    pictures = [Image.fromarray(image.numpy()) for image in images_nhwc]
    split = Split(images_nhwc.numpy(), torch.zeros(count, dtype=torch.int64).numpy())
    loader = TrainLoader(
        split, batch_size=BATCH, augmentation=Augmentation(flip=True, shift=4), seed=0, device=torch.device("cpu")
    )
    on_tensors, on_pictures = transform(), transform(v2.PILToTensor())
    sides: dict[str, Callable[[], Iterator[Tensor]]] = {"deepcv": lambda: deepcv(loader)}
    for workers in (0, 1, 2):
        sides[f"v2, {workers} workers"] = lambda w=workers: batches(tensors, on_tensors, w)  # type: ignore[misc]
        sides[f"Pillow, {workers} workers"] = lambda w=workers: batches(pictures, on_pictures, w)  # type: ignore[misc]
    medians = compare(sides, rounds)
    ours = medians["deepcv"]
    best = {peer: min(us for name, us in medians.items() if name.startswith(peer)) for peer in ("v2", "Pillow")}
    emit(
        "loader", value=1e6 / ours, baseline=1e6 / best["v2"], n=rounds,
        target="images/CPU-s >= 5 x transforms.v2 (tensor) and >= 8 x Pillow",
        holds=best["v2"] / ours >= 5 and best["Pillow"] / ours >= 8,
        ratio_pillow=best["Pillow"] / ours, us_per_image=medians,
    )  # fmt: skip


if __name__ == "__main__":
    main()
