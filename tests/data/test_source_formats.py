"""Tables, boxes and WebDataset, on small generated data of the published layouts."""

import io
import json
import tarfile
import tracemalloc
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import toys
from PIL import Image

from deepcv.data.readers import open_images
from deepcv.data.samples import DataError, Sample
from deepcv.data.sources import Source, open_source
from deepcv.data.sources.boxes import Box, Labelled, declared_size
from deepcv.data.sources.description import Description
from deepcv.data.sources.source import Problems
from deepcv.images import decode, encode_png, headers


def opened(path: Path) -> Source:
    return open_source(path, Path("/nonexistent"))


def by_id(path: Path) -> dict[str, Sample]:
    source = opened(path)
    samples = list(source.samples())
    assert len(samples) == source.count
    assert {sample.label for sample in samples} == set(source.classes)
    return {sample.id: sample for sample in samples}


def boxes(sample: Sample) -> Any:
    return json.loads(sample.annotations)["boxes"]


def write(root: Path, texts: Mapping[str, str]) -> Path:
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


# Tables

ODD = ["a b.png", "ä/日本.png", "line\nbreak.png", 'quo"te,comma.png']


@pytest.mark.parametrize("file", ["labels.csv", "labels.parquet"])
@pytest.mark.parametrize("mode", ["folder", "tar", "zip"])
def test_a_table(file: str, mode: str, tmp_path: Path) -> None:
    root = toys.write_images(tmp_path / "birds", [f"img/{name}" for name in ODD] + ["img/not in the table.png"])
    rows = pd.DataFrame({"file": ODD, "kind": ["NA", "007", "NA", "007"], "part": ["train", "Train", "valid", "valid"]})
    rows.to_csv(root / file, index=False) if file.endswith("csv") else rows.to_parquet(root / file)
    columns = "image: file\nlabel: kind\nsplit: part\nunlisted: skip\n"
    write(root, {"dataset.yaml": f"source: table\npath: {file}\nimages: img\n{columns}"})
    path = {"folder": lambda: root, "zip": lambda: toys.write_zip(root, tmp_path / "b.zip"),
            "tar": lambda: toys.write_tar(tmp_path, tmp_path / "b.tar")}[mode]()  # fmt: skip
    found = by_id(path)
    top = "birds/img/" if mode == "tar" else "img/"
    assert {name: (s.split, s.label) for name, s in found.items()} == {
        top + ODD[0]: ("train", "NA"), top + ODD[1]: ("train", "007"),
        top + ODD[2]: ("val", "NA"), top + ODD[3]: ("val", "007"),
    }  # fmt: skip
    assert opened(path).classes == ("007", "NA")
    assert {s.encoded for s in found.values()} == {(root / "img" / name).read_bytes() for name in ODD}
    assert open_images(path, tmp_path).labelled


def test_further_labels_of_a_table(tmp_path: Path) -> None:
    root = toys.write_images(tmp_path, ["img/1.png", "img/2.png", "img/m/1.png"])
    csv = "image,label,age,marks,outline\n1.png,a,31.5,red; round,m/1.png\n2.png,b,,,\n"
    more = "images: img\nnumbers: [age]\ntags: [marks]\nmasks: [outline]\n"
    write(root, {"labels.csv": csv, "dataset.yaml": f"source: table\n{more}"})
    assert {name: json.loads(sample.annotations) for name, sample in by_id(root).items()} == {
        "img/1.png": {
            "numbers": {"age": 31.5}, "tags": {"marks": ["red", "round"]}, "masks": {"outline": "img/m/1.png"},
        },
        "img/2.png": {"numbers": {}, "tags": {"marks": []}, "masks": {}},
    }  # fmt: skip


def test_a_table_of_tags_or_numbers_needs_no_label(tmp_path: Path) -> None:
    root = toys.write_images(tmp_path, ["1.png", "2.png"])
    write(root, {"labels.csv": "image,age\n1.png,3\n2.png,4.5\n", "dataset.yaml": "source: table\nnumbers: [age]\n"})
    assert opened(root).classes == ("image",)
    found = by_id(root)
    assert {sample.label for sample in found.values()} == {"image"}
    assert json.loads(found["2.png"].annotations) == {"numbers": {"age": 4.5}}
    write(root, {"dataset.yaml": "source: table\nnumbers: [age]\nlabel: kind\n"})
    with pytest.raises(DataError, match="there is no column kind"):
        opened(root)


