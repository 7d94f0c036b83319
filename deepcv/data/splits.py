"""Which split an image belongs to: what the source says, and where it says nothing, a draw by hash.

Two draws. `stratified` takes exact shares of every class; one more image may move others. `stable` looks at one image alone, so that
adding or replacing an image moves no other; its shares hold on average only. In both, what stays together is a *unit*: all images
that are equal byte for byte or, with `group_by`, all images of one group.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from deepcv.data.manifest import SPLITS
from deepcv.data.samples import DataError

TRAIN, VAL, TEST = range(3)
OPEN = -1  # the source leaves the split to DeepCV
LEFT_OUT = -2  # no image: it is in no split and moves none
DIGEST_BYTES = 16  # kept of each sha256: 128 bits tell images apart, in half of the memory

Digests = NDArray[np.bytes_]  # (n,) S16


@dataclass(frozen=True)
class SplitRule:
    """Section `ingest` as far as it is about splits; `group_by` is a pattern with one group, empty for none."""

    val_fraction: float
    test_fraction: float
    seed: int
    method: Literal["stratified", "stable"] = "stratified"
    group_by: str = ""
    folds: int = 0
    fold: int = 0

    def unit(self, image_id: str, content: str) -> str | None:
        """Name what this image must stay together with: its group, or its content; None where it is in no group."""
        if not self.group_by:
            return content
        found = re.search(self.group_by, image_id)
        return (found[1] or None) if found else None

    def rank(self, unit: str) -> bytes:
        """`DIGEST_BYTES` bytes that place a unit in the draw."""
        return hashlib.sha256(f"{self.seed}:{unit}".encode()).digest()[:DIGEST_BYTES]


def assign(
    given: NDArray[np.int8], labels: NDArray[np.int32], ranks: Digests, contents: Digests | None, rule: SplitRule,
    name: Callable[[int], str],
) -> NDArray[np.int8]:  # fmt: skip
    """Return each image's split, (n,); what the source left open is drawn from its train images.

    given (n,) is the source's split, OPEN, or LEFT_OUT, which stays; ranks (n,) are those of the units, contents (n,) tell equal
    images (needed with `group_by` alone), `name` gives an image's id for messages. A fraction counts against the images that the
    source did not put into another split. A unit of several labels is drawn with the least of them. Raises DataError.
    """
    splits = np.where(given == OPEN, np.int8(TRAIN), given)
    if rule.group_by:
        _check_together(
            ranks, splits, np.flatnonzero(splits != LEFT_OUT), name, "the source itself puts images of one group into"
        )
    fractions = {VAL: rule.val_fraction, TEST: rule.test_fraction}
    wanted = {split: share for split, share in fractions.items() if not (splits == split).any()}
    if rule.folds and VAL not in wanted:
        raise DataError("ingest.folds: the dataset brings a val split of its own; set folds to 0 or remove that folder")
    drawn = np.flatnonzero(splits == TRAIN).astype(np.int32)
    if rule.method == "stable":
        splits[drawn] = _stable(ranks[drawn], wanted, rule)
    else:
        dealt = 0  # images that the folds shared out so far: the next class goes on where the last one ended
        for members, units in _by_class(drawn, labels, ranks):
            found = _shares(units, wanted, rule, dealt)
            splits[members] = found
            dealt += int((found != TEST).sum())
    if contents is not None:
        _check_together(contents, splits, drawn, name, "ingest.group_by puts equal images of two groups into")
    return splits


def check_named(named: Iterable[int], given: NDArray[np.int8], why: str) -> None:
    """Raise DataError where a split that the source names has no image in `given`; `why` says what became of its files.

    Drawing such a split from train would judge models on other images than the source meant, and nobody would see it.
    """
    there = {TRAIN if split == OPEN else split for split in np.unique(given).tolist()}
    if lost := [SPLITS[split] for split in sorted(set(named) - there)]:
        hint = "" if "train" in lost else ", or remove all of them from the source, and the split is drawn from train"
        raise DataError(
            f"the source has a {' and a '.join(lost)} split of its own, but none of its files there is an image; repair "
            f"them{hint}{why}"
        )


def check_not_empty(splits: NDArray[np.int8], labels: NDArray[np.int32], names: list[str]) -> None:
    """Raise DataError where a class has no train image, or a split no image at all; `names` are those of the labels."""
    present = set(np.unique(labels[splits == TRAIN]).tolist())
    if missing := [name for number, name in enumerate(names) if number not in present]:
        raise DataError(
            f"too few images of class {', '.join(missing)}: none is left for training after val and test took theirs"
        )
    for split in (VAL, TEST):
        if not (splits == split).any():
            raise DataError(
                f"the split {SPLITS[split]} got no image of {len(splits)}; raise ingest.{SPLITS[split]}_fraction, "
                "lower ingest.folds, or use more images or groups"
            )


def _by_class(
    drawn: NDArray[np.int32], labels: NDArray[np.int32], ranks: Digests
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """Yield each class's images in the order of their ranks, and the number of each one's unit, ascending."""
    if not len(drawn):
        return
    # What lies in memory here is all that grows with the dataset, so nothing is copied that need not be.
    order = drawn[np.argsort(ranks if len(drawn) == len(ranks) else ranks[drawn], kind="stable")]
    begins = np.zeros(len(order), np.bool_)
    begins[0] = True
    for half in np.ascontiguousarray(ranks).view(np.uint64).reshape(-1, 2).T:
        sorted_half = half[order]
        begins[1:] |= sorted_half[1:] != sorted_half[:-1]
    del half, sorted_half
    units = np.cumsum(begins, dtype=np.int32)
    units -= 1
    label = np.minimum.reduceat(labels[order], np.flatnonzero(begins))[units]
    by_label = np.argsort(label, kind="stable")
    ends = np.flatnonzero(np.diff(label[by_label])) + 1
    for members in np.split(by_label, ends):
        yield order[members], units[members]


def _shares(units: NDArray[np.int32], wanted: Mapping[int, float], rule: SplitRule, dealt: int) -> NDArray[np.int8]:
    """Cut one class: the first share of its images, in whole units, is val, the next is test; `dealt` images had a fold before."""
    splits = np.zeros(len(units), np.int8)
    start = 0
    for split, share in wanted.items():
        end = _whole(units, start + max(1, round(share * len(units))))
        splits[start:end] = split
        start = end
    if rule.folds:  # after the draw, so that models of all folds and of none are judged on the same test images
        rest = np.flatnonzero(splits != TEST)
        first, last = (
            _whole(units[rest], _start(number, len(rest), rule.folds, dealt)) for number in (rule.fold, rule.fold + 1)
        )
        splits[rest] = TRAIN
        splits[rest[first:last]] = VAL
    return splits


def _start(fold: int, images: int, folds: int, dealt: int) -> int:
    """Count the images before a fold, where those that do not divide go one each to the folds from `dealt` on, round and round.

    Rounding each class by itself would make the same fold the smallest in all of them.
    """
    each, left = divmod(images, folds)
    return fold * each + sum((number - dealt) % folds < left for number in range(fold))


def _whole(units: NDArray[np.int32], end: int) -> int:
    """Move an end forward to where no unit is cut."""
    return end if end == 0 or end >= len(units) else int(np.searchsorted(units, units[end - 1], side="right"))


def _stable(ranks: Digests, wanted: Mapping[int, float], rule: SplitRule) -> NDArray[np.int8]:
    """Read a unit's rank as a number in 0–1 and compare it with the fractions; test comes first, whatever val's share is."""
    place = (ranks.view(">u8")[::2] >> np.uint64(11)).astype(np.float64) * 2.0**-53
    test = wanted.get(TEST, 0.0)
    if rule.folds:
        number = np.minimum((place - test) / (1 - test) * rule.folds, rule.folds - 1).astype(np.int64)
        is_val = number == rule.fold
    else:
        is_val = place < test + wanted.get(VAL, 0.0)
    return np.where(place < test, TEST, np.where(is_val, VAL, TRAIN)).astype(np.int8)


def _check_together(
    keys: Digests, splits: NDArray[np.int8], among: NDArray[np.integer], name: Callable[[int], str], what: str
) -> None:
    order = among[np.argsort(keys[among], kind="stable")]
    apart = np.flatnonzero((keys[order[1:]] == keys[order[:-1]]) & (splits[order[1:]] != splits[order[:-1]]))
    if len(apart):
        one, other = int(order[apart[0]]), int(order[apart[0] + 1])
        raise DataError(
            f"{what} two splits: {name(one)} is in {SPLITS[splits[one]]}, {name(other)} in {SPLITS[splits[other]]} "
            f"({len(apart)} such pairs); repair ingest.group_by, or remove one of the images"
        )
