"""What is learned of the images of a manifest, as arrays: class numbers, labels that are there or not, or numbers."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcv.data.samples import DataError
from deepcv.task import Task

_SHOWN = 5
_KEY = "preprocess.target"
_FINE = 0.01  # largest step between two numbers of float32, as a share of the standard deviation


@dataclass(frozen=True)
class Targets:
    """The task, what its classes, labels or numbers are called, and `of(label, annotations)`, one image's target.

    That is a class number, or a list of 0 and 1 or of numbers, one per name; `dtype` and `shape` are those of its array.
    """

    task: Task
    names: tuple[str, ...]
    of: Callable[[str, str], int | list[float]]

    @property
    def dtype(self) -> type[np.generic]:
        """int64 of class numbers, else float32."""
        return np.int64 if self.task.kind == "classification" else np.float32

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image's target."""
        return () if self.task.kind == "classification" else (len(self.names),)


def find(
    task: Task, classes: tuple[str, ...], annotations: Callable[[], Iterable[tuple[str, str]]], key: str = _KEY
) -> Targets:
    """Return what `task` learns of images with these classes and (id, annotations). Raises DataError where it is not there.

    Labels are sorted; numbers keep the order of the table's description. Errors name the param `key`.
    """
    if task.kind == "classification":
        if len(classes) < 2:
            raise DataError(
                f"{key}: all images are of one class ({', '.join(classes)}); name what is to be learned: "
                "tags.COLUMN or numbers.COLUMN of the table, or boxes"
            )
        number_of = {name: number for number, name in enumerate(classes)}
        return Targets(task, classes, lambda label, _annotations: number_of[label])
    kind, _, column = task.of.partition(".")
    if kind == "numbers":
        return _numbers(task, column, annotations, key)
    names = sorted({name for _, text in annotations() for name in _labels(kind, column, text)})
    if not names:
        raise DataError(f"{key}: no image has {_what(kind, column)}; {_there(annotations())}")

    def of(_label: str, text: str) -> list[float]:
        there = _labels(kind, column, text)
        return [float(name in there) for name in names]

    return Targets(task, tuple(names), of)


def _numbers(task: Task, column: str, annotations: Callable[[], Iterable[tuple[str, str]]], key: str) -> Targets:
    there = dict.fromkeys(name for _, text in annotations() for name in _content(text).get("numbers", ()))
    names = tuple(name for name in there if column in ("", name))
    if not names:
        raise DataError(f"{key}: no image has {_what('numbers', column)}; {_there(annotations())}")
    missing = [image_id for image_id, text in annotations() if set(names) - set(_content(text).get("numbers", ()))]
    if missing:
        raise DataError(
            f"{key}: {len(missing)} images have no {' or no '.join(names)}: {', '.join(missing[:_SHOWN])}"
            f"{', …' if len(missing) > _SHOWN else ''}; give them one, or list them in data/exclusions.txt"
        )

    def of(_label: str, text: str) -> list[float]:
        found = _content(text)["numbers"]
        return [float(found[name]) for name in names]

    # Columns of `deepcv predict`; that of a further number is called numbers.NAME.
    if key == _KEY and (taken := sorted({"file", "error"} & set(names))):
        raise DataError(f"{key}: a number cannot be called {' or '.join(taken)}; rename the column")
    _check_float32(names, np.array([of("", text) for _, text in annotations()]), key)

    return Targets(task, names, of)


def _check_float32(names: tuple[str, ...], numbers: NDArray[np.float64], key: str) -> None:
    """Raise DataError where numbers (n, k) are not told apart as float32, in which a network computes."""
    largest, spread = np.abs(numbers).max(axis=0), numbers.std(axis=0)
    for name, top, deviation in zip(names, largest.tolist(), spread.tolist(), strict=True):
        with np.errstate(over="ignore"):
            step = float(np.spacing(np.float32(top)))
        if not step <= _FINE * deviation and deviation > 0:  # also true for NaN: of what float32 does not hold
            raise DataError(
                f"{key}: {name} goes up to {top:g} with a standard deviation of {deviation:g}, which float32 does "
                "not tell apart; subtract an offset in the table, or take another unit"
            )


def _labels(kind: str, column: str, text: str) -> set[str]:
    content = _content(text)
    if kind == "boxes":
        return {box["label"] for box in content.get("boxes", ())}
    return set(content.get("tags", {}).get(column, ()))


def _content(text: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(text) if text else {}
    return content


def _what(kind: str, column: str) -> str:
    return "boxes" if kind == "boxes" else f"{kind} of the name {column!r}" if column else kind


def _there(annotations: Iterable[tuple[str, str]]) -> str:
    """Say what else there is to learn."""
    found: set[str] = set()
    for _, text in annotations:
        content = _content(text)
        found |= {"boxes"} & content.keys()
        found |= {f"{kind}.{name}" for kind in ("tags", "numbers") for name in content.get(kind, ())}
    return f"there are {', '.join(sorted(found))}" if found else "the dataset has classes alone"