@pytest.mark.parametrize(
    ("csv", "more", "message"),
    [
        ("image,label\n1.png,a\n2.png,\n", "", "1 rows without label: 2.png"),
        ("image,label\n1.png,a\n1.png,b\n2.png,b\n", "", "1 images with several rows: 1.png"),
        ("image,label\n1.png,a\n9.png,b\n", "", "1 images that are not below .*: 9.png"),
        ("image,label\n1.png,a\n../1.png,b\n", "", r"not below .*: \.\./1.png"),
        ("image,label\n1.png,a\n/etc/passwd,b\n", "", "not below .*: /etc/passwd"),
        ("image,label\n,a\n2.png,b\n", "", "1 rows without image: row 1"),
        ("image,label,s\n1.png,a,train\n2.png,b,dev\n", "split: s", r"none of train, val, test: 2.png \('dev'\)"),
        ("image,label,s\n1.png,a,test\n2.png,b,test\n", "split: s", "no train split"),
        ("image,kind\n1.png,a\n", "", r"there is no column label; it has image, kind"),
        ("image,label\n1.png,a\n2.png,a\n", "", r"one class \(a\)"),
        ("image,label\n1.png,a\n2.png,A\n", "", "differ only in case"),
        ("image,label\n", "unlisted: skip", "found no image"),
        ("", "", "cannot be read as a table"),
        ("image,label\n1.png,a,b,c\n", "", "cannot be read as a table|there is no column|not below"),
        ("image,label\n1.png,a\n2.png,b\n", "images: ../other", "leads out of the dataset"),
        ("image,label\n1.png,a\n2.png,b\n", "colour: red", "unknown keys colour; source table takes path, images"),
        ("image,label\n1.png,a\n2.png,b\n", "path: none.csv", "there is no file none.csv"),
        ("image,label\n1.png,a\n2.png,b\n", "path: 7", "expected `path: <text>`, got 7"),
        ("image,label\n1.png,a\n2.png,b\n", "numbers: age", r"expected `numbers: \[<text>, …\]`, got 'age'"),
        ("image,label\n1.png,a\n2.png,b\n", "numbers: [age]", r"there is no column age; it has image, label"),
        ("image,label,n\n1.png,a,x\n2.png,b,inf\n", "numbers: [n]", r"2 cells that are no number: 1.png \(n: 'x'\), 2"),
        (
            "image,label,m\n1.png,a,2.png\n2.png,b,3.png\n",
            "masks: [m]",
            r"1 masks that are not below .*: 2.png \(m: '3",
        ),
    ],
)
def test_a_bad_table(csv: str, more: str, message: str, tmp_path: Path) -> None:
    root = toys.write_images(tmp_path, ["1.png", "2.png"])
    write(root, {"labels.csv": csv, "dataset.yaml": f"source: table\n{more}\n"})
    with pytest.raises(DataError, match=message) as raised:
        opened(root)
    assert str(raised.value).startswith(str(root))


def test_the_first_problems_are_listed_and_the_rest_counted(tmp_path: Path) -> None:
    rows = "".join(f"{number}.png,\n" for number in range(9))
    write(tmp_path, {"labels.csv": "image,label\n" + rows, "dataset.yaml": "source: table\n"})
    with pytest.raises(DataError) as raised:
        opened(tmp_path)
    assert "9 rows without label: 0.png, 1.png, 2.png, 3.png, 4.png, …" in str(raised.value)
    assert f"9 images that are not below {tmp_path}: 0.png" in str(raised.value)


def test_a_description_that_points_elsewhere_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"birds.yaml": "source: table\npath: labels.csv\n", "d/dataset.yaml": "source: digits\n"})
    with pytest.raises(DataError, match=r"Call it dataset.yaml, put it into the folder"):
        opened(tmp_path / "birds.yaml")
    with pytest.raises(DataError, match="expected `source:` with one of table, coco, voc, yolo"):
        opened(tmp_path / "d")


# Boxes


def coco_json(**changes: object) -> str:
    whole: dict[str, object] = {
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "images": [{"id": n, "file_name": f"{n}.png"} for n in (1, 2)],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 7, "bbox": [0, 0, 6, 6.5], "iscrowd": 1},
            {"id": 3, "image_id": 2, "category_id": 3, "bbox": [0, 0, 1, 1]},
        ],
    }
    return json.dumps(whole | changes)


def test_coco(tmp_path: Path) -> None:
    root = toys.write_images(tmp_path, ["images/1.png", "images/2.png"])
    write(root, {"annotations.json": coco_json(), "dataset.yaml": "source: coco\n"})
    found = by_id(root)
    assert opened(root).classes == ("cat", "dog")
    assert boxes(found["images/1.png"]) == [
        {"label": "cat", "xyxy": [1, 2, 4, 6]},
        {"label": "dog", "xyxy": [0, 0, 6, 6.5], "crowd": True},
    ]
    assert [sample.label for sample in found.values()] == ["dog", "cat"]  # of the largest box; the one that all share


