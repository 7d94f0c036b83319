"""What changed between two manifests: images added, removed, renamed, relabelled, moved, with other pixels or annotations."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from deepcv.data.manifest import SPLITS
from deepcv.data.markup import visible
from deepcv.data.revisions import Snapshot
from deepcv.data.samples import DataError

COLUMNS = ("id", "split", "label", "sha256", "bytes", "offset")
OPTIONAL = ("annotations",)  # older manifests lack it
_TOLD = ("id", "split", "label", "sha256")
_FIRST_IMAGES = 5
_FIRST_CLASSES = 10


@dataclass(frozen=True)
class Diff:
    """The images that differ, by what differs; an image that was relabelled and moved stands in both tables.

    `added` and `removed` have the manifests' columns, the others each column twice, as `…_before` and `…_after`. `reannotated`
    is None where the manifests have no annotations. `balance` has the columns split, class, before, after (images),
    share_before and share_after (of the split's images, 0–1).
    """

    added: pd.DataFrame
    removed: pd.DataFrame
    relabelled: pd.DataFrame
    changed: pd.DataFrame
    moved: pd.DataFrame
    renamed: pd.DataFrame
    reannotated: pd.DataFrame | None
    balance: pd.DataFrame

    @property
    def sections(self) -> dict[str, tuple[str, pd.DataFrame]]:
        """Each table under its key, with its title."""
        sections = {
            "added": ("added", self.added),
            "removed": ("removed", self.removed),
            "relabelled": ("relabelled", self.relabelled),
            "changed": ("changed pixels", self.changed),
            "moved": ("moved between splits", self.moved),
            "renamed": ("renamed", self.renamed),
        }
        if self.reannotated is not None:
            sections["reannotated"] = ("other annotations", self.reannotated)
        return sections

    @property
    def is_empty(self) -> bool:
        """Whether no image differs."""
        return all(table.empty for _, table in self.sections.values())


@dataclass(frozen=True)
class Report:
    """A diff with the two datasets it is about; `before` and `after` are their dataset.json, `images` their sizes."""

    names: tuple[str, str]
    before: dict[str, Any]
    after: dict[str, Any]
    images: tuple[int, int]
    diff: Diff


def report(before: Snapshot, after: Snapshot) -> Report:
    """Read and compare two datasets. Raises DataError."""
    rows = [snapshot.rows(COLUMNS, OPTIONAL) for snapshot in (before, after)]
    if len({tuple(table.columns) for table in rows}) > 1:  # one is older: what it lacks is compared on neither side
        rows = [table[list(COLUMNS)] for table in rows]
    described = [snapshot.description() for snapshot in (before, after)]
    for snapshot, table in zip((before, after), rows, strict=True):
        if not table["id"].is_unique:
            first = table["id"][table["id"].duplicated()].iloc[0]
            raise DataError(
                f"{snapshot.name}: expected one row per image id, found {first!r} twice; run `dvc repro ingest`"
            )
    return Report(
        (before.name, after.name), described[0], described[1], (len(rows[0]), len(rows[1])),
        compare(rows[0], rows[1], classes=[*described[1]["classes"], *described[0]["classes"]]),
    )  # fmt: skip


def compare(before: pd.DataFrame, after: pd.DataFrame, classes: Sequence[str] = ()) -> Diff:
    """Compare two manifests with unique ids and the same columns; `classes` orders the table of class shares.

    Images are paired by id; what is left is paired by content (sha256, equal images in the order of their ids): those
    were renamed. What then has no partner was added or removed.
    """
    place = pd.Index(before["id"]).get_indexer(pd.Index(after["id"]))  # row in `before` of each row of `after`, or -1
    same_id = _pairs(before, after, place[place >= 0], np.flatnonzero(place >= 0))
    gone = before[~np.isin(np.arange(len(before)), place)]
    new = after[place < 0]
    renamed = _ranked(gone).merge(_ranked(new), on=["sha256", "rank"], suffixes=("_before", "_after"))
    renamed = renamed.assign(sha256_before=renamed["sha256"], sha256_after=renamed["sha256"])[list(same_id.columns)]
    pairs = pd.concat([same_id, renamed], ignore_index=True) if len(renamed) else same_id
    return Diff(
        added=new[~new["id"].isin(renamed["id_after"])].reset_index(drop=True),
        removed=gone[~gone["id"].isin(renamed["id_before"])].reset_index(drop=True),
        relabelled=_where_differs(pairs, "label"),
        changed=_where_differs(same_id, "sha256"),
        moved=_where_differs(pairs, "split"),
        renamed=renamed,
        reannotated=_where_differs(pairs, "annotations") if "annotations" in before else None,
        balance=balance(before, after, classes),
    )


def balance(before: pd.DataFrame, after: pd.DataFrame, classes: Sequence[str] = ()) -> pd.DataFrame:
    """Count the images of each class in each split and their share of the split, in two manifests."""
    sizes = [table.groupby(["split", "label"]).size() for table in (before, after)]
    counts = pd.concat(sizes, axis=1, keys=["before", "after"]).fillna(0).astype(np.int64)
    counts = counts.rename_axis(["split", "class"]).reset_index()
    order = {name: number for number, name in reversed(list(enumerate([*SPLITS, *classes])))}
    counts = counts.sort_values(["split", "class"], key=lambda names: names.map(order), kind="stable")
    for side in ("before", "after"):
        total = counts.groupby("split")[side].transform("sum")
        counts[f"share_{side}"] = counts[side] / total.where(total > 0, 1)
    return counts.reset_index(drop=True)


def as_json(found: Report) -> str:
    """Everything that differs, as one JSON object."""
    tables = {
        key: table[[c for c in table if str(c).removesuffix("_before").removesuffix("_after") in _told(key)]]
        for key, (_, table) in found.diff.sections.items()
    }
    sides = zip(("before", "after"), found.names, found.images, (found.before, found.after), strict=True)
    return json.dumps(
        {
            **{side: {"revision": name, "images": images, **info} for side, name, images, info in sides},
            "counts": {key: len(table) for key, table in tables.items()},
            **{key: table.to_dict("records") for key, table in tables.items()},
            "balance": found.diff.balance.to_dict("records"),
        },
        ensure_ascii=False,
    )


def as_text(found: Report) -> str:
    """Counts, the first few images of each kind, and the classes' shares of each split, for a terminal."""
    return "\n".join([headline(found), "", *_images(found.diff), "", *_balance(found), *judged(found)])


def headline(found: Report) -> str:
    """One line: which datasets, how many images."""
    names = [f"{name}: {info['name']}" for name, info in zip(found.names, (found.before, found.after), strict=True)]
    return f"{names[0]}, {found.images[0]} images -> {names[1]}, {found.images[1]} images"


def judged(found: Report) -> list[str]:
    """Say it where models of the two datasets are judged on different test images, and where annotations are not compared."""
    lines = []
    if found.before["test_digest"] != found.after["test_digest"]:
        lines.append("The test images or their labels differ: test scores of before and after do not compare.")
    elif found.diff.reannotated is not None and (found.diff.reannotated["split_after"] == "test").any():
        lines.append("Annotations of test images differ: test scores of what is learned from them do not compare.")
    if found.diff.reannotated is None:
        lines.append(
            "Annotations are not compared: a manifest is of an older DeepCV and has none; `dvc repro ingest` writes a new one."
        )
    return lines


def caption(key: str, row: Any) -> str:
    """What to say of one image of a section of a diff, on one line; `row` is a row of the section's table."""
    if key in {"added", "removed"}:
        return f"{visible(row.id)} ({row.split}, {visible(row.label)})"
    if key == "relabelled":
        return f"{visible(row.id_after)} ({visible(row.label_before)} -> {visible(row.label_after)})"
    if key == "moved":
        return f"{visible(row.id_after)} ({row.split_before} -> {row.split_after})"
    if key == "renamed":
        return f"{visible(row.id_before)} -> {visible(row.id_after)}"
    if key == "reannotated":
        return f"{visible(row.id_after)} ({_kinds_that_differ(row.annotations_before, row.annotations_after)})"
    return visible(row.id_after)


def _kinds_that_differ(before: str, after: str) -> str:
    """Name the kinds of annotations (boxes, numbers, tags, masks) that differ between two JSON texts."""
    one, two = (json.loads(text or "{}") for text in (before, after))
    return ", ".join(kind for kind in {**one, **two} if one.get(kind) != two.get(kind))


def _told(key: str) -> tuple[str, ...]:
    return (*_TOLD, "annotations") if key == "reannotated" else _TOLD


def _images(diff: Diff) -> Iterator[str]:
    for key, (title, table) in diff.sections.items():
        yield f"{title:<22}{len(table):>9}"
        yield from (f"    {caption(key, row)}" for row in table.head(_FIRST_IMAGES).itertuples())
        if len(table) > _FIRST_IMAGES:
            yield f"    … and {len(table) - _FIRST_IMAGES} more"


def _balance(found: Report) -> Iterator[str]:
    """One line per split and class; where there are many, those whose share changed most."""
    table = found.diff.balance
    yield f"{'split':<6} {'class':<24} {'before':>18} {'after':>18}"
    for split, part in table.groupby("split", sort=False):
        change = (part["share_after"] - part["share_before"]).abs()
        shown = part.loc[change.nlargest(_FIRST_CLASSES).index].sort_index()
        for row in shown.itertuples():
            before, after = f"{row.before} {row.share_before:7.2%}", f"{row.after} {row.share_after:7.2%}"
            yield f"{split:<6} {visible(row[2])[:24]:<24} {before:>18} {after:>18}"
        if len(part) > len(shown):
            yield f"{split:<6} … and {len(part) - len(shown)} more classes, whose shares changed less"


def _pairs(
    before: pd.DataFrame, after: pd.DataFrame, rows_before: NDArray[np.intp], rows_after: NDArray[np.intp]
) -> pd.DataFrame:
    """Put rows of the two manifests side by side."""
    left = before.iloc[rows_before].reset_index(drop=True).add_suffix("_before")
    return left.join(after.iloc[rows_after].reset_index(drop=True).add_suffix("_after"))


def _ranked(rows: pd.DataFrame) -> pd.DataFrame:
    """Number equal images in the order of their ids, so that copies of one image are paired one to one."""
    rows = rows.sort_values("id")
    return rows.assign(rank=rows.groupby("sha256").cumcount())


def _where_differs(pairs: pd.DataFrame, column: str) -> pd.DataFrame:
    return pairs[pairs[f"{column}_before"] != pairs[f"{column}_after"]].reset_index(drop=True)
