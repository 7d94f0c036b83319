import os
from hashlib import sha256
from pathlib import Path

import pytest
import toys

from deepcv.data import packing
from deepcv.data.readers import Collection, open_images
from deepcv.data.samples import DataError
from deepcv.data.sources import open_source
from deepcv.data.splits import SplitRule

LABELLED = ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png")


def contents_are_the_entries(collection: Collection) -> None:
    everything = list(collection.contents(range(len(collection.entries))))
    assert [sha256(content).hexdigest() for content in everything] == [entry.sha256 for entry in collection.entries]
    assert list(collection.contents([1])) == everything[1:2]


def labels(collection: Collection) -> list[str]:
    return [entry.label for entry in collection.entries]


def test_a_dataset(tmp_path: Path) -> None:
    toys.write_images(tmp_path / "a", LABELLED)
    for path in (tmp_path / "a", toys.write_tar(tmp_path / "a", tmp_path / "a.tar.gz", "w:gz")):
        found = open_images(path, tmp_path)
        assert labels(found) == ["cat", "cat", "dog", "dog"]
        assert (found.labelled, found.note) == (True, "")
        contents_are_the_entries(found)


def test_what_ingest_packed(tmp_path: Path) -> None:
    toys.write_images(tmp_path / "a", [f"{label}/{n}.png" for label in ("cat", "dog") for n in range(9)])
    source = open_source(tmp_path / "a", tmp_path)
    (tmp_path / "raw").mkdir()
    packing.pack(
        source.samples(), source.classes, tmp_path / "raw", name="a", source="a", rule=SplitRule(0.2, 0.2, 0)
    )  # fmt: skip
    packed, loose = (open_images(tmp_path / name, tmp_path) for name in ("raw", "a"))
    assert packed.entries == loose.entries
    contents_are_the_entries(packed)


def test_loose_images(tmp_path: Path) -> None:
    toys.write_images(tmp_path / "a", ["1.png", "2.png", "deep/3.png", ".hidden/4.png", "deep/.5.png"])
    for path in (tmp_path / "a", toys.write_tar(tmp_path / "a", tmp_path / "a.tar")):
        found = open_images(path, tmp_path)
        assert sorted(entry.id for entry in found.entries) == ["1.png", "2.png", "deep/3.png"]
        assert not found.labelled
        assert "stand outside a class folder" in found.note
        contents_are_the_entries(found)


@pytest.mark.parametrize("names", [("cat/1.png", "cat/2.png"), ("test/cat/1.png", "test/cat/2.png")])
def test_less_than_training_needs(tmp_path: Path, names: tuple[str, ...]) -> None:
    found = open_images(toys.write_images(tmp_path, names), tmp_path)
    assert labels(found) == ["cat", "cat"]
    assert found.note


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    toys.write_images(tmp_path, ["a.png", "b.png"])
    (tmp_path / "b.png").rename(tmp_path / os.fsdecode(b"b\xff.png"))
    assert [entry.id for entry in open_images(tmp_path, tmp_path).entries] == ["a.png", "b\\udcff.png"]


def test_bad_input(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged.tar").write_bytes(b"no tar")
    (tmp_path / "notes.txt").write_text("x")
    toys.write_tar(toys.write_images(tmp_path / "a", LABELLED), tmp_path / "cut.tar")
    (tmp_path / "cut.tar").write_bytes((tmp_path / "cut.tar").read_bytes()[:700])
    packed = bytearray(toys.write_tar(tmp_path / "a", tmp_path / "flipped.tar.gz", "w:gz").read_bytes())
    packed[len(packed) // 2 :] = bytes(~byte & 255 for byte in packed[len(packed) // 2 :])
    (tmp_path / "flipped.tar.gz").write_bytes(packed)
    (tmp_path / "wrong.yaml").write_text("source: nothing")
    for name, expected in (
        ("empty", "holds no files"), ("nowhere", "no such file"), ("damaged.tar", "cannot be read as a tar"),
        ("notes.txt", "expected a folder"), ("flipped.tar.gz", "cannot be read as a tar"),
        ("wrong.yaml", "expected `source:"), ("cut.tar", "cannot be read as a tar"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=expected):
            open_images(tmp_path / name, tmp_path)
