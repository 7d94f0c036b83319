"""The manifest: one row per image, written by `ingest` beside one file that holds all encoded images.

`data/raw/` holds `manifest.parquet` (columns in `COLUMNS`), `images.bin` (the encoded images end to end; a row's `offset`
and `bytes` say where its image lies) and `dataset.json` (name, class names in label order, digest of the test split).
A file that is no image has zeros from `width` to `phash`, but for `bytes` and `offset` (see `readable`), and no mode.
`brightness` to `phash` are the fields of `measures.Measures` (float32, `phash` uint64); `annotations` is JSON text or empty;
`mode` says how the file stores its pixels (`images.modes`), which `channels`, those that it decodes to, do not.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deepcv.data.samples import DataError

if TYPE_CHECKING:  # 0.2 s of each stage and of each helper of it that makes no table
    import pandas as pd

SPLITS = ("train", "val", "test")
# Manifests of older versions end with `source`; whoever needs a later column says what to do where it is missing.
COLUMNS = (
    "id", "split", "label", "sha256", "width", "height", "channels", "bytes", "offset", "source",
    "brightness", "contrast", "sharpness", "noise", "entropy", "saturation", "red_minus_blue", "phash", "annotations",
    "mode",
)  # fmt: skip


@dataclass(frozen=True)
class DatasetInfo:
    """What a dataset is called, its classes in the order of their label numbers, and which test images it is judged on."""

    name: str
    classes: tuple[str, ...]
    test_digest: str


def read(folder: Path) -> "tuple[pd.DataFrame, DatasetInfo]":
    """Return what `packing.pack` wrote to `folder`. Raises DataError."""
    import pandas as pd

    info = read_info(folder)
    try:
        return pd.read_parquet(folder / "manifest.parquet"), info
    except FileNotFoundError as error:
        raise DataError(f"{error.filename or folder}: missing; run `dvc repro ingest`") from error
    except (ValueError, OSError) as error:
        raise DataError(f"{folder}: damaged ({error}); run `dvc repro ingest`") from error


def readable(rows: "pd.DataFrame") -> NDArray[np.bool_]:
    """Tell the rows that are images, (n,), from those of files that `ingest` could not decode."""
    return rows["width"].to_numpy() > 0


def read_info(folder: Path) -> DatasetInfo:
    """Return what dataset.json in `folder` says. Raises DataError."""
    path = folder / "dataset.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return DatasetInfo(raw["name"], tuple(raw["classes"]), raw["test_digest"])
    except FileNotFoundError as error:
        raise DataError(f"{path}: missing; run `dvc repro ingest`") from error
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(f"{path}: damaged ({error}); run `dvc repro ingest`") from error


def encoded_images(folder: Path, rows: "pd.DataFrame") -> Iterator[bytes]:
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


def digest_of_test_split(contents: bytes | bytearray, labels: NDArray[np.integer], names: list[str]) -> str:
    """Sha256 over the (image, label) pairs of the test split, whatever their order, names and preprocessing.

    `contents` are the images' sha256 end to end, 32 bytes each; labels (n,) number the sorted `names`.
    """
    order = np.lexsort((labels, np.frombuffer(contents, "S32")))
    digest = hashlib.sha256()
    for place, position in enumerate(order.tolist()):
        image = contents[32 * position : 32 * position + 32].hex()
        digest.update(f"{chr(10) if place else ''}{image}:{names[labels[position]]}".encode())
    return digest.hexdigest()
