"""What `ingest` does with the samples of a source: decode, measure and pack them, draw the splits, write the manifest.

Memory does not grow with the dataset but for some 30 bytes per image while the splits are drawn: rows, and what the draw needs of
them, go to files aside as they come, and from there, with their splits, to the manifest. Both are written by row groups of a
fixed size, so that equal samples give equal bytes.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deepcv.data import memory
from deepcv.data.manifest import COLUMNS, SPLITS, DatasetInfo, digest_of_test_split
from deepcv.data.measures import Measures, measure_all
from deepcv.data.samples import DataError, Sample, no_images
from deepcv.data.splits import (
    DIGEST_BYTES,
    LEFT_OUT,
    OPEN,
    TEST,
    TRAIN,
    SplitRule,
    assign,
    check_named,
    check_not_empty,
)
from deepcv.images import DecodeError, UInt8Array, check_header, decode_checked, modes
from deepcv.parallel import in_order

_KINDS = {"phash": pa.uint64(), **dict.fromkeys(("width", "height", "channels", "bytes", "offset"), pa.int64())}
_TEXTS = ("id", "split", "label", "sha256", "source", "annotations", "mode")
SCHEMA = pa.schema(
    [(name, pa.string() if name in _TEXTS else _KINDS.get(name, pa.float32())) for name in COLUMNS]
)  # Measures are float32 but for the hash.
_REPEATING = [
    "split",
    "label",
    "source",
    "annotations",
    "mode",
]  # a dictionary of the others would be as long as the column
_ROWS = 8192  # of a row group
_CHUNK_IMAGES, _CHUNK_BYTES = 64, 2**22  # what a process takes at a time
_DECODED_BYTES = 2**22  # of images that wait to be measured together
_SHOWN_PROBLEMS = 10
_NO_MEASURES = Measures._make([*[0.0] * (len(Measures._fields) - 1), 0])  # of a file that is no image


class _Looked(NamedTuple):
    """What one sample's bytes told; `problem` where they are no image: then shape and measures are zeros, and mode is empty."""

    sha256: bytes
    shape: tuple[int, ...]
    mode: str
    measures: Measures
    problem: str


