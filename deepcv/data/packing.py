"""Prepared images into the arrays of the shards: on every core, in the manifest's order, going on where a killed run was.

Rows of the manifest come batch by batch and pixels go straight into files, so that memory does not grow with the dataset.
"""

import hashlib
import json
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deepcv.data.manifest import DatasetInfo
from deepcv.data.samples import DataError
from deepcv.data.shards import SPLITS, create_array
from deepcv.files import write_text
from deepcv.images import DecodeError, ImageRecipe, prepare

FINISHED = "finished"  # the file that says how many tasks are
_BATCH = 64  # images of one task
_COLUMNS = ["id", "split", "label", "sha256", "bytes", "offset"]
_RECORD_S = 1.0  # between two records of the progress


@dataclass(frozen=True)
class _Task:
    """Some rows of the manifest, and where each one's pixels and label go: its split and position there."""

    rows: pa.RecordBatch
    places: list[tuple[str, int]]


def pack(
    raw: Path,
    folder: Path,
    recipe: ImageRecipe,
    classes: tuple[str, ...],
    *,
    threads: int,
    done: Callable[[int], object],
) -> None:
    """Write `<split>_images.npy` and `<split>_labels.npy` of all splits to `folder`; `done` hears of images as they finish.

    A folder that holds the work of a killed run with the same arguments is completed: the caller sees to it that they are
    the same. The result does not depend on `threads`. Raises DataError, and OSError where the disk is full.
    """
    counts = _counts(raw)
    finished = _progress(folder)
    arrays = {split: _open(folder, split, counts[split], recipe, resume=finished > 0) for split in SPLITS}
    number_of = {label: number for number, label in enumerate(classes)}
    recorded = time.monotonic()
    with (raw / "images.bin").open("rb") as blob, ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[Future[None], int]] = deque()

        def take() -> None:
            nonlocal finished, recorded
            future, size = waiting.popleft()
            future.result()
            finished += 1
            done(size)
            if time.monotonic() - recorded > _RECORD_S:
                _save(folder, arrays, finished)
                recorded = time.monotonic()

        try:
            for number, task in enumerate(_tasks(raw)):
                if number < finished:
                    done(len(task.places))
                    continue
                waiting.append((pool.submit(_work, blob, task, arrays, number_of, recipe), len(task.places)))
                if len(waiting) > 2 * threads:
                    take()
            while waiting:
                take()
        finally:
            pool.shutdown(cancel_futures=True)
        _save(folder, arrays, finished)


def read_info(raw: Path) -> DatasetInfo:
    """Return what data/raw/dataset.json says, without the manifest's rows. Raises DataError."""
    try:
        values = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))
        return DatasetInfo(values["name"], tuple(values["classes"]), values["test_digest"])
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: missing; run `dvc repro ingest`") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{raw / 'dataset.json'}: damaged ({error}); run `dvc repro ingest`") from error


def count(raw: Path) -> int:
    """Return how many images the manifest lists. Raises DataError."""
    return sum(_counts(raw).values())


def _work(
    blob: BinaryIO, task: _Task, arrays: dict[str, tuple[NDArray[Any], NDArray[Any]]], number_of: dict[str, int],
    recipe: ImageRecipe,
) -> None:  # fmt: skip
    rows = task.rows.to_pydict()
    for (split, place), image_id, label, digest, size, offset in zip(
        task.places, *(rows[name] for name in ("id", "label", "sha256", "bytes", "offset")), strict=True
    ):
        encoded = os.pread(blob.fileno(), size, offset)
        if hashlib.sha256(encoded).hexdigest() != digest:
            raise DataError(f"{blob.name}: damaged at image {image_id}; run `dvc repro ingest`")
        images, labels = arrays[split]
        try:
            images[place] = prepare(encoded, recipe)
        except DecodeError as error:
            raise DataError(f"{image_id}: {error}") from error
        labels[place] = number_of[label]


def _tasks(raw: Path) -> Iterator[_Task]:
    """Yield the manifest's rows in their order; never more than a page of it is in memory."""
    places: Counter[str] = Counter()
    for rows in _batches(raw, _COLUMNS):
        here = []
        for split in rows["split"].to_pylist():
            here.append((split, places[split]))
            places[split] += 1
        yield _Task(rows, here)


def _counts(raw: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    for rows in _batches(raw, ["split"]):
        counts.update(rows["split"].to_pylist())
    return counts


def _batches(raw: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    path = raw / "manifest.parquet"
    try:
        with pq.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
            yield from file.iter_batches(_BATCH, columns=columns, use_threads=False)
    except FileNotFoundError as error:
        raise DataError(f"{path}: missing; run `dvc repro ingest`") from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: damaged ({error}); run `dvc repro ingest`") from error


def _open(
    folder: Path, split: str, count: int, recipe: ImageRecipe, *, resume: bool
) -> tuple[NDArray[Any], NDArray[Any]]:
    images, labels = folder / f"{split}_images.npy", folder / f"{split}_labels.npy"
    if resume:
        return np.load(images, mmap_mode="r+"), np.load(labels, mmap_mode="r+")
    return (
        create_array(images, np.uint8, (count, recipe.height, recipe.width, recipe.channels)),
        create_array(labels, np.int64, (count,)),
    )


def _progress(folder: Path) -> int:
    """Return how many tasks are finished; 0 where nothing is, or what is there is not whole."""
    try:
        return int((folder / FINISHED).read_text())
    except (FileNotFoundError, ValueError):
        return 0


def _save(folder: Path, arrays: dict[str, tuple[NDArray[Any], NDArray[Any]]], finished: int) -> None:
    """Record the progress after the pixels are on the disk: so it is true after a power failure too."""
    for array in (array for pair in arrays.values() for array in pair):
        if isinstance(array, np.memmap):
            array.flush()
    write_text(folder / FINISHED, str(finished))
