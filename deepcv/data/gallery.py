"""What a person looks at first in a dataset: classes with examples, distributions, and the images furthest out.

The manifest's columns say all but the pixels; only the pictures that are shown are decoded.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from deepcv.data.manifest import SPLITS, DatasetInfo, encoded_images, readable
from deepcv.data.markup import thumbnail, thumbnail_recipe
from deepcv.images import DecodeError, UInt8Array, prepare

SIDE = 72  # px, of a thumbnail's longer side: some 300 of them in one page, 120 in one picture
MOST_CLASSES = 30
EXAMPLES = 8
_BINS = 40
_LEAST_WIDTH = 9
_EXTREMES = 6
_TAIL = 0.005  # of the images at each end, which share the first and the last bar: one giant would leave one bar in all
UNLABELLED = "(no label)"
# Column of the manifest, its unit, whether it counts in whole numbers.
_DISTRIBUTIONS = (
    ("width", "px", True), ("height", "px", True), ("brightness", "", False), ("contrast", "", False),
    ("sharpness", "", False), ("bytes", "bytes", True),
)  # fmt: skip
_ENDS = (
    ("brightness", "darkest", "brightest"), ("contrast", "flattest", "strongest contrast"),
    ("sharpness", "least sharp", "sharpest"), ("aspect", "tallest", "widest"), ("megapixels", "smallest", "largest"),
)  # fmt: skip


@dataclass(frozen=True)
class Shown:
    """One image of the gallery; `number` is its row in the manifest, `thumbnail_hwc` uint8 RGB or grey, None if unreadable."""

    number: int
    name: str
    label: str
    split: str
    width: int
    height: int
    quarantined: bool
    thumbnail_hwc: UInt8Array | None = None


@dataclass(frozen=True)
class ClassRow:
    """A class: its images by split, how many of them are quarantined, and examples among the others."""

    label: str
    by_split: Mapping[str, int]
    quarantined: int
    examples: tuple[Shown, ...] = ()

    @property
    def images(self) -> int:
        """How many images have this label, the quarantined ones too."""
        return sum(self.by_split.values())


@dataclass(frozen=True)
class Histogram:
    """How a column is distributed: counts int64 (bins,), edges float64 (bins + 1,); the end bars hold what lies beyond them too.

    `missing` images have no such number and stand in no bar.
    """

    name: str
    unit: str
    counts: NDArray[np.int64]
    edges: NDArray[np.float64]
    median: float
    lowest: float
    highest: float
    missing: int

    @property
    def bars(self) -> tuple[int, int]:
        """How many bars wide it is drawn, and how many of them stay free at the left: few bars stand narrow in the middle."""
        width = max(len(self.counts), _LEAST_WIDTH)
        return width, (width - len(self.counts)) // 2


@dataclass(frozen=True)
class Extreme:
    """The images at one end of a measure, the furthest first, each with its value; none lies on the median."""

    title: str
    measure: str
    median: float
    images: tuple[tuple[Shown, float], ...]


@dataclass(frozen=True)
class Gallery:
    """All that the page and the picture show."""

    name: str
    images: int
    by_split: Mapping[str, int]
    quarantined: int
    unreadable: int  # files that `ingest` could not decode, plus chosen ones that cannot be decoded now
    classes: tuple[ClassRow, ...]
    classes_left_out: int
    histograms: tuple[Histogram, ...]
    extremes: tuple[Extreme, ...]


def collect(raw: Path, rows: pd.DataFrame, info: DatasetInfo, quarantined: NDArray[np.int64]) -> Gallery:
    """Choose and decode what is shown, the same for the same data; `quarantined` are positions in the manifest `rows`.

    Of more than 30 classes the 15 largest and the 15 smallest are kept. Raises DataError where data/raw is damaged.
    """
    usable = readable(rows)
    out = np.zeros(len(rows), np.bool_)
    out[quarantined] = True
    labels = rows["label"].where(rows["label"].notna(), UNLABELLED).astype(str)
    counts = pd.crosstab(labels, rows["split"].astype(str))
    names = [*info.classes, *sorted(set(counts.index) - set(info.classes))]
    splits = [*SPLITS, *sorted(set(counts.columns) - set(SPLITS))]
    counts = counts.reindex(index=names, columns=splits, fill_value=0)
    kept = _largest_and_smallest(counts.sum(axis=1).to_numpy())
    out_by_label = labels[out].value_counts()
    classes = [
        (names[number], {split: int(n) for split, n in zip(splits, counts.iloc[number], strict=True)})
        for number in kept
    ]
    chosen = _examples(rows["sha256"], labels, usable & ~out, [label for label, _ in classes])
    ends = list(_extremes(rows, usable))
    wanted = {position for positions in chosen.values() for position in positions}
    wanted |= {position for _, found in ends for position, _ in found}
    shown = _shown(raw, rows, labels, out, np.array(sorted(wanted), np.int64))
    return Gallery(
        name=info.name,
        images=len(rows),
        by_split={str(split): int(count) for split, count in counts.sum().items()},
        quarantined=int(out.sum()),
        unreadable=int((~usable).sum()) + sum(one.thumbnail_hwc is None for one in shown.values()),
        classes=tuple(
            ClassRow(label, by_split, int(out_by_label.get(label, 0)), tuple(shown[place] for place in chosen[label]))
            for label, by_split in classes
        ),
        classes_left_out=len(names) - len(kept),
        histograms=tuple(
            histogram(column, unit, np.where(usable, rows[column].to_numpy(np.float64), np.nan), whole=whole)
            for column, unit, whole in _DISTRIBUTIONS
            if column in rows  # older manifests lack some
        ),
        extremes=tuple(replace(end, images=tuple((shown[p], value) for p, value in found)) for end, found in ends),
    )


def histogram(name: str, unit: str, values: NDArray[np.float64], *, whole: bool) -> Histogram:
    """Count (n,) values in at most 40 bars; NaN is missing. Bars of `whole` numbers hold equally many numbers each."""
    known = values[np.isfinite(values)]
    missing = len(values) - len(known)
    if not len(known):
        nan = float("nan")
        return Histogram(name, unit, np.zeros(1, np.int64), np.array([0.0, 1.0]), nan, nan, nan, missing)
    low, high = np.quantile(known, [_TAIL, 1 - _TAIL], method="nearest")
    if low == high:
        low, high = known.min(), known.max()
    if whole or low == high:
        numbers = int(high - low) + 1
        step = -(-numbers // _BINS)
        edges = low - 0.5 + step * np.arange(-(-numbers // step) + 1)
    else:
        edges = np.linspace(low, high, _BINS + 1)
    counts, _ = np.histogram(np.clip(known, edges[0], edges[-1]), edges)
    return Histogram(
        name, unit, counts.astype(np.int64), edges, float(np.median(known)), float(known.min()), float(known.max()), missing
    )  # fmt: skip


def _largest_and_smallest(sizes: NDArray[np.int64]) -> list[int]:
    """All classes in their order, or of too many the largest and the smallest, by size."""
    if len(sizes) <= MOST_CLASSES:
        return list(range(len(sizes)))
    order = [int(number) for number in np.argsort(-sizes, kind="stable")]
    return order[: MOST_CLASSES // 2] + order[-(MOST_CLASSES // 2) :]


def _examples(
    sha256: "pd.Series[str]", labels: "pd.Series[str]", usable: NDArray[np.bool_], names: list[str]
) -> dict[str, list[int]]:
    """Positions of a few images of each class, in the order of their hashes: a fair draw that other images do not change."""
    places = np.flatnonzero(usable & labels.isin(names).to_numpy())
    order = places[np.argsort(sha256.to_numpy(dtype=object)[places].astype("S64"), kind="stable")]
    sorted_labels = labels.iloc[order]
    first = order[(sorted_labels.groupby(sorted_labels.to_numpy()).cumcount() < EXAMPLES).to_numpy()]
    found: dict[str, list[int]] = {name: [] for name in names}
    for position, label in zip(first.tolist(), labels.iloc[first], strict=True):
        found[label].append(position)
    return found


def _extremes(rows: pd.DataFrame, usable: NDArray[np.bool_]) -> Iterator[tuple[Extreme, list[tuple[int, float]]]]:
    """Both ends of each measure, as (end, [(position, value)]); nothing where all images are alike."""
    width, height = rows["width"].to_numpy(np.float64), rows["height"].to_numpy(np.float64)
    derived = {"aspect": width / np.maximum(height, 1), "megapixels": width * height / 1e6}
    for measure, lowest, highest in _ENDS:
        values = derived.get(measure)
        if values is None:
            if measure not in rows:
                continue
            values = rows[measure].to_numpy(np.float64)
        values = np.where(usable, values, np.nan)
        known = values[np.isfinite(values)]
        median = float(np.median(known)) if len(known) else 0.0
        for title, distance in ((lowest, median - values), (highest, values - median)):
            outside = np.flatnonzero(distance > 0)  # NaN is not
            if len(outside) > _EXTREMES:  # the sixth furthest and all as far as it: only these are sorted
                bound = np.partition(distance[outside], -_EXTREMES)[-_EXTREMES]
                outside = outside[distance[outside] >= bound]
            furthest = outside[np.argsort(-distance[outside], kind="stable")][:_EXTREMES]
            if len(furthest):
                found = [(int(position), float(values[position])) for position in furthest]
                yield Extreme(title, measure, median, ()), found


def _shown(
    raw: Path, rows: pd.DataFrame, labels: "pd.Series[str]", out: NDArray[np.bool_], positions: NDArray[np.int64]
) -> dict[int, Shown]:
    """Decode the images at these positions."""
    found: dict[int, Shown] = {}
    part = rows.iloc[positions]
    facts = part[["id", "split", "width", "height", "channels"]].itertuples(index=False, name=None)
    for number, encoded, fact in zip(positions.tolist(), encoded_images(raw, part), facts, strict=True):
        name, split, width, height, channels = fact
        try:
            small = thumbnail(prepare(encoded, thumbnail_recipe(height, width, channels, SIDE)), SIDE)
        except DecodeError:
            small = None
        found[number] = Shown(
            number, str(name), str(labels.iloc[number]), str(split), int(width), int(height), bool(out[number]), small
        )
    return found


def amount(value: float, unit: str = "") -> str:
    """Write a number for people, in as few digits as tell it."""
    if unit == "bytes":
        power = 0 if value < 1000 else 1 if value < 1e6 else 2
        return f"{value / 1000**power:.3g} {('B', 'kB', 'MB')[power]}"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{text} {unit}".rstrip()


def counted(number: int, word: str, plural: str = "") -> str:
    """Write a number of things: 1 image, 2,000 images, 2 classes."""
    return f"{number:,} {word if number == 1 else plural or f'{word}s'}"


def headline(gallery: Gallery) -> str:
    """Write the dataset's numbers in one line."""
    parts = [counted(gallery.images, "image")]
    parts += [f"{split} {count:,}" for split, count in gallery.by_split.items() if count]
    parts.append(counted(len(gallery.classes) + gallery.classes_left_out, "class", "classes"))
    parts += [f"{gallery.quarantined:,} quarantined"] if gallery.quarantined else []
    parts += [f"{counted(gallery.unreadable, 'picture')} cannot be read"] if gallery.unreadable else []
    return " · ".join(parts)