class _Kept(ExitStack):
    """What the draw needs of each image, in files aside that are then mapped: the kernel can take such memory back."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.names: dict[str, int] = {}  # of the labels, numbered as they come
        self.named: set[int] = set()  # splits that the source gives any file, readable or not
        self.files = {
            name: self.enter_context((folder / f"{name}.tmp").open("wb"))
            for name in ("given", "labels", "ranks", "contents")
        }

    def add(self, given: int, label: str, rank: bytes, content: bytes) -> None:
        self.files["given"].write(given.to_bytes(1, "little", signed=True))
        self.files["labels"].write(self.names.setdefault(label, len(self.names)).to_bytes(4, "little"))
        self.files["ranks"].write(rank)
        self.files["contents"].write(content)

    def take(self, name: str, dtype: str) -> NDArray[Any]:
        """Map what was added, once, after the files are closed; its file goes."""
        path = Path(self.files[name].name)
        found = np.memmap(path, dtype, "r").view(np.ndarray) if path.stat().st_size else np.zeros(0, dtype)
        path.unlink()
        return found


def pack(
    samples: Iterable[Sample], classes: tuple[str, ...], folder: Path, *, name: str, source: str, rule: SplitRule,
    processes: int = 1,
) -> dict[str, int]:  # fmt: skip
    """Write `folder` from samples, in their order; return how many images each split has, and how many are "unreadable".

    A file that is no image keeps its row, with zeros for all that could not be measured, and takes no part in the draw: `validate`
    judges it. The files do not depend on `processes`. Raises DataError, also where no file is an image.
    """
    memory.keep_little()
    aside = folder / "rows.tmp"
    kept, bad = _write_rows(samples, folder, aside, source, rule, processes)
    memory.give_back()  # before the draw, of which memory does grow
    rows = pq.ParquetFile(aside, memory_map=True)

    def image_id(position: int) -> str:
        group, row = divmod(position, _ROWS)
        return str(rows.read_row_group(group, columns=["id"], use_threads=False)["id"][row])

    names = sorted({*kept.names, *classes})
    number_of = {label: number for number, label in enumerate(names)}
    renumbered = np.array([number_of[label] for label in kept.names], np.int32)
    digest = f"S{DIGEST_BYTES}"
    ranks, contents = kept.take("ranks", digest), kept.take("contents", digest)
    labels = renumbered[kept.take("labels", "<i4")]
    given = kept.take("given", "i1")
    if bad.count == len(given) > 0:
        raise DataError(bad.text(f"{no_images(bad.count)}, and no other is there; repair each"))
    unreadable = bad.text(f"{no_images(bad.count)}; repair each")
    check_named(kept.named, given, f"\n{unreadable}")
    splits = assign(given, labels, ranks, contents if rule.group_by else None, rule, image_id)
    try:
        check_not_empty(splits, labels, list(names))
    except DataError as error:
        raise DataError(f"{error}\n{unreadable}") if bad.count else error from None
    tested = bytearray()
    with rows, pq.ParquetWriter(folder / "manifest.parquet", SCHEMA, use_dictionary=_REPEATING) as writer:
        for group in range(rows.num_row_groups):
            table = rows.read_row_group(group, use_threads=False)
            part = splits[group * _ROWS : group * _ROWS + len(table)]
            drawn = np.array(SPLITS, object)[np.maximum(part, TRAIN)]
            told = np.where(part == LEFT_OUT, table["split"].fill_null("train").to_numpy(), drawn)
            column = pa.array(told, pa.string())
            writer.write_table(table.set_column(1, SCHEMA.field("split"), column), row_group_size=_ROWS)
            for digest_hex in table["sha256"].filter(pa.array(part == TEST)).to_pylist():
                tested += bytes.fromhex(digest_hex)
    aside.unlink()
    info = DatasetInfo(name, classes, digest_of_test_split(tested, labels[splits == TEST], names))
    (folder / "dataset.json").write_text(json.dumps(asdict(info), indent=2) + "\n", encoding="utf-8")
    return {
        **{split: int((splits == number).sum()) for number, split in enumerate(SPLITS)},
        **({"unreadable": bad.count} if bad.count else {}),
    }


def _write_rows(
    samples: Iterable[Sample], folder: Path, aside: Path, source: str, rule: SplitRule, processes: int
) -> "tuple[_Kept, _Problems]":
    """Write images.bin and, to `aside`, the rows without their splits; also return which files are no images."""
    bad, ungrouped = _Problems(), _Problems()
    rows: list[tuple[object, ...]] = []
    offset = 0
    with (
        _Kept(folder) as kept,
        (folder / "images.bin").open("wb") as blob,
        pq.ParquetWriter(aside, SCHEMA, use_dictionary=_REPEATING) as writer,
    ):
        for chunk, found in in_order(_look, _chunks(samples), processes):
            for sample, (sha256, shape, mode, measures, problem) in zip(chunk, found, strict=True):
                unit: str | None = ""
                given = OPEN if sample.split is None else SPLITS.index(sample.split)
                if given != OPEN:
                    kept.named.add(given)
                if problem:
                    bad.add(f"{sample.id}: {problem}")
                    given = LEFT_OUT
                else:
                    unit = rule.unit(sample.id, sha256.hex())
                if unit is None:
                    ungrouped.add(sample.id)
                else:
                    blob.write(sample.encoded)
                    height, width, channels = shape
                    rows.append(
                        (
                            sample.id, sample.split, sample.label, sha256.hex(), width, height, channels,
                            len(sample.encoded), offset, source, *measures, sample.annotations, mode,
                        )
                    )  # fmt: skip
                    offset += len(sample.encoded)
                    content = sha256[:DIGEST_BYTES] if rule.group_by else b""
                    kept.add(given, sample.label, rule.rank(unit), content)
                    if len(rows) == _ROWS:
                        writer.write_table(_table(rows), row_group_size=_ROWS)
                        rows.clear()
        if rows:
            writer.write_table(_table(rows), row_group_size=_ROWS)
    if ungrouped.count:
        images = "1 image is" if ungrouped.count == 1 else f"{ungrouped.count} images are"
        group = f"in no group of ingest.group_by {rule.group_by!r}; it must find one in every id"
        raise DataError(ungrouped.text(f"{images} {group}"))
    return kept, bad


def _table(rows: list[tuple[object, ...]]) -> pa.Table:
    columns = zip(*rows, strict=True)
    return pa.table([pa.array(column, kind.type) for column, kind in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)


def _look(samples: list[Sample]) -> list[_Looked]:
    """Decode, hash and measure."""
    cv2.setNumThreads(1)  # chunks are what runs in parallel
    looked: list[_Looked] = []
    waiting: dict[int, UInt8Array] = {}  # by place
    size = 0
    for place, sample in enumerate(samples):
        content = hashlib.sha256(sample.encoded).digest()
        try:
            header = check_header(sample.encoded)
            image_hwc = decode_checked(sample.encoded, None, 1, header)
        except DecodeError as error:
            looked.append(_Looked(content, (0, 0, 0), "", _NO_MEASURES, str(error)))
        else:
            mode = modes.read(sample.encoded, header, image_hwc)
            looked.append(_Looked(content, image_hwc.shape, mode, _NO_MEASURES, ""))
            waiting[place] = image_hwc
            size += image_hwc.nbytes
        if waiting and (size >= _DECODED_BYTES or place == len(samples) - 1):
            for waited, measures in zip(waiting, measure_all(list(waiting.values())), strict=True):
                looked[waited] = looked[waited]._replace(measures=measures)
            waiting, size = {}, 0
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

    def text(self, what: str) -> str:
        """What they are, and the first of them."""
        more = [f"  … and {self.count - len(self.first)} more"] if self.count > len(self.first) else []
        return "\n".join([f"{what}:", *self.first, *more])