def test_coco_with_outlines_and_keypoints(tmp_path: Path) -> None:
    root = toys.write_images(tmp_path, ["images/1.png", "images/2.png"])
    one = {"image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4]}
    outlined = one | {"segmentation": [[1, 2, 4, 2, 4, 6.5], [1, 2, 3, 4]], "keypoints": [2, 3, 2, 0, 0, 0]}
    crowd = one | {"image_id": 2, "category_id": 7, "iscrowd": 1, "segmentation": {"counts": [9], "size": [3, 3]}}
    write(root, {"annotations.json": coco_json(annotations=[outlined, crowd]), "dataset.yaml": "source: coco\n"})
    found = by_id(root)
    assert boxes(found["images/1.png"]) == [
        {"label": "cat", "xyxy": [1, 2, 4, 6], "polygons": [[1, 2, 4, 2, 4, 6.5]], "keypoints": [[2, 3, 2], [0, 0, 0]]}
    ]
    assert boxes(found["images/2.png"]) == [{"label": "dog", "xyxy": [1, 2, 4, 6], "crowd": True}]


def test_coco_with_splits(tmp_path: Path) -> None:
    root = toys.write_images(tmp_path, [f"{split}/{n}.png" for split in ("train", "val") for n in (1, 2)])
    description = "source: coco\nannotations: {train: t.json, val: v.json}\nimages: {train: train, val: val}\n"
    write(root, {"t.json": coco_json(), "v.json": coco_json(), "dataset.yaml": description})
    assert {name: s.split for name, s in by_id(root).items()} == {
        "train/1.png": "train", "train/2.png": "train", "val/1.png": "val", "val/2.png": "val",
    }  # fmt: skip


BAD_COCO = {
    "absent image": (coco_json(images=[{"id": n, "file_name": f"{n}.png"} for n in (1, 2, 3)]), "not below .*: images/3"),
    "up": (coco_json(images=[{"id": n, "file_name": f"../{n}.png"} for n in (1, 2)]), r"not below .*: images/\.\./1"),
    "twice": (coco_json(images=[{"id": n, "file_name": "1.png"} for n in (1, 2)]), "1 images listed twice: images/1.png"),
    "no image of it": (coco_json(images=[{"id": 1, "file_name": "1.png"}]), "image that is not listed: annotation 3"),
    "no category": (coco_json(categories=[{"id": 7, "name": "dog"}]), "category that is not listed: annotation 1, annot"),
    "same name": (coco_json(categories=[{"id": 7, "name": "x"}, {"id": 3, "name": "x"}]), "categories of the same name: x"),
    "no boxes": (coco_json(annotations=[]), r"2 images without boxes \(say `without_boxes: skip` or .*: images/1.png"),
    "negative": (coco_json(annotations=[{"image_id": 1, "category_id": 3, "bbox": [5, 5, -1, 1]}]), "1 bad boxes: annot"),
    "nan": (coco_json(annotations=[{"image_id": 1, "category_id": 3, "bbox": [float("nan")] * 4}]), "1 bad boxes"),
    "odd outline": (
        coco_json(annotations=[{"image_id": 1, "category_id": 3, "bbox": [5, 5, 1, 1], "segmentation": [[1.0] * 7]}]),
        "1 bad boxes: annotation 0: a polygon needs three points",
    ),
    "half a keypoint": (
        coco_json(annotations=[{"image_id": 1, "category_id": 3, "bbox": [5, 5, 1, 1], "keypoints": [1, 2]}]),
        "1 bad boxes: annotation 0: keypoints need x, y and visibility",
    ),
    "three numbers": (coco_json(annotations=[{"image_id": 1, "category_id": 3, "bbox": [5, 5, 1]}]), "are not COCO's"),
    "key": (coco_json(images=[{"id": 1}]), "are not COCO's .*KeyError: 'file_name'"),
    "list": ("[]", "got a list"),
    "no JSON": ("{", "not valid JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_COCO)
def test_bad_coco(case: str, tmp_path: Path) -> None:
    content, message = BAD_COCO[case]
    root = toys.write_images(tmp_path, ["images/1.png", "images/2.png"])
    write(root, {"annotations.json": content, "dataset.yaml": "source: coco\n"})
    with pytest.raises(DataError, match=message):
        opened(root)


def voc_xml(*objects: tuple[str, tuple[float, float, float, float]], extra: str = "") -> str:
    parts = [
        f"<object><name>{label}</name>{extra}<bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for label, (a, b, c, d) in objects
    ]
    return f"<annotation><filename>x.jpg</filename>{''.join(parts)}</annotation>"


CAT, DOG = ("cat", (1, 2, 4, 4)), ("dog", (3, 3, 8, 8))


@pytest.mark.parametrize("lists", [False, True])
def test_voc(lists: bool, tmp_path: Path) -> None:
    root = toys.write_images(tmp_path, [f"JPEGImages/{n}.png" for n in ("1", "2", "3 ü")])
    write(root, {"dataset.yaml": "source: voc\n", "Annotations/1.xml": voc_xml(CAT, DOG), "Annotations/3 ü.xml": voc_xml(DOG),
                 "Annotations/2.xml": voc_xml(CAT, extra="<difficult>1</difficult>")})  # fmt: skip
    if lists:
        write(root, {"dataset.yaml": "source: voc\nunlisted: skip\n"})
        write(
            root,
            {f"ImageSets/Main/{name}.txt": text for name, text in {"train": "1\n2 1\n", "trainval": "1\n2\n"}.items()},
        )
    found = by_id(root)
    first = found["JPEGImages/1.png"]
    assert (first.label, first.split) == ("dog", "train" if lists else None)
    assert boxes(first) == [{"label": "cat", "xyxy": [0, 1, 4, 4]}, {"label": "dog", "xyxy": [2, 2, 8, 8]}]
    assert boxes(found["JPEGImages/2.png"]) == [{"label": "cat", "xyxy": [0, 1, 4, 4], "difficult": True}]
    assert len(found) == (2 if lists else 3)


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>' + voc_xml(("&b;", (1, 1, 2, 2)))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            {"Annotations/2.xml": BOMB},
            r"bad XML files: Annotations/2.xml \(a document type with its entities is refused",
        ),
        ({"Annotations/2.xml": "<annotation>"}, "bad XML files: Annotations/2.xml"),
        ({"Annotations/2.xml": voc_xml(("", (1, 1, 2, 2)))}, "an object without name"),
        ({"Annotations/2.xml": voc_xml(("cat", (9, 9, 2, 2)))}, "has no area"),
        ({"Annotations/2.xml": voc_xml()}, "1 images without boxes .*: JPEGImages/2.png"),
        ({"Annotations/9.xml": voc_xml(CAT)}, "XML files without image in JPEGImages: Annotations/9.xml"),
        ({"ImageSets/Main/train.txt": "1\n2\n", "ImageSets/Main/val.txt": "2\n"}, "1 images in two splits: 2"),
        ({"ImageSets/Main/train.txt": "1\n2\n7\n"}, "list without XML: 7"),
        ({"dataset.yaml": "source: voc\nannotations: xml\n"}, "there is no XML file in xml"),
    ],
)
def test_bad_voc(texts: dict[str, str], message: str, tmp_path: Path) -> None:
    root = toys.write_images(tmp_path, [f"JPEGImages/{n}.png" for n in (1, 2)])
    whole = {"dataset.yaml": "source: voc\n", "Annotations/1.xml": voc_xml(CAT), "Annotations/2.xml": voc_xml(DOG)}
    with pytest.raises(DataError, match=message):
        opened(write(root, whole | texts))


