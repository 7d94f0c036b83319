"""Classification datasets of torchvision by class name: `{source: torchvision, name: Flowers102}`.

Local files first, then a download. torchvision holds md5 digests against what it downloads, and against local files where
it keeps the published ones (CIFAR, SVHN, STL10, …); of images that lie unpacked (Imagenette, Flowers102, …) it looks only
whether they are there: for those there is the key `sha256`.
"""

import hashlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepcv.data.samples import DataError, Sample
from deepcv.data.sources.description import Description
from deepcv.data.sources.source import Place, Source, check_classes
from deepcv.images import encode_png

# What datasets call their splits, the first that one has; Flowers102 and others have all three.
_SPLITS = {"train": ("train", "trainval", "train-standard"), "val": ("val", "valid"), "test": ("test",)}
_PATHS = ("samples", "_samples", "imgs", "_image_files", "_images")
_LABELS = ("targets", "labels", "_labels")


@dataclass(frozen=True)
class _Part:
    """One split, opened: numbers of its classes, and the files that its images are where torchvision has files."""

    split: str | None
    data: Any
    labels: list[int]
    paths: list[Path] | None


def torchvision_set(description: Description, root: Path, *, may_download: bool) -> Source:
    """Open the dataset that lies below `root` as torchvision lays it out. Raises DataError.

    Images are the original files where torchvision has them, else PNG. Keys: `name`, `root`, `options`, further
    arguments of torchvision's class (`size: 160px` of Imagenette), and `sha256` of the files with their labels, which is
    known, and held against that, when all are read.
    """
    from torchvision import datasets  # takes seconds to import; only such a dataset needs it

    description.only("name", "root", "options", "sha256")
    name = description.text("name")
    kind = vars(datasets).get(name)
    if not (inspect.isclass(kind) and issubclass(kind, datasets.VisionDataset)):
        raise DataError(
            f"{description.origin}: torchvision has no dataset {name!r}; see torchvision.datasets for the names"
        )
    options = description.values.get("options", {})
    if not isinstance(options, dict):
        raise DataError(f"{description.origin}: expected `options:` with arguments of {name}, got {options!r}")

    def build(**arguments: object) -> Any:
        return _built(kind, root, description, may_download, {**options, **arguments})

    parts = [_part(split, data, name, description.origin) for split, data in _splits(kind, build, options)]
    numbers = max(max(part.labels, default=0) for part in parts) + 1
    names = _class_names(parts[0].data, numbers)
    check_classes(description.origin, [Place(p.split, names[label]) for p in parts for label in set(p.labels)])

    expected = description.text("sha256") if description.values.get("sha256") else None
    if expected is not None and any(part.paths is None for part in parts):
        raise DataError(f"{description.origin}: {name} has no image files that a `sha256` could be of; remove that key")

    def samples() -> Iterator[Sample]:
        seen = hashlib.sha256()
        for part in parts:
            for sample in _samples(part, names, root):
                if expected is not None:
                    seen.update(repr((sample.id, sample.split, sample.label)).encode())
                    seen.update(hashlib.sha256(sample.encoded).digest())
                yield sample
        if expected is not None and (found := seen.hexdigest()) != expected:
            raise DataError(
                f"{name} below {root}: the sha256 of its images and labels is {found}, {description.origin} says {expected}; "
                "bring the files back, or correct that"
            )

    present = {label for part in parts for label in part.labels}
    classes = tuple(label for number, label in enumerate(names) if number in present)
    return Source(classes, sum(len(part.labels) for part in parts), samples)


def _splits(kind: Any, build: Callable[..., Any], options: dict[str, object]) -> Iterator[tuple[str | None, Any]]:
    """Open every split that the dataset has."""
    arguments = inspect.signature(kind).parameters
    if "train" in arguments and "train" not in options:
        yield "train", build(train=True)
        yield "test", build(train=False)
    elif "split" in arguments and "split" not in options:
        for split, spellings in _SPLITS.items():
            for spelling in spellings:
                try:
                    data = build(split=spelling)
                except ValueError as error:
                    if "split" not in str(error) and "Unknown value" not in str(error):
                        raise
                else:
                    yield split, data
                    break
    else:
        yield None, build()


