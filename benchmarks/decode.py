"""Large JPEGs to random crops: DeepCV's packed loader against torchvision's ImageFolder and RandomResizedCrop on Pillow.

    python -m benchmarks.decode [--quick]

Both sides: JPEGs of at least 500×375 (parts of two photographs, quality 90, not enlarged), shuffled, decoded, random resized
crop to 224, uint8 batches of 64 (normalisation lies inside the network; after it both cost the same). One core, CPU seconds
of all processes; the DataLoader with 0, 1 and 2 workers (its best counts). Further figures are for 2560×1708 and less,
where decoding is reduced. The pixels differ: Pillow filters with a triangle as wide as it shrinks, DeepCV interpolates
linearly below a shrinkage of 2 and averages areas above, and a reduced box is rounded to the reduced pixels;
`mean_abs_difference` is in grey levels, on the same boxes.
"""

import argparse
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from benchmarks.result import emit
from benchmarks.small_images import compare, one_core
from deepcv.data.augmentation import Augmentation, Draws
from deepcv.data.crops import crop_boxes, random_crops
from deepcv.data.loaders import TrainLoader
from deepcv.data.packed import EncodedImage, PackedImages, write
from deepcv.images import decode, resized_crop

SIDE, BATCH = 224, 64
TARGET = 1.6


def write_pictures(folder: Path, count: int, enlarge: int = 1) -> list[Path]:
    """Write JPEGs of two classes, 500…640 × 375…427 pixels before they are enlarged."""
    pictures, random, paths = load_sample_images().images, np.random.default_rng(0), []
    for number in range(count):
        picture = pictures[number % 2]
        height, width = random.integers(375, 428), random.integers(500, 641)
        top, left = random.integers(0, 428 - height), random.integers(0, 641 - width)
        part = picture[top : top + height, left : left + width, ::-1]
        part = cv2.resize(part, None, fx=enlarge, fy=enlarge, interpolation=cv2.INTER_CUBIC) if enlarge > 1 else part
        path = folder / f"class{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".jpg", part, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
        paths.append(path)
    return sorted(paths)


def deepcv(loader: TrainLoader) -> Iterator[Tensor]:
    """One epoch of DeepCV's batches."""
    return (batch.images_nchw for batch in loader)


def peer(images: ImageFolder, workers: int) -> Iterator[Tensor]:
    """One epoch of torchvision's."""
    for batch, _ in DataLoader(images, batch_size=BATCH, shuffle=True, num_workers=workers, drop_last=True):
        yield batch


def difference(paths: list[Path]) -> float:
    """Mean absolute difference to Pillow's crops of the same boxes, in grey levels."""
    sums = []
    for number, path in enumerate(paths):
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
        size = torch.tensor([[picture.height, picture.width]])
        top, left, height, width = crop_boxes(size, Draws(0, 0, torch.tensor([number])))[0].tolist()
        theirs = np.asarray(functional.resized_crop(picture, top, left, height, width, [SIDE, SIDE]), np.float64)
        sums.append(np.abs(resized_crop(path.read_bytes(), (top, left, height, width), SIDE, SIDE) - theirs).mean())
    return float(np.mean(sums))


def measure(folder: Path, paths: list[Path], rounds: int) -> tuple[float, float, dict[str, float]]:
    """Images per CPU second of DeepCV and of its peer, and the medians of all sides in µs per image."""
    images = ImageFolder(folder, v2.Compose([v2.RandomResizedCrop(SIDE), v2.PILToTensor()]))
    with tempfile.TemporaryDirectory() as packed:
        files = ((path.read_bytes(), int(path.parent.name[-1])) for path in paths)
        given = (EncodedImage(encoded, label, *decode(encoded).shape[:2]) for encoded, label in files)
        write(Path(packed) / "packed", given, ("a", "b"))
        recipe = {"height": SIDE, "width": SIDE, "channels": 3}
        crops = random_crops(PackedImages(Path(packed) / "packed"), recipe, seed=0)
        loader = TrainLoader(crops, batch_size=BATCH, augmentation=Augmentation(), seed=0, device=torch.device("cpu"))
        medians = compare(
            {"deepcv": lambda: deepcv(loader)}
            | {f"torchvision, {workers} workers": partial(peer, images, workers) for workers in (0, 1, 2)},
            rounds,
            torch.uint8,
        )
    ours = medians.pop("deepcv")
    return 1e6 / ours, 1e6 / min(medians.values()), {"deepcv": ours, **medians}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer images and rounds, within 60 s")
    quick = parser.parse_args().quick
    one_core()
    cv2.setNumThreads(1)
    count, rounds = (192, 5) if quick else (768, 7)
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder, "small"), Path(folder, "large")
        paths = write_pictures(small, count)
        value, baseline, us_per_image = measure(small, paths, rounds)
        more: dict[str, object] = {"mean_abs_difference": difference(paths[:64])}
        if not quick:
            paths = write_pictures(large, BATCH * 2, enlarge=4)
            large_value, large_baseline, _ = measure(large, paths, 5)
            more |= {"ratio_large": large_value / large_baseline, "mean_abs_difference_large": difference(paths[:64])}
    emit(
        "decode", value=value, baseline=baseline, n=rounds,
        target=f"images/CPU-s >= {TARGET} x ImageFolder + Pillow + RandomResizedCrop(224)",
        holds=value / baseline >= TARGET, us_per_image=us_per_image, **more,
    )  # fmt: skip


if __name__ == "__main__":
    main()
