"""Packed images: encoded files of any size end to end in one file, memory-mapped.

A folder holds `images.bin` (the files end to end), `index.npy` (`INDEX`: one record per image) and `packed.json` (class
names, sha256 of the index). numpy reads them without this project: `images.bin[offset : offset + bytes]` is a file.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepcv.errors import DeepcvError
from deepcv.files import atomic_folder, sha256

# Sizes are those of the upright image, in pixels.
INDEX = np.dtype([
    ("offset", "<i8"), ("bytes", "<i8"), ("label", "<i8"), ("height", "<i4"), ("width", "<i4"), ("sha256", "u1", 32)
])  # fmt: skip
_REPAIR = "run `dvc repro preprocess`"


class ShardError(DeepcvError):
    """A shard is missing or damaged."""


class EncodedImage(NamedTuple):
    """An image file, its class number and the size of the upright image in pixels."""

    encoded: bytes
    label: int
    height: int
    width: int


def write(folder: Path, images: Iterable[EncodedImage], classes: tuple[str, ...]) -> None:
    """Pack images in their order, as they are; `folder` is replaced once all are written. Nothing is decoded."""
    with atomic_folder(folder) as aside:
        with (aside / "images.bin").open("wb") as blob:

            def records() -> Iterator[tuple[object, ...]]:
                offset = 0
                for encoded, label, height, width in images:
                    blob.write(encoded)
                    digest = np.frombuffer(hashlib.sha256(encoded).digest(), np.uint8)
                    yield offset, len(encoded), label, height, width, digest
                    offset += len(encoded)

            index: NDArray[Any] = np.fromiter(records(), INDEX)  # 64 bytes of memory an image
        np.save(aside / "index.npy", index)
        description = {"classes": classes, "bytes": int(index["bytes"].sum()), "sha256": sha256(aside / "index.npy")}
        (aside / "packed.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


class PackedImages:
    """What `write` wrote, memory-mapped; an image's checksum is compared when it is read first. Raises ShardError.

    `labels` are what is learned of the images, (n,) or (n, k): their class numbers, unless others are given; `further` are further
    targets by name, (n, k).
    """

    def __init__(
        self, folder: Path, labels: NDArray[Any] | None = None, further: Mapping[str, NDArray[Any]] | None = None
    ) -> None:
        self.folder = folder
        self.further = dict(further or {})
        try:
            description = json.loads((folder / "packed.json").read_text(encoding="utf-8"))
            if sha256(folder / "index.npy") != description["sha256"]:
                raise ShardError(
                    f"{folder / 'index.npy'}: damaged (its sha256 is not the one in packed.json); {_REPAIR}"
                )
            self.classes: tuple[str, ...] = tuple(description["classes"])
            self.index: NDArray[Any] = np.load(folder / "index.npy", mmap_mode="r")
            size = (folder / "images.bin").stat().st_size
            if size != description["bytes"]:
                raise ShardError(f"{folder / 'images.bin'}: {size} bytes, expected {description['bytes']}; {_REPAIR}")
            self._blob = np.memmap(folder / "images.bin", np.uint8, mode="r") if size else np.zeros(0, np.uint8)
        except FileNotFoundError as error:
            raise ShardError(f"{error.filename}: missing; {_REPAIR}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise ShardError(f"{folder / 'packed.json'}: damaged ({error}); {_REPAIR}") from error
        self._checked = np.zeros(len(self.index), np.bool_)
        self.labels: NDArray[Any] = np.asarray(self.index["label"], np.int64) if labels is None else labels

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> bytes:
        """Return one encoded image."""
        record = self.index[number]
        encoded = self._blob[record["offset"] : record["offset"] + record["bytes"]].tobytes()
        if not self._checked[number]:
            if hashlib.sha256(encoded).digest() != record["sha256"].tobytes():
                raise ShardError(f"{self.folder / 'images.bin'}: damaged at image {number}; {_REPAIR}")
            self._checked[number] = True
        return encoded
