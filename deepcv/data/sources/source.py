"""What every reader gives, a `Source`, and the checks that they share."""

from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from deepcv.data.samples import DataError, Sample
from deepcv.data.sources.description import Description
from deepcv.data.sources.tree import Tree, is_image_name

SPLIT_OF_NAME = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SHOWN = 5


@dataclass(frozen=True)
class Source:
    """A dataset to read: class names in the order of their label numbers, and its samples, one at a time.

    `read` gives them unchecked; `check` passes on those that it is given and raises DataError where some do not fit.
    """

    classes: tuple[str, ...]
    count: int
    read: Callable[[], Iterator[Sample]]
    check: Callable[[Iterable[Sample]], Iterator[Sample]] = iter

    def samples(self) -> Iterator[Sample]:
        """Give all samples, checked. Who leaves some out calls `check` on the others: it must not judge what is left out."""
        return self.check(self.read())


@dataclass(frozen=True)
class Place:
    """Where an image of a tree belongs; `annotations` as in `Sample`, `size` is width and height where annotations declare it."""

    split: str | None
    label: str
    annotations: str = ""
    size: tuple[float, float] | None = None


def source_of(tree: Tree, plan: Mapping[PurePosixPath, Place], classes: Iterable[str] | None = None) -> Source:
    """Give the planned images in the tree's order. Without `classes` they are sorted, numbers as numbers."""
    labels = {place.label for place in plan.values()}
    ordered = sorted(labels, key=natural) if classes is None else [name for name in classes if name in labels]

    def samples() -> Iterator[Sample]:
        for name, encoded in tree.contents(plan):
            place = plan[name]
            yield Sample(str(name), place.split, place.label, encoded, place.annotations)

    return Source(tuple(ordered), len(plan), samples)


def natural(name: str) -> tuple[int, int, str]:
    """Sort names that are numbers as numbers: 0, 1, 2, 10, not 0, 1, 10, 2."""
    return (0, int(name), name) if name.isascii() and name.isdigit() else (1, 0, name)


def split_named(name: str) -> str | None:
    """Return train, val or test for a name of it in any case, else None."""
    return SPLIT_OF_NAME.get(name.lower())


def refuse(origin: object, problems: Mapping[str, Sequence[object]]) -> None:
    """Raise one DataError that counts every kind of problem and shows the first of each; nothing where there is none."""
    counted = Problems()
    for what, found in problems.items():
        for one in found:
            counted.add(what, one)
    counted.refuse(origin)


class Problems:
    """Counts problems of each kind and keeps the first ones alone: every image of millions may have one."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._shown: defaultdict[str, list[str]] = defaultdict(list)

    def add(self, what: str, one: object) -> None:
        """Take one problem of the kind `what`."""
        self._counts[what] += 1
        if self._counts[what] <= _SHOWN:
            self._shown[what].append(str(one))

    def refuse(self, origin: object) -> None:
        """Raise one DataError that counts every kind and shows the first of each; nothing where there is none."""
        lines = [
            f"  {count} {what}: {', '.join(self._shown[what])}{', …' if count > _SHOWN else ''}"
            for what, count in self._counts.items()
        ]
        if lines:
            raise DataError(f"{origin}: repair these:\n" + "\n".join(lines))


def unlisted(
    tree: Tree, description: Description, folders: Iterable[PurePosixPath], named: Container[PurePosixPath]
) -> dict[str, Sequence[object]]:
    """Return the image files below these folders that nothing names, for `refuse`; none where the description says to skip them.

    Files are known by their suffix. Raises DataError where `unlisted:` has another value than `skip`.
    """
    wish = description.values.get("unlisted")
    if wish == "skip":
        return {}
    if wish is not None:
        raise DataError(f"{description.origin}: expected `unlisted: skip`, got {wish!r}")
    starts = {folder.parts for folder in folders}
    lengths = {len(start) for start in starts}
    found = [
        name for name in tree.files
        if name not in named and is_image_name(name) and any(name.parts[:length] in starts for length in lengths)
    ]  # fmt: skip
    return {"images that nothing lists (remove them, or say `unlisted: skip` in dataset.yaml)": found}


def check_classes(origin: object, places: Iterable[Place], *, every_split: bool = True, least: int = 2) -> None:
    """Raise DataError unless there are so many classes, a train split where splits are named, and no spelling twice.

    `every_split` asks for every class in every split, which boxes need not give.
    """
    splits_of: defaultdict[str, set[str | None]] = defaultdict(set)
    for place in places:
        splits_of[place.label].add(place.split)
    spellings: defaultdict[str, list[str]] = defaultdict(list)
    for label in splits_of:
        spellings[label.casefold()].append(label)
    for twins in spellings.values():
        if len(twins) > 1:
            raise DataError(
                f"{origin}: classes {' and '.join(sorted(twins))} differ only in case; merge or rename them"
            )
    if len(splits_of) < least:
        found = f"one class ({next(iter(splits_of))})" if splits_of else "no image"
        raise DataError(f"{origin}: found {found}; classification needs at least two classes")
    splits = set().union(*splits_of.values())
    if splits != {None} and "train" not in splits:
        raise DataError(f"{origin}: found the splits {sorted(map(str, splits))} but no train split")
    for label, present in splits_of.items():
        if every_split and (missing := splits - present):
            raise DataError(f"{origin}: no image for class {label} in split {', '.join(sorted(map(str, missing)))}")
