"""Shards: the prepared images of each split as plain .npy files, memory-mapped when they are read.

`data/shards/` holds `<split>_images.npy` (uint8, images × height × width × channels), `<split>_labels.npy` (see `Split`) and
`dataset.json` (class names, image recipe, mean and std of the train split per channel in 0–1, sha256 of each file, what is
learned where it is not a class). Further targets, where there are any, are `<split>_labels_1.npy`, …, described in `dataset.json` in
their order: not every column's name can be a file's. Where the train split was stored encoded, the folder `train/` stands in for
its images: see `packed`. numpy reads all of them without this project.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcv.data.packed import PackedImages, ShardError
from deepcv.files import sha256
from deepcv.task import CLASSIFICATION, FurtherTarget, Task

SPLITS = ("train", "val", "test")
TRAIN_FOLDER = "train"  # of encoded images
_PACKED = f"{TRAIN_FOLDER}/packed.json"
_CHUNK_BYTES = 2**22  # of uint8; counting needs a few times as much

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation per channel, on the scale 0–1


@dataclass(frozen=True)
class Split:
    """Images `(n, height, width, channels)` uint8 and what is learned of them, both memory-mapped.

    `labels` are class numbers `(n,)` int64, or `(n, k)` float32: 1 for each of k labels that is there and 0 for others, or k numbers.
    `further` are the further targets by name, each (n, k) float32 as well.
    """

    images_nhwc: NDArray[np.uint8]
    labels: NDArray[Any]
    further: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """Prepared splits with what is needed to read them; `digest` identifies their whole content.

    `classes` are the names of what `task` learns: of classes, labels or numbers. `further` targets have names of their own.
    """

    name: str
    classes: tuple[str, ...]
    test_digest: str
    recipe: Mapping[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str
    train: Split | PackedImages
    val: Split
    test: Split
    task: Task = CLASSIFICATION
    further: tuple[FurtherTarget, ...] = ()

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return int(self.recipe["channels"]), int(self.recipe["height"]), int(self.recipe["width"])


def create_array(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> NDArray[Any]:
    """Create a .npy file to be filled in place, its blocks taken at once. Raises OSError where the disk has not so many.

    Otherwise a full disk would end the process by SIGBUS, at whichever pixel met it.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def labels_file(split: str, place: int = 0) -> str:
    """Name of the file of what is learned of a split: 0 the main target, 1, 2, … the further ones."""
    return f"{split}_labels_{place}.npy" if place else f"{split}_labels.npy"


def write_split(
    folder: Path, split: str, images: Iterable[NDArray[np.uint8]], labels: Iterable[int], shape: tuple[int, ...]
) -> None:
    """Write one split; `shape` is (n, height, width, channels), the images come one by one."""
    packed = create_array(folder / f"{split}_images.npy", np.uint8, shape)
    for position, image_hwc in enumerate(images):
        packed[position] = image_hwc
    np.save(folder / f"{split}_labels.npy", np.fromiter(labels, np.int64, count=shape[0]))


