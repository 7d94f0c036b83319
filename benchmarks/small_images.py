"""What the benchmarks of loaders share: small photographs, DeepCV's side, a DataLoader's side, CPU seconds of both."""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.result import cpu_s, emit
from deepcv.training.hardware import keep_freed_memory

SIDE = 32
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
BATCH = 256


def photographs(count: int) -> Tensor:
    """Patches of two photographs, uint8 (count, 32, 32, 3)."""
    pictures = load_sample_images().images
    corners = np.random.default_rng(0).integers(0, 380, (count, 2))
    patches = [pictures[n % 2][y : y + SIDE, x : x + SIDE] for n, (y, x) in enumerate(corners)]
    return torch.from_numpy(np.stack(patches))


class PerSample(Dataset[Tensor]):
    """Images one by one, each through a transform: tensors CHW or Pillow images, whichever `images` holds."""

    def __init__(self, images: list[Any], transform: Callable[[Any], Tensor]) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> Tensor:
        return self.transform(self.images[number])


def batches(images: list[Any], transform: Callable[[Any], Tensor], workers: int) -> Iterator[Tensor]:
    """A shuffled epoch of a DataLoader, normalised batch by batch: a third faster than image by image."""
    for batch in DataLoader(PerSample(images, transform), batch_size=BATCH, shuffle=True, num_workers=workers):
        yield normalise(batch)


def normalise(batch_nchw: Tensor) -> Tensor:
    """Bring values 0–255 to the network's input, float32."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in (MEAN, STD))
    return batch_nchw.float().sub_(mean).div_(std)


def one_core() -> None:
    """Keep this process and its children on one core, with one thread, and the memory they free, as `fit` does."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    keep_freed_memory()


def us_per_image(epoch: Callable[[], Iterator[Tensor]], dtype: torch.dtype) -> float:
    """CPU microseconds per image of all processes for one epoch; workers end with their epoch."""
    start, count = cpu_s(), 0
    for batch in epoch():
        assert batch.dtype == dtype  # noqa: S101 - all sides end with the same
        count += len(batch)
    return (cpu_s() - start) / count * 1e6


def compare(
    sides: dict[str, Callable[[], Iterator[Tensor]]], rounds: int, dtype: torch.dtype = torch.float32
) -> dict[str, float]:
    """Median CPU microseconds per image of each side; the sides take turns, after a warm-up of one round."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    started = time.monotonic()
    for number in range(rounds + 1):
        for name, epoch in sides.items():
            spent = us_per_image(epoch, dtype)
            if number:
                times[name].append(spent)
            print(f"{time.monotonic() - started:6.1f} s  {name}: {spent:.1f} us/image", flush=True)
    return {name: statistics.median(values) for name, values in times.items()}


def judge(
    name: str, epoch: Callable[[], Iterator[Tensor]], images_nhwc: Tensor, rounds: int, *,
    on_tensors: Callable[[Any], Tensor], on_pictures: Callable[[Any], Tensor], at_least: tuple[float, float],
) -> None:  # fmt: skip
    """Compare DeepCV's epoch with per-sample transforms of tensors (v2) and of Pillow images; print the result's line."""
    tensors = list(images_nhwc.permute(0, 3, 1, 2).contiguous())
    pictures = [Image.fromarray(image.numpy()) for image in images_nhwc]
    sides = {"deepcv": epoch}
    for workers in (0, 1, 2):
        sides[f"v2, {workers} workers"] = partial(batches, tensors, on_tensors, workers)
        sides[f"Pillow, {workers} workers"] = partial(batches, pictures, on_pictures, workers)
    medians = compare(sides, rounds)
    ours = medians["deepcv"]
    v2, pillow = (min(us for side, us in medians.items() if side.startswith(peer)) for peer in ("v2", "Pillow"))
    emit(
        name, value=1e6 / ours, baseline=1e6 / v2, n=rounds,
        target=f"images/CPU-s >= {at_least[0]:g} x transforms.v2 (tensor) and >= {at_least[1]:g} x Pillow",
        holds=v2 / ours >= at_least[0] and pillow / ours >= at_least[1],
        ratio_pillow=pillow / ours, us_per_image=medians,
    )  # fmt: skip
