"""Prepared images into the arrays of the shards: on every core, in the manifest's order, going on where a killed run was.

Train images that are to stay encoded are prepared too, for the statistics: their sums are kept in place of their pixels.

Rows of the manifest come batch by batch and pixels go straight into files, so that memory does not grow with the dataset.
"""

import hashlib
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deepcv.data import memory
from deepcv.data.packed import EncodedImage
from deepcv.data.samples import DataError
from deepcv.data.shards import SPLITS, Statistics, channel_sums, create_array, labels_file, statistics_of
from deepcv.data.targets import Targets, find
from deepcv.files import write_text
from deepcv.images import DecodeError, ImageRecipe, UInt8Array, prepare
from deepcv.parallel import in_order
from deepcv.task import Task

FINISHED = "finished"  # the file that says how many tasks are
_SUMS = "train_sums.npy"  # of levels and of their squares, int64 (images, 2, channels)
_BATCH = 64  # images of one task
_COLUMNS = ["id", "split", "label", "sha256", "bytes", "offset", "annotations"]
_RECORD_S = 1.0  # between two records of the progress
_Arrays = tuple[NDArray[Any], list[NDArray[Any]]]  # images, or their sums, of a split, and its targets


class _Task(NamedTuple):
    """Some rows of the manifest, column by column."""

    ids: list[str]
    splits: list[str]
    labels: list[str]
    digests: list[str]
    sizes: list[int]
    offsets: list[int]
    annotations: list[str]


def prepare_all(
    raw: Path,
    folder: Path,
    recipe: ImageRecipe,
    targets: Targets,
    leave_out: frozenset[str] = frozenset(),
    *,
    further: Sequence[Targets] = (),
    encoded_train: bool = False,
    processes: int,
    done: Callable[[int], object],
) -> None:
    """Write images and labels of all splits to `folder`, named as `shards` has them; `done` hears of images as they finish.

    Of an `encoded_train` split the sums that `encoded_statistics` takes are written in place of its images. A folder that
    holds the work of a killed run with the same arguments is completed: the caller sees to it that they are the same. Images
    whose id is in `leave_out` are left out. The result does not depend on `processes`. Raises DataError, and OSError where
    the disk is full.
    """
    counts: Counter[str] = Counter()
    for (split, _), images in count(raw, leave_out).items():
        counts[split] += images
    finished = _progress(folder)
    encoded = {"train"} if encoded_train else set()
    arrays = {
        split: _open(
            folder, split, counts[split], recipe, [targets, *further], encoded=split in encoded, resume=finished > 0
        )
        for split in SPLITS
    }
    places: Counter[str] = Counter()
    recorded = time.monotonic()
    tasks = _tasks(raw, leave_out)
    for task in itertools.islice(tasks, finished):
        places.update(task.splits)
        done(len(task.ids))
    for task, images_nhwc in in_order(partial(_prepare, raw / "images.bin", recipe), tasks, processes):
        rows = zip(task.splits, task.labels, task.annotations, images_nhwc, strict=True)
        for split, label, annotations, image_hwc in rows:
            pixels, learned = arrays[split]
            pixels[places[split]] = channel_sums(image_hwc[None]) if split in encoded else image_hwc
            for one, values in zip([targets, *further], learned, strict=True):
                values[places[split]] = one.of(label, annotations)
            places[split] += 1
        finished += 1
        done(len(task.ids))
        if time.monotonic() - recorded > _RECORD_S:
            _save(folder, arrays, finished)
            recorded = time.monotonic()
    _save(folder, arrays, finished)


def encoded_statistics(folder: Path, recipe: ImageRecipe) -> Statistics:
    """Take what `prepare_all` wrote of an encoded train split out of `folder`; return its statistics as if it held pixels."""
    sums = np.load(folder / _SUMS)
    (folder / _SUMS).unlink()
    return statistics_of(sums.sum(axis=0), len(sums) * recipe.height * recipe.width)


def learned(
    raw: Path, task: Task, classes: tuple[str, ...], leave_out: frozenset[str] = frozenset(),
    key: str = "preprocess.target",
) -> Targets:  # fmt: skip
    """Return what `task` learns of the images but for the ids to leave out. Raises DataError, which names the param `key`."""

    def annotations() -> Iterator[tuple[str, str]]:
        for rows in _batches(raw, ["id", "annotations"], leave_out):
            yield from zip(rows["id"].to_pylist(), rows["annotations"].to_pylist(), strict=True)

    return find(task, classes, annotations, key)