def _built(kind: Any, root: Path, description: Description, may_download: bool, arguments: dict[str, object]) -> Any:
    """Open local files, else download where that is allowed and torchvision can."""
    name = kind.__name__
    downloads = "download" in inspect.signature(kind).parameters
    try:
        return kind(str(root), **arguments)
    except TypeError as error:
        raise DataError(f"{description.origin}: {name} cannot be opened: {error}; see `options`") from error
    except (RuntimeError, OSError) as absent:
        if not (may_download and downloads):
            raise DataError(
                f"{name} is not whole below {root} ({_line(absent)}). Put its files there as torchvision lays them out"
            ) from absent
    try:
        root.mkdir(parents=True, exist_ok=True)
        return kind(str(root), download=True, **arguments)
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"{name} is not whole below {root} and cannot be downloaded ({_line(error)}). Run "
            f"`python -c \"from torchvision.datasets import {name}; {name}('{root}', download=True)\"` where there is "
            f"internet access, copy the folder, or name another one in {description.origin}: `root: <folder>`"
        ) from error


def _part(split: str | None, data: Any, name: str, origin: str) -> _Part:
    paths = _paths(data)
    labels = next((found for key in _LABELS if (found := getattr(data, key, None)) is not None), None)
    if labels is None and paths is not None:
        entries = next(v for key in _PATHS if (v := getattr(data, key, None)) is not None)
        labels = [entry[1] for entry in entries if isinstance(entry, tuple)]
    try:
        if labels is None or len(labels) != len(data):
            labels = [data[index][1] for index in range(len(data))]
        numbers = [int(label) for label in labels]
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{origin}: {name} is no classification dataset: its targets are no numbers ({error})"
        ) from error
    return _Part(split, data, numbers, paths)


def _paths(data: Any) -> list[Path] | None:
    """The image files, where the dataset keeps their paths."""
    for key in _PATHS:
        entries = getattr(data, key, None)
        if isinstance(entries, list) and entries and len(entries) == len(data):
            files = [entry[0] if isinstance(entry, tuple) else entry for entry in entries]
            if all(isinstance(file, str | Path) for file in files):
                return [Path(file) for file in files]
    return None


def _samples(part: _Part, names: list[str], root: Path) -> Iterator[Sample]:
    if part.paths is None:
        for index, label in enumerate(part.labels):
            yield Sample(f"{part.split or 'all'}/{index:06d}", part.split, names[label], _png(part.data[index][0]))
        return
    ids = [path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix() for path in part.paths]
    for position in sorted(range(len(ids)), key=ids.__getitem__):  # some list the folder as the disk gives it
        try:
            encoded = part.paths[position].read_bytes()
        except OSError as error:
            raise DataError(f"{part.paths[position]}: cannot be read ({error.strerror})") from error
        yield Sample(ids[position], part.split, names[part.labels[position]], encoded)


def _png(image: Any) -> bytes:
    """Encode a Pillow image; grey stays grey, all else becomes RGB."""
    array = np.asarray(image if image.mode in {"L", "RGB"} else image.convert("RGB"))
    return encode_png(array[:, :, None] if array.ndim == 2 else array)


def _class_names(data: Any, count: int) -> list[str]:
    """torchvision's names in the order of the numbers; numbers where it has none, and a number behind a name that is not alone."""
    given = getattr(data, "classes", None)
    if not isinstance(given, list | tuple) or len(given) < count:
        return [str(number) for number in range(count)]
    names = [str(entry[0] if isinstance(entry, tuple) else entry) for entry in given]
    return [f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names)]


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