YOLO = "path: ../datasets/birds\ntrain: ../train/images\nval: valid/images\nnames: {0: cat, 1: dog}\n"
YOLO_FILES = {
    "data.yaml": YOLO,
    "train/labels/1.txt": "0 0.5 0.5 0.5 0.25\n",
    "train/labels/2.txt": "1 0.1 0.2 0.9 0.2 0.5 0.6\n\n",
    "valid/labels/3.txt": "0 .5 .5 .1 .1\n1 0.5 0.5 1 1\n",
}


def yolo_images(root: Path) -> Path:
    return toys.write_images(
        root, ["train/images/1.png", "train/images/2.png", "valid/images/3.png"], height=8, width=16
    )


def test_yolo(tmp_path: Path) -> None:
    found = by_id(write(yolo_images(tmp_path), YOLO_FILES))
    assert {name: (s.split, s.label) for name, s in found.items()} == {
        "train/images/1.png": ("train", "cat"), "train/images/2.png": ("train", "dog"), "valid/images/3.png": ("val", "dog"),
    }  # fmt: skip
    assert boxes(found["train/images/1.png"]) == [{"label": "cat", "xyxy": [4, 3, 12, 5]}]
    assert boxes(found["train/images/2.png"]) == [{"label": "dog", "xyxy": [1.6, 1.6, 14.4, 4.8]}]


POSE = "train: train/images\nnames: [cat, dog]\n"


@pytest.mark.parametrize(
    ("shape", "cat", "points"),
    [
        ("[2, 2]", "0 .5 .5 .2 .25 .45 .25 .55 .5", [[7.2, 2, 2], [8.8, 4, 2]]),
        ("[2, 3]", "0 .5 .5 .2 .25 .45 .25 1 0 0 0", [[7.2, 2, 1], [0, 0, 0]]),
        ("[1, 2]", "0 .5 .5 .2 .25 1 0.75", [[16, 6, 2]]),
    ],
)
def test_yolo_with_keypoints(shape: str, cat: str, points: list[list[float]], tmp_path: Path) -> None:
    labels = {"train/labels/1.txt": cat, "train/labels/2.txt": cat.replace("0 ", "1 ", 1)}
    found = by_id(write(yolo_images(tmp_path), labels | {"data.yaml": f"{POSE}kpt_shape: {shape}\n"}))
    assert boxes(found["train/images/1.png"]) == [{"label": "cat", "xyxy": [6.4, 3, 9.6, 5], "keypoints": points}]
    assert found["train/images/2.png"].label == "dog"