def encoded_images(
    raw: Path, split: str, classes: tuple[str, ...], leave_out: frozenset[str] = frozenset()
) -> Iterator[EncodedImage]:
    """Yield the files of a split in the manifest's order, with their classes' numbers, but for the ids to leave out."""
    number_of = {label: number for number, label in enumerate(classes)}
    columns = ["id", "split", "label", "height", "width", "bytes", "offset"]
    with (raw / "images.bin").open("rb") as blob:
        for rows in _batches(raw, columns, leave_out):
            for _, of_split, label, height, width, size, offset in zip(*rows.to_pydict().values(), strict=True):
                if of_split == split:
                    blob.seek(offset)
                    yield EncodedImage(blob.read(size), number_of[label], height, width)


def count(raw: Path, leave_out: frozenset[str] = frozenset()) -> Counter[tuple[str, str]]:
    """Return how many images of each split and label the manifest lists, but for the ids to leave out. Raises DataError."""
    memory.keep_little()
    counts: Counter[tuple[str, str]] = Counter()
    for rows in _batches(raw, ["id", "split", "label"], leave_out):
        counts.update(zip(rows["split"].to_pylist(), rows["label"].to_pylist(), strict=True))
    return counts


def _prepare(blob: Path, recipe: ImageRecipe, task: _Task) -> UInt8Array:
    """Images of one task, (n, recipe.height, recipe.width, recipe.channels)."""
    cv2.setNumThreads(1)  # tasks are what runs in parallel
    images_nhwc = np.empty((len(task.ids), recipe.height, recipe.width, recipe.channels), np.uint8)
    with blob.open("rb") as file:
        for place, (image_id, digest, size, offset) in enumerate(
            zip(task.ids, task.digests, task.sizes, task.offsets, strict=True)
        ):
            file.seek(offset)
            encoded = file.read(size)
            if hashlib.sha256(encoded).hexdigest() != digest:
                raise DataError(f"{blob}: damaged at image {image_id}; run `dvc repro ingest`")
            try:
                images_nhwc[place] = prepare(encoded, recipe)
            except DecodeError as error:
                raise DataError(f"{image_id}: {error}") from error
    return images_nhwc


def _tasks(raw: Path, leave_out: frozenset[str]) -> Iterator[_Task]:
    """Yield the manifest's rows in their order; never more than a page of it is in memory."""
    for rows in _batches(raw, _COLUMNS, leave_out):
        yield _Task(*(rows[name].to_pylist() for name in _COLUMNS))


def _batches(raw: Path, columns: list[str], leave_out: frozenset[str]) -> Iterator[pa.RecordBatch]:
    path = raw / "manifest.parquet"
    try:
        with pq.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
            if missing := sorted(set(columns) - set(file.schema_arrow.names)):
                raise DataError(f"{path}: of an older DeepCV, without {', '.join(missing)}; run `dvc repro ingest`")
            for rows in file.iter_batches(_BATCH, columns=columns, use_threads=False):
                kept = [image_id not in leave_out for image_id in rows["id"].to_pylist()]
                yield rows if all(kept) else rows.filter(pa.array(kept, pa.bool_()))
    except FileNotFoundError as error:
        raise DataError(f"{path}: missing; run `dvc repro ingest`") from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: damaged ({error}); run `dvc repro ingest`") from error


def _open(
    folder: Path,
    split: str,
    count: int,
    recipe: ImageRecipe,
    targets: Sequence[Targets],
    *,
    encoded: bool,
    resume: bool,
) -> _Arrays:
    images = folder / (_SUMS if encoded else f"{split}_images.npy")
    labels = [folder / labels_file(split, place) for place in range(len(targets))]
    if resume:
        return np.load(images, mmap_mode="r+"), [np.load(path, mmap_mode="r+") for path in labels]
    made = (
        create_array(images, np.int64, (count, 2, recipe.channels))
        if encoded
        else create_array(images, np.uint8, (count, recipe.height, recipe.width, recipe.channels))
    )
    return made, [create_array(path, one.dtype, (count, *one.shape)) for path, one in zip(labels, targets, strict=True)]


def _progress(folder: Path) -> int:
    """Return how many tasks are finished; 0 where nothing is, or what is there is not whole."""
    try:
        return int((folder / FINISHED).read_text())
    except (FileNotFoundError, ValueError):
        return 0


def _save(folder: Path, arrays: dict[str, _Arrays], finished: int) -> None:
    """Record the progress after the pixels are on the disk: so it is true after a power failure too."""
    for array in (array for images, labels in arrays.values() for array in (images, *labels)):
        if isinstance(array, np.memmap):
            array.flush()
    write_text(folder / FINISHED, str(finished))
