"""A CSV or parquet file of paths and labels: `source: table`."""

import io
import json
import math
from collections import Counter
from collections.abc import Hashable, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from deepcv.data.samples import DataError
from deepcv.data.sources.description import Description
from deepcv.data.sources.source import Place, Source, check_classes, refuse, source_of, split_named, unlisted
from deepcv.data.sources.tree import Tree

if TYPE_CHECKING:  # no other source needs it
    import pandas as pd

_KINDS = ("numbers", "tags", "masks")
TABLES = (".csv", ".parquet", ".pq")
UNLABELLED = "image"  # the class of all images of a table that has none


def table(tree: Tree, description: Description) -> Source:
    """Read the images that a table names, one row each.

    Keys: `path` (labels.csv), `images` (the folder that the paths start from: the description's own), `image` and `label`
    (the columns of that name), `split` (a column; without it DeepCV splits), `unlisted: skip` (leave out images that no row
    names), and lists of columns that the manifest keeps as JSON in `annotations`: `numbers`, `tags` (several, separated by
    `;`), `masks` (paths, as of images). Of these, a cell may be empty, and a table that has some needs no label. Raises
    DataError that lists the first bad rows.
    """
    description.only("path", "images", "image", "label", "split", *_KINDS, "unlisted")
    file = description.place("path", "labels.csv")
    origin = tree.origin / file
    rows = read(tree.read(file), str(origin))
    more = {kind: description.texts(kind) for kind in _KINDS}
    unlabelled = "label" not in description.values and "label" not in rows.columns and any(more.values())
    columns = {key: description.text(key, key) for key in (("image",) if unlabelled else ("image", "label"))}
    if "split" in description.values:
        columns["split"] = description.text("split")
    if absent := sorted(
        {*columns.values(), *(column for found in more.values() for column in found)} - set(rows.columns)
    ):
        raise DataError(
            f"{origin}: there is no column {', '.join(absent)}; it has {', '.join(map(str, rows.columns))}. "
            f"Name them in {description.origin}: `image: <column>`, `label: <column>`"
        )
    images = rows[columns["image"]]
    labels = images.map(lambda _image: UNLABELLED) if unlabelled else rows[columns["label"]]
    splits = rows[columns["split"]] if "split" in columns else None
    folder = description.place("images", ".")
    names = [folder / name for name in images]
    files = set(tree.files)
    masks = {folder / cell for column in more["masks"] for cell in rows[column]}
    refuse(
        origin,
        {
            "rows without image": [f"row {number}" for number, name in enumerate(images, 1) if not name],
            "rows without label": [str(n) for n, label in zip(names, labels, strict=True) if not label],
            "images with several rows": [str(name) for name, times in Counter(names).items() if times > 1],
            f"images that are not below {tree.origin}": [
                str(name) for name, given in zip(names, images, strict=True) if given and name not in files
            ],
            "rows whose split is none of train, val, test": []
            if splits is None
            else [f"{name} ({split!r})" for name, split in zip(names, splits, strict=True) if not split_named(split)],
            "cells that are no number": [
                f"{name} ({column}: {cell!r})"
                for column in more["numbers"]
                for name, cell in zip(names, rows[column], strict=True)
                if cell and not math.isfinite(_number(cell))
            ],
            f"masks that are not below {tree.origin}": [
                f"{name} ({column}: {cell!r})"
                for column in more["masks"]
                for name, cell in zip(names, rows[column], strict=True)
                if cell and folder / cell not in files
            ],
            **unlisted(tree, description, [folder], masks.union(names)),
        },
    )
    plan = {
        name: Place(
            None if splits is None else split_named(splits.iloc[row]),
            labels.iloc[row],
            _annotations(cells, more, folder) if any(more.values()) else "",
        )
        for row, (name, cells) in enumerate(zip(names, rows.to_dict("records"), strict=True))
    }
    check_classes(origin, plan.values(), least=1 if unlabelled else 2)
    return source_of(tree, plan)


def _annotations(row: Mapping[Hashable, str], more: dict[str, tuple[str, ...]], folder: PurePosixPath) -> str:
    """Return the further labels of an image as JSON text, by kind and column; empty cells are left out."""
    made = {
        "numbers": {column: _number(row[column]) for column in more["numbers"] if row[column]},
        "tags": {column: [t for tag in row[column].split(";") if (t := tag.strip())] for column in more["tags"]},
        "masks": {column: str(folder / row[column]) for column in more["masks"] if row[column]},
    }
    return json.dumps({kind: cells for kind, cells in made.items() if more[kind]}, ensure_ascii=False)


def _number(cell: str) -> float:
    """Return NaN where it is none."""
    try:
        return float(cell)
    except ValueError:
        return math.nan


def read(content: bytes, origin: str) -> "pd.DataFrame":
    """Return all cells as stripped text, what is missing as empty text. Raises DataError."""
    import pandas as pd

    try:
        if origin.lower().endswith((".parquet", ".pq")):
            rows = pd.read_parquet(io.BytesIO(content))
            rows = rows.astype(object).where(rows.notna(), "").map(str)
        else:  # a class may be called NA or 007: nothing is converted
            rows = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, OSError) as error:  # pandas' and pyarrow's own errors are ValueErrors
        raise DataError(f"{origin}: cannot be read as a table: {error}") from error
    rows.columns = rows.columns.map(str)
    return rows.map(str.strip)
