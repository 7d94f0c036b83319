"""What `ingest` does with the samples of a source: decode, measure and pack them, draw the splits, write the manifest.

Memory does not grow with the dataset but for some 30 bytes per image: rows go to a file aside as they come, and from there, with
their splits, to the manifest. Both are written by row groups of a fixed size, so that equal samples give equal bytes.
"""

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deepcv.data.manifest import COLUMNS, SPLITS, DatasetInfo, digest_of_test_split
from deepcv.data.measures import Measures, measure
from deepcv.data.samples import DataError, Sample
from deepcv.data.splits import DIGEST_BYTES, OPEN, TEST, SplitRule, assign, check_not_empty
from deepcv.images import DecodeError, decode
from deepcv.parallel import in_order

_KINDS = {"phash": pa.uint64(), **dict.fromkeys(("width", "height", "channels", "bytes", "offset"), pa.int64())}
_TEXTS = ("id", "split", "label", "sha256", "source", "annotations")
SCHEMA = pa.schema(
    [(name, pa.string() if name in _TEXTS else _KINDS.get(name, pa.float32())) for name in COLUMNS]
)  # Measures are float32 but for the hash.
_REPEATING = ["split", "label", "source", "annotations"]  # a dictionary of the others would be as long as the column
_ROWS = 8192  # of a row group
_CHUNK_IMAGES, _CHUNK_BYTES = 64, 2**22  # what a process takes at a time
_SHOWN_PROBLEMS = 10


class _Looked(NamedTuple):
    """What one sample's bytes told; `problem` where they are no image."""

    sha256: bytes
    shape: tuple[int, ...]
    measures: Measures | None
    problem: str


@dataclass
class _Kept:
    """What the draw needs of each image, all that stays in memory."""

    given: "array[int]" = field(default_factory=lambda: array("b"))
    labels: "array[int]" = field(default_factory=lambda: array("i"))
    ranks: bytearray = field(default_factory=bytearray)
    contents: bytearray = field(default_factory=bytearray)
    names: dict[str, int] = field(default_factory=dict)  # of the labels, numbered as they come


def pack(
    samples: Iterable[Sample], classes: tuple[str, ...], folder: Path, *, name: str, source: str, rule: SplitRule,
    processes: int = 1,
) -> dict[str, int]:  # fmt: skip
    """Write `folder` from samples, in their order, and return how many images each split has.

    The files do not depend on `processes`. Raises DataError that names every bad file.
    """
    aside = folder / "rows.tmp"
    kept = _write_rows(samples, folder, aside, source, rule, processes)
    rows = pq.ParquetFile(aside)

    def image_id(position: int) -> str:
        group, row = divmod(position, _ROWS)
        return str(rows.read_row_group(group, columns=["id"])["id"][row])

    names = sorted({*kept.names, *classes})
    number_of = {label: number for number, label in enumerate(names)}
    renumbered = np.array([number_of[label] for label in kept.names], np.int32)
    labels = renumbered[np.frombuffer(kept.labels, np.int32)] if kept.labels else np.zeros(0, np.int32)
    digest = f"S{DIGEST_BYTES}"
    contents = np.frombuffer(kept.contents, digest) if rule.group_by else None
    splits = assign(
        np.frombuffer(kept.given, np.int8), labels, np.frombuffer(kept.ranks, digest), contents, rule, image_id
    )
    check_not_empty(splits, labels, list(names))
    tested = bytearray()
    with rows, pq.ParquetWriter(folder / "manifest.parquet", SCHEMA, use_dictionary=_REPEATING) as writer:
        for group in range(rows.num_row_groups):
            table = rows.read_row_group(group)
            part = splits[group * _ROWS : group * _ROWS + len(table)]
            column = pa.array(np.array(SPLITS, object)[part], pa.string())
            writer.write_table(table.set_column(1, SCHEMA.field("split"), column), row_group_size=_ROWS)
            for digest_hex in table["sha256"].filter(pa.array(part == TEST)).to_pylist():
                tested += bytes.fromhex(digest_hex)
    aside.unlink()
    info = DatasetInfo(name, classes, digest_of_test_split(tested, labels[splits == TEST], names))
    (folder / "dataset.json").write_text(json.dumps(asdict(info), indent=2) + "\n", encoding="utf-8")
    return {split: int((splits == number).sum()) for number, split in enumerate(SPLITS)}


def _write_rows(
    samples: Iterable[Sample], folder: Path, aside: Path, source: str, rule: SplitRule, processes: int
) -> _Kept:
    """Write images.bin and, to `aside`, the rows without their splits."""
    kept = _Kept()
    bad, ungrouped = _Problems(), _Problems()
    rows: list[tuple[object, ...]] = []
    offset = 0
    with (
        (folder / "images.bin").open("wb") as blob,
        pq.ParquetWriter(aside, SCHEMA, use_dictionary=_REPEATING) as writer,
    ):
        for chunk, found in in_order(_look, _chunks(samples), processes):
            for sample, (sha256, shape, measures, problem) in zip(chunk, found, strict=True):
                unit = rule.unit(sample.id, sha256.hex())
                if measures is None:
                    bad.add(f"{sample.id}: {problem}")
                elif unit is None:
                    ungrouped.add(sample.id)
                else:
                    blob.write(sample.encoded)
                    height, width, channels = shape
                    rows.append(
                        (
                            sample.id, sample.split, sample.label, sha256.hex(), width, height, channels,
                            len(sample.encoded), offset, source, *measures, sample.annotations,
                        )
                    )  # fmt: skip
                    offset += len(sample.encoded)
                    kept.given.append(OPEN if sample.split is None else SPLITS.index(sample.split))
                    kept.labels.append(kept.names.setdefault(sample.label, len(kept.names)))
                    kept.ranks += rule.rank(unit)
                    if rule.group_by:
                        kept.contents += sha256[:DIGEST_BYTES]
                    if len(rows) == _ROWS:
                        writer.write_table(_table(rows), row_group_size=_ROWS)
                        rows.clear()
        if rows:
            writer.write_table(_table(rows), row_group_size=_ROWS)
    bad.report("files are no images; repair or remove them")
    ungrouped.report(f"images are in no group of ingest.group_by {rule.group_by!r}; it must find one in every id")
    return kept


def _table(rows: list[tuple[object, ...]]) -> pa.Table:
    columns = zip(*rows, strict=True)
    return pa.table([pa.array(column, kind.type) for column, kind in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)


def _look(samples: list[Sample]) -> list[_Looked]:
    """Decode, hash and measure."""
    cv2.setNumThreads(1)  # chunks are what runs in parallel
    looked = []
    for sample in samples:
        try:
            image_hwc = decode(sample.encoded)
        except DecodeError as error:
            looked.append(_Looked(b"", (), None, str(error)))
            continue
        digest = hashlib.sha256(sample.encoded).digest()
        looked.append(_Looked(digest, image_hwc.shape, measure(image_hwc), ""))
    return looked


def _chunks(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    chunk: list[Sample] = []
    size = 0
    for sample in samples:
        chunk.append(sample)
        size += len(sample.encoded)
        if len(chunk) == _CHUNK_IMAGES or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


class _Problems:
    """Counts problems and keeps the first."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[str] = []

    def add(self, problem: str) -> None:
        self.count += 1
        if len(self.first) < _SHOWN_PROBLEMS:
            self.first.append(f"  {problem}")

    def report(self, what: str) -> None:
        """Raise DataError where there was any."""
        if self.count:
            more = [f"  … and {self.count - len(self.first)} more"] if self.count > len(self.first) else []
            raise DataError("\n".join([f"{self.count} {what}:", *self.first, *more]))