def test_yolo_without_the_shape_of_keypoints_has_polygons(tmp_path: Path) -> None:
    labels = {"train/labels/1.txt": "0 .5 .5 .2 .25 .45 .25 .55 .5", "train/labels/2.txt": "1 .5 .5 .2 .25"}
    found = by_id(write(yolo_images(tmp_path), labels | {"data.yaml": POSE}))
    assert boxes(found["train/images/1.png"]) == [{"label": "cat", "xyxy": [3.2, 2, 8.8, 4]}]


def test_yolo_lists_and_images_without_boxes(tmp_path: Path) -> None:
    lists = {"data.yaml": "train: [a.txt, b.txt]\nnames: [cat, dog]\n", "a.txt": "./train/images/1.png\n",
             "b.txt": "train/images/2.png\nvalid/images/3.png\n", "valid/labels/3.txt": ""}  # fmt: skip
    root = write(yolo_images(tmp_path), YOLO_FILES | lists)
    with pytest.raises(DataError, match=r"1 images without boxes .*: valid/images/3.png"):
        opened(root)
    write(root, {"dataset.yaml": "source: yolo\nwithout_boxes: skip\n"})
    assert set(by_id(root)) == {"train/images/1.png", "train/images/2.png"}
    write(root, {"dataset.yaml": "source: yolo\nwithout_boxes: background\n"})
    third = by_id(root)["valid/images/3.png"]
    assert (third.label, boxes(third)) == ("background", [])
    assert opened(root).classes == ("cat", "dog", "background")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"train/labels/1.txt": "2 .5 .5 .1 .1\n"}, r"bad lines: train/labels/1.txt:1 \(class 2 of 2 names"),
        ({"train/labels/1.txt": "0 .5 .5 .1\n"}, "expected class and 4 numbers, got 3"),
        ({"train/labels/1.txt": "0 .5 .5 .1 x\n"}, "bad lines: train/labels/1.txt:1"),
        ({"train/labels/1.txt": "0 .5 .5 .1 .1 .4 .4 2\n"}, "got 7 numbers .keypoints need `kpt_shape` in data.yaml"),
        (
            {"data.yaml": YOLO + "kpt_shape: [2, 2]\n", "train/labels/1.txt": "\n0 .5 .5 .2 .2 .4 .4\n"},
            r"train/labels/1.txt:2 \(expected class, 4 numbers of the box and 2 × 2 of its keypoints .*, got 6 numbers",
        ),
        ({"data.yaml": YOLO + "kpt_shape: [2, 2]\n"}, "bad lines: train/labels/1.txt:1 .*, got 4 numbers"),
        ({"data.yaml": YOLO + "kpt_shape: [17, 4]\n"}, r"expected `kpt_shape: \[.*, got \[17, 4\]"),
        ({"data.yaml": YOLO + "kpt_shape: 17\n"}, "data.yaml: expected `kpt_shape: .*, got 17"),
        ({"data.yaml": YOLO + "kpt_shape: [0, 2]\n"}, r"got \[0, 2\]"),
        ({"train/labels/1.txt": "0 .5 .5 -1 .1\n"}, "has no area"),
        ({"data.yaml": "train: train/images\nnames: [a, a]\n"}, "expected `names:` with different class names"),
        ({"data.yaml": "train: train/images\nnames: {1: a, 2: b}\n"}, "numbered from 0"),
        ({"data.yaml": "train: nowhere\nnames: [a, b]\n"}, "train: there is no image below nowhere"),
        ({"data.yaml": "val: valid/images\nnames: [a, b]\n"}, "expected `train:`"),
        ({"data.yaml": "train: /data/images\nnames: [a, b]\n"}, "'/data/images' leads out of the dataset"),
        (
            {"data.yaml": "train: [train, valid]\nval: valid/images\nnames: [a, b]\n"},
            "images in two splits: valid/images/3",
        ),
        (
            {"data.yaml": "train: l.txt\nnames: [a, b]\n", "l.txt": "train/images/9.png\n"},
            "not below .*: train/images/9",
        ),
    ],
)
def test_bad_yolo(texts: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        opened(write(yolo_images(tmp_path), YOLO_FILES | texts))


# Boxes and sizes that do not fit


@pytest.mark.parametrize(
    "line", ["0 1.5 0.5 0.2 0.3", "0 0.5 0.5 0.2 1.3", "0 -.2 .5 .2 .2", "1 .1 .2 1.9 .2 .5 .6", "0 16 8 4 4"]
)
def test_a_yolo_box_that_leaves_its_image_is_a_bad_line_and_nothing_else(line: str, tmp_path: Path) -> None:
    write(yolo_images(tmp_path), YOLO_FILES | {"train/labels/1.txt": f"{line}\n"})
    with pytest.raises(
        DataError, match=r"1 bad lines: train/labels/1.txt:1 \(the box .* leaves .* of 1×1: numbers are shares"
    ) as raised:
        opened(tmp_path)
    assert "without boxes" not in str(raised.value)


def test_a_rounded_yolo_box_may_touch_the_edge(tmp_path: Path) -> None:
    write(yolo_images(tmp_path), YOLO_FILES | {"train/labels/1.txt": "0 0.5 0.5 1.004 1\n"})
    assert boxes(by_id(tmp_path)["train/images/1.png"])[0]["xyxy"] == [-0.032, 0, 16.032, 8]


def coco_of(root: Path, bbox: list[float], **size: object) -> Path:
    """COCO of two images, 8×8 pixels, the first with this box."""
    toys.write_images(root, ["images/1.png", "images/2.png"])
    images = [{"id": n, "file_name": f"{n}.png", **size} for n in (1, 2)]
    rows = [
        {"id": n, "image_id": n, "category_id": kind, "bbox": box}
        for n, kind, box in ((1, 3, bbox), (2, 7, [0, 0, 8, 8]))
    ]
    return write(
        root, {"dataset.yaml": "source: coco\n", "annotations.json": coco_json(images=images, annotations=rows)}
    )


@pytest.mark.parametrize("size", [{}, {"width": 8, "height": 8}, {"width": 0, "height": None}])
@pytest.mark.parametrize("bbox", [[100, 100, 50, 50], [0, 0, 8, 9.5], [0, -2, 4, 4]])
def test_a_coco_box_that_leaves_its_image_is_refused(
    bbox: list[float], size: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(
        DataError, match=r"1 (bad boxes: annotation 1|images that a box leaves: images/1.png).* leaves "
    ) as raised:
        by_id(coco_of(tmp_path, bbox, **size))
    assert "without boxes" not in str(raised.value)


@pytest.mark.parametrize("size", [{}, {"width": 8, "height": 8}, {"width": 8.5, "height": 7}])
def test_a_coco_box_may_leave_its_image_by_a_pixel(size: dict[str, object], tmp_path: Path) -> None:
    assert boxes(by_id(coco_of(tmp_path, [-1, 0, 9.5, 8], **size))["images/1.png"])[0]["xyxy"] == [-1, 0, 8.5, 8]


def test_coco_images_of_another_size_than_declared_are_refused(tmp_path: Path) -> None:
    source = opened(coco_of(tmp_path, [0, 0, 8, 8], width=640, height=8))
    message = r"2 images of another size than their annotations say: images/1.png \(annotations say 640×8, the file has 8×8\), im"
    with pytest.raises(DataError, match=message):
        list(source.samples())


@pytest.mark.parametrize("suffix", [".hdr", ".ras"])
@pytest.mark.parametrize(
    ("bbox", "size", "message"),
    [
        ([0, 0, 8, 8], {}, ""),
        ([0, 0, 8, 30], {}, r"1 images that a box leaves: images/1.png .* leaves the image of 8×8"),
        ([0, 0, 8, 8], {"width": 500, "height": 8}, "2 images of another size .* the file has 8×8"),
    ],
)
def test_images_whose_header_is_not_known_are_checked_too(
    suffix: str, bbox: list[float], size: dict[str, object], message: str, tmp_path: Path
) -> None:
    root = coco_of(tmp_path, bbox, **size)
    pixels = toys.picture(0, height=8, width=8, channels=3)
    encoded = cv2.imencode(suffix, pixels.astype(np.float32) if suffix == ".hdr" else pixels)[1].tobytes()
    assert headers.read(encoded) is None
    for number in (1, 2):
        (root / f"images/{number}.png").write_bytes(encoded)
    if not message:
        assert len(by_id(root)) == 2
        return
    with pytest.raises(DataError, match=message):
        by_id(root)


def test_equal_declared_sizes_are_one_object_and_undeclared_ones_none() -> None:
    labelled = Labelled(Description("dataset.yaml", {}))
    for number, side in enumerate((8, 8, 0)):
        labelled.add(PurePosixPath(f"{number}"), None, [Box("cat", (0, 0, 1, 1))], declared_size(side, side))
    one, two, three = (place.size for place in labelled.finish({}).values())
    assert one == (8, 8)
    assert one is two
    assert three is None


def test_of_many_problems_the_first_are_kept() -> None:
    problems = Problems()
    tracemalloc.start()
    for number in range(20_000):
        problems.add("bad boxes", f"{number:0100d}")
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 20_000  # bytes
    with pytest.raises(DataError, match=r"20000 bad boxes: 0+0, 0+1, 0+2, 0+3, 0+4, …$"):
        problems.refuse("dataset.yaml")


def test_coco_of_a_category_that_is_not_listed_is_reported_once(tmp_path: Path) -> None:
    root = coco_of(tmp_path, [0, 0, 8, 8])
    write(
        root,
        {"annotations.json": (root / "annotations.json").read_text().replace('"category_id": 3', '"category_id": 4')},
    )
    with pytest.raises(DataError, match="1 annotations of a category that is not listed: annotation 1") as raised:
        opened(root)
    assert "without boxes" not in str(raised.value)


@pytest.mark.parametrize(
    ("box", "size", "message"),
    [
        ((1, 1, 30, 8), "", r"1 images that a box leaves: JPEGImages/1.png \(the box .* leaves the image of 8×8"),
        ((1, 1, 30, 8), "<size><width>8</width><height>8</height></size>", "bad XML files: Annotations/1.xml .* leaves .* of 8×8"),
        ((1, 1, 8, 8), "<size><width>500</width><height>8</height></size>", "1.png .annotations say 500×8, the file has 8×8"),
        ((-3, 1, 8, 8), "", "bad XML files: Annotations/1.xml .* leaves the image"),
        ((1, 1, 8, 8), "<size><width>wide</width></size>", "bad XML files: Annotations/1.xml"),
    ],
)  # fmt: skip
def test_voc_that_does_not_fit_its_images(
    box: tuple[float, float, float, float], size: str, message: str, tmp_path: Path
) -> None:
    root = toys.write_images(tmp_path, [f"JPEGImages/{n}.png" for n in (1, 2)])
    first = voc_xml(("cat", box)).replace("<filename>", f"{size}<filename>")
    write(root, {"dataset.yaml": "source: voc\n", "Annotations/1.xml": first, "Annotations/2.xml": voc_xml(DOG)})
    with pytest.raises(DataError, match=message):
        by_id(root)


def test_a_turned_photograph_has_the_size_that_people_see(tmp_path: Path) -> None:
    root = coco_of(tmp_path, [0, 0, 8, 16], width=8, height=16)
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn: 16×8 pixels are stored, 8×16 are seen
    for number in (1, 2):
        turned.seek(0)
        Image.fromarray(toys.picture(number, height=8, width=16, channels=3)).save(turned, "JPEG", exif=exif)
        (root / f"images/{number}.png").write_bytes(turned.getvalue())
    assert len(by_id(root)) == 2


# Images that no description lists

TWO_ROWS = "image,label\n1.png,a\n2.png,b\n"
PARTS = {
    "table": {"dataset.yaml": "source: table\nimages: images\n", "labels.csv": TWO_ROWS},
    "coco": {"dataset.yaml": "source: coco\n", "annotations.json": coco_json()},
    "voc": {"dataset.yaml": "source: voc\nimages: images\n", **{f"Annotations/{n}.xml": voc_xml(CAT, DOG) for n in "12"},
            "Annotations/1.xml": voc_xml(CAT)},
    "yolo": {"dataset.yaml": "source: yolo\n", "data.yaml": "train: list.txt\nnames: [cat, dog]\n",
             "list.txt": "images/1.png\nimages/2.png\n", "labels/1.txt": "0 .5 .5 .1 .1\n", "labels/2.txt": "1 .5 .5 .1 .1\n"},
}  # fmt: skip


@pytest.mark.parametrize("kind", PARTS)
def test_images_that_nothing_lists_are_an_error_until_the_description_skips_them(kind: str, tmp_path: Path) -> None:
    root = toys.write_images(
        tmp_path, [f"images/{n}" for n in ("1.png", "2.png", "3.PNG", "4.png")] + ["elsewhere/5.png"]
    )
    write(root, {**PARTS[kind], "images/notes.txt": "no image"})
    message = (
        r"2 images that nothing lists \(remove them, or say `unlisted: skip` in dataset.yaml\): images/3.PNG, images/4"
    )
    with pytest.raises(DataError, match=message):
        opened(root)
    write(root, {"dataset.yaml": PARTS[kind]["dataset.yaml"] + "unlisted: skip\n"})
    assert set(by_id(root)) == {"images/1.png", "images/2.png"}
    write(root, {"dataset.yaml": PARTS[kind]["dataset.yaml"] + "unlisted: keep\n"})
    with pytest.raises(DataError, match="expected `unlisted: skip`, got 'keep'"):
        opened(root)


@pytest.mark.parametrize(
    "suffix", [".apng", ".avif", ".dib", ".gif", ".HDR", ".jfif", ".pam", ".pfm", ".pic", ".ras", ".sr", ".webp"]
)
def test_images_of_every_format_that_is_decoded_are_seen_where_nothing_lists_them(suffix: str, tmp_path: Path) -> None:
    root = write(toys.write_images(tmp_path, ["images/1.png", "images/2.png"]), PARTS["table"])
    pixels = toys.picture(0, height=8, width=8, channels=3)
    given = pixels.astype(np.float32) if suffix in {".HDR", ".pfm", ".pic"} else pixels
    encoded = cv2.imencode(".jpg" if suffix == ".jfif" else suffix.lower(), given)[1].tobytes()
    assert decode(encoded).shape == (8, 8, 3)
    (root / f"images/3{suffix}").write_bytes(encoded)
    with pytest.raises(DataError, match=f"1 images that nothing lists .*: images/3{suffix}"):
        opened(root)


def test_masks_that_a_table_names_are_listed(tmp_path: Path) -> None:
    root = toys.write_images(tmp_path, ["1.png", "2.png", "m/1.png"])
    write(
        root,
        {"labels.csv": "image,label,m\n1.png,a,m/1.png\n2.png,b,\n", "dataset.yaml": "source: table\nmasks: [m]\n"},
    )
    assert set(by_id(root)) == {"1.png", "2.png"}


def test_images_without_boxes_that_are_skipped_are_not_unlisted(tmp_path: Path) -> None:
    root = toys.write_images(tmp_path, [f"images/{n}.png" for n in (1, 2, 3)])
    images = [{"id": n, "file_name": f"{n}.png"} for n in (1, 2, 3)]
    write(root, {"annotations.json": coco_json(images=images), "dataset.yaml": "source: coco\nwithout_boxes: skip\n"})
    assert set(by_id(root)) == {"images/1.png", "images/2.png"}


# WebDataset


def shard(path: Path, members: Mapping[str, str | int]) -> Path:
    """A text is a file's content, a number the seed of a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, value in members.items():
            content = value.encode() if isinstance(value, str) else encode_png(toys.picture(value))
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"cls": "0", "txt": "a caption"}, {"cls": "10\n"}),
        ({"txt": "0"}, {"txt": " 10 "}),
        ({"json": '{"label": 0}'}, {"json": '{"cls": "10", "width": 3}'}),
    ],
)
def test_webdataset(one: dict[str, str], two: dict[str, str], tmp_path: Path) -> None:
    members: dict[str, str | int] = {"a.png": 1, **{f"a.{kind}": text for kind, text in one.items()}, "b ü.PNG": 2}
    found = by_id(shard(tmp_path / "w.tar", members | {f"b ü.{kind}": text for kind, text in two.items()}))
    assert {name: (s.split, s.label) for name, s in found.items()} == {"a.png": (None, "0"), "b ü.PNG": (None, "10")}


def test_webdataset_shards(tmp_path: Path) -> None:
    for split, first in (("train", 0), ("val", 4)):
        for part in range(2):
            n = first + 2 * part
            shard(tmp_path / f"birds-{split}-{part:06d}.tar", {"1.png": n, "1.cls": "2", "2.png": n + 1, "2.cls": "10"})
    found = by_id(tmp_path)
    assert len(found) == 8
    assert {s.split for s in found.values()} == {"train", "val"}
    assert found["birds-val-000001/2.png"].label == "10"
    assert opened(tmp_path).classes == ("2", "10")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": 1, "a.cls": "0", "b.png": 2}, r"1 keys without label \(.cls, .json, .txt\): b"),
        ({"a.png": 1, "a.cls": "0", "b.cls": "1"}, "1 keys without image: b"),
        ({"a.png": 1, "a.jpg": 1, "a.cls": "0"}, "1 keys with two images or two labels: a"),
        ({"a.png": 1, "a.cls": "0", "b.png": 1, "b.cls": " "}, "label files without label .*: b.cls"),
        ({"a.png": 1, "a.json": "{}", "b.png": 1, "b.json": "{"}, "2 label files without label .*: a.json, b.json"),
        (
            {"a.png": 1, "a.json": '{"label": [0, 2]}', "b.png": 1, "b.json": '{"cls": {"n": 1}}'},
            r"2 label files whose class is a list or an object \(expected a text or number\): "
            r"a.json \(\[0, 2\]\), b.json \(\{'n': 1\}\)",
        ),
        ({"a.png": 1, "a.cls": "0", "b.png": 1, "b.cls": "0"}, r"one class \(0\)"),
        ({"../a.png": 1, "../a.cls": "0"}, "points outside"),
    ],
)
def test_bad_webdataset(members: dict[str, str | int], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        opened(shard(tmp_path / "w.tar", members))


@pytest.mark.parametrize(
    ("description", "message"),
    [("source: tables", "got 'tables'"), ("source: table\nunlisted: skip", r"one class \(a\)")],
)
def test_a_described_folder_is_not_looked_at_as_loose_images(description: str, message: str, tmp_path: Path) -> None:
    root = toys.write_images(tmp_path, ["1.png", "2.png"])
    write(root, {"labels.csv": "image,label\n1.png,a\n", "dataset.yaml": description})
    with pytest.raises(DataError, match=message):
        open_images(root, tmp_path)
