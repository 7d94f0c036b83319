"""Draw images of a collection and look at them: measures, classes, and what a registered model sees in them."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deepcv.data.drift import FloatArray, Side
from deepcv.data.measures import measure
from deepcv.data.readers import Collection, open_images
from deepcv.data.samples import DataError
from deepcv.home import state_dir
from deepcv.images import DecodeError, ImageRecipe, UInt8Array, decode, prepare

_BATCH = 256


class Extractor(Protocol):
    """A model that gives features, and how it wants images prepared."""

    @property
    def recipe(self) -> ImageRecipe:
        """What `features` takes."""

    def features(self, images_nhwc: UInt8Array) -> NDArray[np.float32]:
        """Features (n, f) of prepared uint8 images (n, height, width, channels)."""


@dataclass(frozen=True)
class Look:
    """One side of a comparison: `side` for the tests, and what a person should know about how it came about."""

    path: Path
    images: int  # in the collection
    drawn: int  # of them, to be looked at
    unreadable: dict[str, str]  # name -> reason, of those that were drawn
    note: str
    side: Side


def look(path: Path, *, sample: int, seed: int, extractor: Extractor | None) -> Look:
    """Look at no more than `sample` images of what `path` names. Raises DataError where none of them can be read."""
    downloads = state_dir() / "downloads" if path.suffix in {".yaml", ".yml"} else Path()  # only these may download
    collection = open_images(path, downloads)
    positions = draw([entry.sha256 for entry in collection.entries], sample, seed)
    statistics, features, unreadable = _measure(collection, positions, extractor)
    if not statistics:
        name, reason = next(iter(unreadable.items()))
        raise DataError(f"{path}: none of {len(positions)} files is an image; the first, {name}: {reason}")
    classes = Counter(entry.label for entry in collection.entries) if collection.labelled else {}
    side = Side(statistics, classes, features)
    return Look(path, len(collection.entries), len(positions), unreadable, collection.note, side)


def draw(digests: Sequence[str], count: int, seed: int) -> list[int]:
    """Return the positions of `count` images, in an order that depends on the seed and their content, not on their names."""
    ranks = [hashlib.sha256(f"{seed}:{digest}".encode()).digest() for digest in digests]
    return sorted(range(len(ranks)), key=ranks.__getitem__)[:count]


def _measure(
    collection: Collection, positions: Sequence[int], extractor: Extractor | None
) -> tuple[dict[str, FloatArray], NDArray[np.float32] | None, dict[str, str]]:
    """Statistics and features in the order of `positions`, and what could not be read; the images are not kept."""
    rank = {position: place for place, position in enumerate(positions)}
    places: list[int] = []
    rows: list[dict[str, float]] = []
    features: list[NDArray[np.float32]] = []
    unreadable: dict[str, str] = {}
    waiting: list[UInt8Array] = []
    in_order = sorted(positions)
    for position, encoded in zip(in_order, collection.contents(in_order), strict=True):
        try:
            row = statistics_of(decode(encoded))
            if extractor:
                waiting.append(prepare(encoded, extractor.recipe))
        except DecodeError as error:
            unreadable[collection.entries[position].id] = str(error)
            continue
        places.append(rank[position])
        rows.append(row)
        if extractor and len(waiting) == _BATCH:
            features.append(extractor.features(np.stack(waiting)))
            waiting.clear()
    if extractor and waiting:
        features.append(extractor.features(np.stack(waiting)))
    order = np.argsort(places)
    statistics = {name: np.array([row[name] for row in rows])[order] for name in (rows[0] if rows else ())}
    return statistics, np.concatenate(features)[order] if features else None, unreadable


def statistics_of(image_hwc: UInt8Array) -> dict[str, float]:
    """Return what is compared between two collections: the measures, but for the hash, and the image's size and shape."""
    height, width = image_hwc.shape[:2]
    measured = {
        name.replace("_", " "): value for name, value in measure(image_hwc)._asdict().items() if name != "phash"
    }
    return {**measured, "side": float(height * width) ** 0.5, "aspect": width / height}