def write_description(
    folder: Path, *, name: str, classes: tuple[str, ...], test_digest: str, recipe: Mapping[str, Any],
    statistics: Statistics | None = None, task: Task = CLASSIFICATION, further: Sequence[FurtherTarget] = (),
) -> None:  # fmt: skip
    """Write dataset.json once all splits of `folder` are written; numbers are measured, on the train split, here.

    `statistics` are those of the train split alone; they must be given where it is stored encoded.
    """
    mean, std = statistics or channel_statistics(np.load(folder / "train_images.npy", mmap_mode="r"))
    files = {path.name: sha256(path) for path in sorted(folder.glob("*.npy"))}
    if (packed := folder / _PACKED).exists():  # it holds the digest of the index, and that the digests of the images
        files[_PACKED] = sha256(packed)
    description = {
        "name": name, "classes": classes, "test_digest": test_digest, "recipe": dict(recipe),
        "mean": mean, "std": std, "sha256": files, **_measured(task, folder).stored(),
    }  # fmt: skip
    if further:
        description["further"] = [
            replace(target, task=_measured(target.task, folder, place)).stored()
            for place, target in enumerate(further, start=1)
        ]
    (folder / "dataset.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def channel_statistics(images_nhwc: NDArray[np.uint8]) -> Statistics:
    """Mean and standard deviation per channel over all pixels, on the scale 0–1; exact sums of integers, no rounding."""
    return statistics_of(channel_sums(images_nhwc), images_nhwc.size // images_nhwc.shape[-1])


def channel_sums(images_nhwc: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Sums of the levels and of their squares, int64 (2, channels)."""
    counts = np.zeros((images_nhwc.shape[-1], 256), np.int64)  # of each level, a quarter of the time of sums of squares
    for chunk in _chunks(images_nhwc):
        for channel, of_channel in enumerate(counts):
            of_channel += np.bincount(chunk[..., channel].ravel(), minlength=256)
    return np.stack([counts @ np.arange(256), counts @ np.arange(256) ** 2])


def statistics_of(sums: NDArray[np.int64], count: int) -> Statistics:
    """Mean and standard deviation of `count` pixels with these `channel_sums`."""
    total, squares = sums
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    floor = 1.0  # one grey level: a constant channel is centred and not blown up
    return tuple(float(m) / 255 for m in mean), tuple(max(float(s), floor) / 255 for s in std)


def open_shards(folder: Path) -> Dataset:
    """Open what `preprocess` wrote, checking each file's digest. Raises ShardError."""
    try:
        text = (folder / "dataset.json").read_text(encoding="utf-8")
        description = json.loads(text)
        for name, expected in description["sha256"].items():
            if sha256(folder / name) != expected:
                raise ShardError(
                    f"{folder / name}: damaged (its sha256 is not the one in dataset.json); run `dvc repro preprocess`"
                )
        further = tuple(FurtherTarget.of_description(values) for values in description.get("further", ()))
        train: Split | PackedImages
        if _PACKED in description["sha256"]:
            has_labels = (
                "train_labels.npy" in description["sha256"]
            )  # older shards have class numbers, which lie in the index
            train = PackedImages(
                folder / TRAIN_FOLDER,
                _labels(folder, "train") if has_labels else None,
                _further(folder, "train", further),
            )
        else:
            train = _open_split(folder, "train", further)
        return Dataset(
            name=description["name"], classes=tuple(description["classes"]), test_digest=description["test_digest"],
            recipe=description["recipe"], mean=tuple(description["mean"]), std=tuple(description["std"]),
            digest=hashlib.sha256(text.encode()).hexdigest(),
            train=train, val=_open_split(folder, "val", further), test=_open_split(folder, "test", further),
            task=Task.of_description(description), further=further,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise ShardError(f"{error.filename}: missing; run `dvc repro preprocess`") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ShardError(f"{folder / 'dataset.json'}: damaged ({error}); run `dvc repro preprocess`") from error


def _measured(task: Task, folder: Path, place: int = 0) -> Task:
    """The task with mean and standard deviation of its numbers; a number that never changes is centred and not blown up."""
    if task.kind != "regression":
        return task
    numbers = np.load(folder / labels_file("train", place)).astype(np.float64)
    std = numbers.std(axis=0)
    return replace(task, mean=tuple(numbers.mean(axis=0).tolist()), std=tuple(np.where(std > 0, std, 1.0).tolist()))


def _open_split(folder: Path, split: str, further: Sequence[FurtherTarget]) -> Split:
    images = np.load(folder / f"{split}_images.npy", mmap_mode="r")
    return Split(images, _labels(folder, split), _further(folder, split, further))


def _labels(folder: Path, split: str, place: int = 0) -> NDArray[Any]:
    labels: NDArray[Any] = np.load(folder / labels_file(split, place), mmap_mode="r")
    return labels


def _further(folder: Path, split: str, further: Sequence[FurtherTarget]) -> dict[str, NDArray[Any]]:
    return {target.of: _labels(folder, split, place) for place, target in enumerate(further, start=1)}


def _chunks(images_nhwc: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    size = max(1, _CHUNK_BYTES // max(1, images_nhwc[:1].nbytes))
    for start in range(0, len(images_nhwc), size):
        yield images_nhwc[start : start + size]
