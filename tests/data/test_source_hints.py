"""Folders that lack only their dataset.yaml: the error gives it, and with it they are read."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import toys
import yaml

from deepcv import scaffold
from deepcv.data.samples import DataError
from deepcv.data.sources import open_source

BOX = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax></bndbox>"
XML = f"<annotation><object><name>{{}}</name>{BOX}</object></annotation>"


def coco(*files: str) -> str:
    rows = [{"image_id": n, "category_id": n % 2, "bbox": [0, 0, 4, 4]} for n in range(len(files))]
    return json.dumps({
        "images": [{"id": n, "file_name": file} for n, file in enumerate(files)],
        "categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}], "annotations": rows,
    })  # fmt: skip


def write(root: Path, images: list[str], texts: dict[str, str]) -> Path:
    toys.write_images(root, images)
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def refused(path: Path) -> str:
    with pytest.raises(DataError) as raised:
        open_source(path, Path("/nonexistent"))
    return str(raised.value)


def described(message: str) -> str:
    """The YAML at the end of the error."""
    return re.sub("(?m)^    ", "", message.partition("\n\n")[2])


PAIR = ["images/1.png", "images/2.png"]
FOLDERS: dict[str, tuple[list[str], dict[str, str], dict[str, Any]]] = {
    "table": (PAIR, {"labels.csv": "image,label\n1.png,a\n2.png,b\n"}, {"source": "table", "images": "images"}),
    "table of other names": (
        ["p/x/1.png", "p/x/2.png"],
        {"birds.csv": "part,photo,Species\ntrain,x/1.png,a\ntrain,x/2.png,b\n"},
        {"source": "table", "path": "birds.csv", "images": "p", "image": "photo", "label": "Species", "split": "part"},
    ),
    "table, loose images": (["1.png", "2.png"], {"a: b.csv": "f,kind\n1.png,a\n2.png,b\n"},
                            {"source": "table", "path": "a: b.csv", "image": "f", "label": "kind"}),
    "coco": (PAIR, {"coco.json": coco("1.png", "2.png")}, {"source": "coco", "annotations": "coco.json"}),
    "coco, folders": (["data/1.png", "data/2.png"], {"annotations/all.json": coco("1.png", "2.png")},
                      {"source": "coco", "annotations": "annotations/all.json", "images": "data"}),
    "coco, splits": (
        [f"{split}2017/{n}.png" for split in ("train", "val") for n in "12"],
        {f"annotations/instances_{split}2017.json": coco("1.png", "2.png") for split in ("train", "val")},
        {
            "source": "coco", "images": {"train": "train2017", "val": "val2017"},
            "annotations": {s: f"annotations/instances_{s}2017.json" for s in ("train", "val")},
        },
    ),
    "voc": (["JPEGImages/1.png", "JPEGImages/2.png"], {f"Annotations/{n}.xml": XML.format(n) for n in "12"}, {"source": "voc"}),
    "voc below": (
        ["VOC/img/1.png", "VOC/img/2.png"],
        {"VOC/ImageSets/Main/train.txt": "1\n2\n", **{f"VOC/Annotations/{n}.xml": XML.format(n) for n in "12"}},
        {"source": "voc", "annotations": "VOC/Annotations", "images": "VOC/img", "splits": "VOC/ImageSets/Main"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDERS)
def test_the_error_gives_the_description_with_which_the_folder_is_read(case: str, tmp_path: Path) -> None:
    images, texts, expected = FOLDERS[case]
    root = write(tmp_path / "birds", images, texts)
    message = refused(root)
    assert f"write {root}/dataset.yaml (docs/data.md" in message
    text = described(message)
    assert yaml.safe_load(text) == expected
    (root / "dataset.yaml").write_text(text)
    assert open_source(root, Path("/nonexistent")).count == len(images)


ODD = [
    "yes",
    "no",
    "on",
    "true",
    "null",
    ".5",
    ".inf",
    "my col ",
    " col",
    "<<",
    "a: b",
    "it's",
    "a #b",
    "1e3",
    "a\nb",
    "\a",
]


@pytest.mark.parametrize("column", ODD)
def test_a_column_of_any_name_is_read_back(column: str, tmp_path: Path) -> None:
    root = write(tmp_path, PAIR, {})
    pd.DataFrame({column: ["1.png", "2.png"], "label": ["a", "b"]}).to_csv(root / "labels.csv", index=False)
    text = described(refused(root))
    assert yaml.safe_load(text) == {"source": "table", "images": "images", "image": column}
    (root / "dataset.yaml").write_text(text)
    assert open_source(root, Path("/nonexistent")).count == 2


def test_a_folder_of_any_name_is_read_back_in_a_list_of_splits(tmp_path: Path) -> None:
    split = {"train": "a, train", "val": "{val}"}
    images = [f"{folder}/{n}.png" for folder in split.values() for n in "12"]
    root = write(tmp_path, images, {f"x/{s}.json": coco("1.png", "2.png") for s in split})
    assert yaml.safe_load(described(refused(root)))["images"] == split


def test_folders_of_annotations_alone_are_named(tmp_path: Path) -> None:
    write(tmp_path, ["a/1.png", "b/1.png"], {"annotations/x.json": "{}"})
    assert refused(tmp_path) == f"{tmp_path}: the folder 'annotations' holds annotations and no images of a class"
    write(tmp_path, [], {"more/x.json": "{}"})
    assert "the folders 'annotations', 'more' hold annotations and no images" in refused(tmp_path)


def test_a_table_in_an_archive_or_as_parquet_is_noticed(tmp_path: Path) -> None:
    root = write(tmp_path / "birds", PAIR, {})
    pd.DataFrame({"image": ["1.png", "2.png"], "label": ["a", "b"]}).to_parquet(root / "l.parquet")
    assert yaml.safe_load(described(refused(root))) == {"source": "table", "path": "l.parquet", "images": "images"}
    assert "write dataset.yaml at the archive's root" in refused(toys.write_zip(root, tmp_path / "birds.zip"))


@pytest.mark.parametrize(
    ("table", "lines"),
    [
        ("image,a,b\n1.png,3,4\n", ["label: <column of the class>  # one of a, b; or `numbers"]),
        ("name,a\n7,3\n", ["image: <column of the paths>  # one of name, a", "label: <column"]),
    ],
)
def test_what_a_table_does_not_tell_is_left_to_the_reader(table: str, lines: list[str], tmp_path: Path) -> None:
    text = described(refused(write(tmp_path, PAIR, {"labels.csv": table})))
    assert all(line in text for line in lines)


def test_init_shows_the_description(tmp_path: Path) -> None:
    write(tmp_path, PAIR, {"labels.csv": "image,label\n1.png,a\n2.png,b\n"})
    with pytest.raises(DataError, match=r"source: table\n    images: images$"):
        scaffold.look(tmp_path, Path("/nonexistent"))


def test_files_of_no_known_format_and_other_folders_are_told_as_before(tmp_path: Path) -> None:
    message = refused(write(tmp_path, ["cat/1.png", "dog/1.png"], {"settings.json": "{}"}))
    assert message.endswith("expected <class>/<image> or <split>/<class>/<image>")
    (tmp_path / "settings.json").rename(tmp_path / "cat/settings.json")
    assert open_source(tmp_path, Path("/nonexistent")).count == 3  # ingest then says that it is no image
