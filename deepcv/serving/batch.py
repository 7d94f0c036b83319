"""Predict for files and folders: a CSV and a contact sheet."""

import csv
import os
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from deepcv.errors import DeepcvError
from deepcv.files import atomic
from deepcv.images import DecodeError, UInt8Array, decode, grid

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".pgm", ".ppm", ".tif", ".tiff", ".webp"}
_BATCH = 256
_SHEET_COLUMNS, _SHEET_SIDE, _SHEET_LINES = 6, 96, 3
_SHEET_IMAGES = 36
_FURTHER = re.compile(r"boxes$|(tags|numbers)\.")  # columns of a further target


class Model(Protocol):
    """What a registered model offers (mlflow.pyfunc)."""

    def predict(self, data: pd.DataFrame) -> pd.DataFrame:
        """Column `image` to the columns of `predictor.Predictor.predict`."""


@dataclass(frozen=True)
class Prediction:
    """One file's answer, by the columns of the model's, or the reason why there is none."""

    path: Path
    answer: Mapping[str, str | float] = field(default_factory=dict)
    error: str = ""


def image_files(paths: Sequence[Path], results: Path) -> list[Path]:
    """Return the files named and, in folders, all image files below them, sorted, but for hidden folders and `results`.

    Raises DeepcvError where there is none.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(file for file in _walk(path, results) if file.suffix.lower() in _SUFFIXES)
        elif path.is_file():
            found.append(path)
        else:
            raise DeepcvError(f"{path}: there is no such file or folder")
    if not found:
        raise DeepcvError(f"no image files in {', '.join(map(str, paths))} (looked for {', '.join(sorted(_SUFFIXES))})")
    return found


def _walk(folder: Path, results: Path) -> Iterator[Path]:
    for where, below, names in os.walk(folder):
        below[:] = [
            name for name in below if not name.startswith(".") and (Path(where) / name).resolve() != results.resolve()
        ]
        yield from (Path(where) / name for name in names)


def predict_files(model: Model, files: Sequence[Path]) -> Iterator[Prediction]:
    """Yield a prediction per file, in order; a file that cannot be decoded does not stop the others."""
    with tqdm(total=len(files), unit="image", mininterval=0.5) as bar:
        for start in range(0, len(files), _BATCH):
            batch = files[start : start + _BATCH]
            errors, contents = _read(batch)
            frame = pd.DataFrame({"image": list(contents.values())})
            answers = [_answer(row) for row in model.predict(frame).to_dict("records")] if len(frame) else []
            rows = {path: row for row, path in enumerate(contents)}  # not the frame's index: a name may be no UTF-8
            for path in batch:
                if path in errors:
                    yield Prediction(path, error=errors[path])
                else:
                    yield Prediction(path, answers[rows[path]])
            bar.update(len(batch))


def write_csv(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write `file`, the columns of the answers (of classes `label,probability`) and `error`; file names keep their bytes."""
    columns = next((list(p.answer) for p in predictions if p.answer), [])
    with atomic(path) as aside, aside.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", *columns, "error"])
        for p in predictions:
            writer.writerow([p.path, *(_written(column, p.answer.get(column, "")) for column in columns), p.error])


def write_sheet(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write a contact sheet (PNG) of images spread evenly over the predictions, each with its answer."""
    path.unlink(missing_ok=True)
    shown = [p for p in predictions if not p.error]
    count = min(_SHEET_IMAGES, len(shown))
    picked = [shown[number * len(shown) // count] for number in range(count)]
    tiles = [_tile(decode(p.path.read_bytes(), 3)) for p in picked]
    captions = [tuple(_line(*item) for item in list(p.answer.items())[:_SHEET_LINES]) for p in picked]
    if tiles:
        sheet = grid(np.stack(tiles), captions, columns=_SHEET_COLUMNS, tile_side=_SHEET_SIDE)
        with atomic(path) as aside:
            aside.write_bytes(cv2.imencode(".png", sheet[:, :, ::-1])[1].tobytes())


def _answer(row: Mapping[Hashable, Any]) -> dict[str, str | float]:
    """The columns that a person reads: all but lists of probabilities."""
    return {str(name): value for name, value in row.items() if not isinstance(value, list)}


def _written(column: str, value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.6f}" if column == "probability" else f"{value:.9g}"


def _line(column: str, value: str | float) -> str:
    """A line below an image: the value, and of a further target, as `numbers.age`, which it is."""
    text = value if isinstance(value, str) else f"{value:.4g}"
    return f"{column.partition('.')[2] or column}: {text}" if _FURTHER.match(column) else text


def _read(batch: Iterable[Path]) -> tuple[dict[Path, str], dict[Path, bytes]]:
    errors: dict[Path, str] = {}
    contents: dict[Path, bytes] = {}
    for path in batch:
        try:
            content = path.read_bytes()
            decode(content)
            contents[path] = content
        except (DecodeError, OSError) as error:
            errors[path] = str(error)
    return errors, contents


def _tile(image_hwc: UInt8Array) -> UInt8Array:
    """Square crop from the centre, at the sheet's size."""
    side = min(image_hwc.shape[:2])
    top, left = (image_hwc.shape[0] - side) // 2, (image_hwc.shape[1] - side) // 2
    square = image_hwc[top : top + side, left : left + side]
    interpolation = cv2.INTER_AREA if side > _SHEET_SIDE else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(square, (_SHEET_SIDE, _SHEET_SIDE), interpolation=interpolation), np.uint8)
