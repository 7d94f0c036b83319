"""The manifest: one row per image, written by `ingest` beside one file that holds all encoded images.

`data/raw/` holds `manifest.parquet` (columns in `COLUMNS`), `images.bin` (the encoded images end to end; a row's `offset`
and `bytes` say where its image lies) and `dataset.json` (name, class names in label order, digest of the test split).
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from deepcv.data.samples import DataError, Sample
from deepcv.images import DecodeError, decode

COLUMNS = ("id", "split", "label", "sha256", "width", "height", "channels", "bytes", "offset", "source")
SPLITS = ("train", "val", "test")
_SHOWN_PROBLEMS = 10


@dataclass(frozen=True)
class DatasetInfo:
    """What a dataset is called, its classes in the order of their label numbers, and which test images it is judged on."""

    name: str
    classes: tuple[str, ...]
    test_digest: str


def pack(
    samples: Iterable[Sample], classes: tuple[str, ...], folder: Path, *, name: str, source: str,
    val_fraction: float, test_fraction: float, seed: int,
) -> pd.DataFrame:  # fmt: skip
    """Write `folder` from samples, in their order, and return the manifest. Raises DataError that names every bad file."""
    rows: list[dict[str, object]] = []
    problems: list[str] = []
    offset = 0
    with (folder / "images.bin").open("wb") as blob:
        for sample in samples:
            try:
                height, width, channels = decode(sample.encoded).shape
            except DecodeError as error:
                problems.append(f"  {sample.id}: {error}")
                continue
            blob.write(sample.encoded)
            rows.append(
                {
                    "id": sample.id, "split": sample.split, "label": sample.label,
                    "sha256": hashlib.sha256(sample.encoded).hexdigest(),
                    "width": width, "height": height, "channels": channels,
                    "bytes": len(sample.encoded), "offset": offset, "source": source,
                }
            )  # fmt: skip
            offset += len(sample.encoded)
    if problems:
        more = "" if len(problems) <= _SHOWN_PROBLEMS else f"\n  … and {len(problems) - _SHOWN_PROBLEMS} more"
        raise DataError(
            f"{len(problems)} files are no images; repair or remove them:\n"
            + "\n".join(problems[:_SHOWN_PROBLEMS])
            + more
        )
    manifest = pd.DataFrame(rows, columns=list(COLUMNS))
    manifest["split"] = assign_splits(manifest, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed)
    _check_every_class_in_train(manifest, classes)
    manifest.to_parquet(folder / "manifest.parquet", index=False)
    info = DatasetInfo(name, classes, digest_of_test_split(manifest))
    (folder / "dataset.json").write_text(json.dumps(asdict(info), indent=2) + "\n", encoding="utf-8")
    return manifest


def read(folder: Path) -> tuple[pd.DataFrame, DatasetInfo]:
    """Return what `pack` wrote to `folder`. Raises DataError."""
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


def assign_splits(manifest: pd.DataFrame, *, val_fraction: float, test_fraction: float, seed: int) -> pd.Series:
    """Return each row's split; what the source left open is drawn from its train images, stratified by class.

    A fraction counts against all images that the source did not put into another split. The draw depends on the seed and
    the image's content only; images that are equal byte for byte stay together, so that none is trained and tested on.
    Where equal images have several labels, they are drawn with the first of them.
    """
    splits = manifest["split"].where(manifest["split"].notna(), "train").astype(object)
    fractions = {"val": val_fraction, "test": test_fraction}
    wanted = {split: share for split, share in fractions.items() if not (splits == split).any()}
    by_class: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
    label_of = manifest[splits == "train"].groupby("sha256")["label"].min()
    for position, (split, content) in enumerate(zip(splits, manifest["sha256"], strict=True)):
        if split == "train":
            rank = hashlib.sha256(f"{seed}:{content}".encode()).hexdigest()
            by_class[label_of[content]].append((rank, position))
    for ranked in by_class.values():
        ranked.sort()
        start = 0
        for split, share in wanted.items():
            end = start + max(1, round(share * len(ranked)))
            while 0 < end < len(ranked) and ranked[end][0] == ranked[end - 1][0]:
                end += 1
            for _, position in ranked[start:end]:
                splits.iat[position] = split
            start = end
    return splits


def digest_of_test_split(manifest: pd.DataFrame) -> str:
    """Sha256 over the (image, label) pairs of the test split, whatever their order, names and preprocessing."""
    test = manifest[manifest["split"] == "test"]
    pairs = sorted(f"{image}:{label}" for image, label in zip(test["sha256"], test["label"], strict=True))
    return hashlib.sha256("\n".join(pairs).encode()).hexdigest()


def _check_every_class_in_train(manifest: pd.DataFrame, classes: tuple[str, ...]) -> None:
    train = set(manifest.loc[manifest["split"] == "train", "label"])
    if missing := [label for label in classes if label not in train]:
        raise DataError(
            f"too few images of class {', '.join(missing)}: none is left for training after val and test took theirs"
        )
