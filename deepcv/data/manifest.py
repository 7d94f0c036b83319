"""The manifest: one row per image, written by `ingest` beside one file that holds all encoded images.

`data/raw/` holds `manifest.parquet` (columns in `COLUMNS`), `images.bin` (the encoded images end to end; a row's `offset`
and `bytes` say where its image lies) and `dataset.json` (name, class names in label order, digest of the test split).
`brightness` to `phash` are the fields of `measures.Measures` (float32, `phash` uint64); `annotations` is JSON text or empty.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from deepcv.data.samples import DataError

SPLITS = ("train", "val", "test")
# Manifests of older versions end with `source`; whoever needs a later column says what to do where it is missing.
COLUMNS = (
    "id", "split", "label", "sha256", "width", "height", "channels", "bytes", "offset", "source",
    "brightness", "contrast", "sharpness", "noise", "entropy", "saturation", "red_minus_blue", "phash", "annotations",
)  # fmt: skip


@dataclass(frozen=True)
class DatasetInfo:
    """What a dataset is called, its classes in the order of their label numbers, and which test images it is judged on."""

    name: str
    classes: tuple[str, ...]
    test_digest: str


def read(folder: Path) -> tuple[pd.DataFrame, DatasetInfo]:
    """Return what `packing.pack` wrote to `folder`. Raises DataError."""
    try:
        raw = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        info = DatasetInfo(raw["name"], tuple(raw["classes"]), raw["test_digest"])
        return pd.read_parquet(folder / "manifest.parquet"), info
    except FileNotFoundError as error:
        raise DataError(f"{error.filename or folder}: missing; run `dvc repro ingest`") from error
    except (ValueError, KeyError, OSError) as error:
        raise DataError(f"{folder}: damaged ({error}); run `dvc repro ingest`") from error


def encoded_images(folder: Path, rows: pd.DataFrame) -> Iterator[bytes]:
    """Yield the encoded image of each row, in the rows' order. Raises DataError where one is not what was packed."""
    with (folder / "images.bin").open("rb") as blob:
        for image_id, offset, size, digest in zip(
            rows["id"], rows["offset"], rows["bytes"], rows["sha256"], strict=True
        ):
            blob.seek(int(offset))
            encoded = blob.read(int(size))
            if hashlib.sha256(encoded).hexdigest() != digest:
                raise DataError(f"{folder / 'images.bin'}: damaged at image {image_id}; run `dvc repro ingest`")
            yield encoded
