"""Packed images: encoded files of any size end to end in one file, memory-mapped, and random crops of them as batches.

A folder holds `images.bin` (the files end to end), `index.npy` (`INDEX`: one record per image) and `packed.json` (class
names, sha256 of the index). numpy reads them without this project: `images.bin[offset : offset + bytes]` is a file.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepcv.data.augmentation import Draws, permutation
from deepcv.data.loaders import Batch
from deepcv.data.shards import ShardError
from deepcv.files import atomic_folder, sha256
from deepcv.images import DecodeError, decode, resized_crop

# Sizes are those of the upright image, in pixels.
INDEX = np.dtype([
    ("offset", "<i8"), ("bytes", "<i8"), ("label", "<i8"), ("height", "<i4"), ("width", "<i4"), ("sha256", "u1", 32)
])  # fmt: skip
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # torchvision's RandomResizedCrop
_TRIES = 10
_STEP = 2**20  # far above the steps of an augmentation policy, so that no draw is shared


def write(folder: Path, samples: Iterable[tuple[bytes, int]], classes: tuple[str, ...]) -> None:
    """Pack (encoded image, class number) pairs, in their order; `folder` is replaced once all are written.

    Every image is decoded once. Raises DecodeError that says which one is no image.
    """
    records: list[tuple[object, ...]] = []
    offset = 0
    with atomic_folder(folder) as aside:
        with (aside / "images.bin").open("wb") as blob:
            for number, (encoded, label) in enumerate(samples):
                try:
                    height, width = decode(encoded).shape[:2]
                except DecodeError as error:
                    raise DecodeError(f"image {number}: {error}") from error
                blob.write(encoded)
                digest = np.frombuffer(hashlib.sha256(encoded).digest(), np.uint8)
                records.append((offset, len(encoded), label, height, width, digest))
                offset += len(encoded)
        np.save(aside / "index.npy", np.array(records, INDEX))
        description = {"classes": classes, "bytes": offset, "sha256": sha256(aside / "index.npy")}
        (aside / "packed.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


class PackedImages:
    """What `write` wrote, memory-mapped; an image's checksum is compared when it is read first. Raises ShardError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            description = json.loads((folder / "packed.json").read_text(encoding="utf-8"))
            if sha256(folder / "index.npy") != description["sha256"]:
                raise ShardError(
                    f"{folder / 'index.npy'}: damaged (its sha256 is not the one in packed.json); pack again"
                )
            self.classes: tuple[str, ...] = tuple(description["classes"])
            self.index: NDArray[Any] = np.load(folder / "index.npy", mmap_mode="r")
            size = (folder / "images.bin").stat().st_size
            if size != description["bytes"]:
                raise ShardError(f"{folder / 'images.bin'}: {size} bytes, expected {description['bytes']}; pack again")
            self._blob = np.memmap(folder / "images.bin", np.uint8, mode="r") if size else np.zeros(0, np.uint8)
        except FileNotFoundError as error:
            raise ShardError(f"{error.filename}: missing; pack again") from error
        except (KeyError, TypeError, ValueError) as error:
            raise ShardError(f"{folder / 'packed.json'}: damaged ({error}); pack again") from error
        self._checked = np.zeros(len(self.index), np.bool_)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> bytes:
        """Return one encoded image."""
        record = self.index[number]
        encoded = self._blob[record["offset"] : record["offset"] + record["bytes"]].tobytes()
        if not self._checked[number]:
            if hashlib.sha256(encoded).digest() != record["sha256"].tobytes():
                raise ShardError(f"{self.folder / 'images.bin'}: damaged at image {number}; pack again")
            self._checked[number] = True
        return encoded


class CropLoader:
    """Shuffled batches of random crops, resized to side × side; set `epoch` before each pass. A last partial batch is left out.

    Yields uint8 RGB `(b, 3, side, side)`, channels last in memory, and int64 class numbers `(b,)`, on the CPU.
    """

    def __init__(self, images: PackedImages, *, batch_size: int, side: int = 224, seed: int) -> None:
        self.images = images
        self.batch_size = min(batch_size, len(images))
        self.side = side
        self.seed = seed
        self.epoch = 0
        self._targets = torch.from_numpy(images.index["label"].astype(np.int64))
        self._sizes = torch.from_numpy(np.stack([images.index["height"], images.index["width"]], 1).astype(np.int64))

    def __len__(self) -> int:
        return len(self.images) // self.batch_size if self.batch_size else 0

    def __iter__(self) -> Iterator[Batch]:
        order = permutation(self.seed, self.epoch, len(self.images), torch.device("cpu"))
        for number in range(len(self)):
            index = order[number * self.batch_size : (number + 1) * self.batch_size]
            boxes = crop_boxes(self._sizes[index], Draws(self.seed, self.epoch, index, _STEP))
            batch = np.empty((len(index), self.side, self.side, 3), np.uint8)
            for place, (image, (top, left, height, width)) in enumerate(
                zip(index.tolist(), boxes.tolist(), strict=True)
            ):
                batch[place] = resized_crop(self.images[image], (top, left, height, width), self.side, self.side)
            yield Batch(torch.from_numpy(batch).permute(0, 3, 1, 2), self._targets[index])


def crop_boxes(sizes: Tensor, draws: Draws) -> Tensor:
    """Boxes (top, left, height, width) in images of `sizes` (height, width): int64 (b, 4), from int64 (b, 2).

    The distribution is that of torchvision's RandomResizedCrop: up to ten tries of an area (0.08 to 1 of the image's) and
    a logarithm of the ratio (3/4 to 4/3), each uniform; where none fits, the largest central box of an allowed ratio.
    """
    image_height, image_width = sizes[:, :1], sizes[:, 1:]
    share, ratio = draws.uniform(*range(2 * _TRIES)).double().chunk(2, dim=1)
    area = image_height * image_width * (SCALE[0] + share * (SCALE[1] - SCALE[0]))
    low, high = (math.log(bound) for bound in RATIO)
    ratio = torch.exp(low + ratio * (high - low))
    width, height = torch.sqrt(area * ratio).round().long(), torch.sqrt(area / ratio).round().long()
    fits = (width > 0) & (width <= image_width) & (height > 0) & (height <= image_height)
    first = fits.long().argmax(dim=1, keepdim=True)
    whole = (image_width / image_height).double().clamp(*RATIO)
    widest = torch.minimum(image_width, (image_height * whole).round().long()).clamp(min=1)
    highest = torch.minimum(image_height, (image_width / whole).round().long()).clamp(min=1)
    any_fits = fits.any(dim=1, keepdim=True)
    width = torch.where(any_fits, width.gather(1, first), widest)
    height = torch.where(any_fits, height.gather(1, first), highest)
    free = torch.cat([image_height - height, image_width - width], dim=1)
    place = (draws.bits(2 * _TRIES, 2 * _TRIES + 1) * (free + 1)) >> 32
    centre = torch.div(free, 2, rounding_mode="floor")
    return torch.cat([torch.where(any_fits, place, centre), height, width], dim=1)
