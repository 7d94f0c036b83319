import hashlib
import re
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from toys import picture, write_images

from deepcv import parallel
from deepcv.data import diff, manifest, packing
from deepcv.data.measures import Measures, measure
from deepcv.data.readers import open_images
from deepcv.data.revisions import Snapshot
from deepcv.data.samples import DataError, Sample
from deepcv.data.sources import open_source
from deepcv.data.splits import SplitRule
from deepcv.images import decode, encode_png


def samples(count: int = 12, split: str | None = None, side: int = 5) -> list[Sample]:
    return [Sample(f"{'ab'[n % 2]}/{n}.png", split, "ab"[n % 2], encode_png(picture(n, side, 6))) for n in range(count)]


def pack(
    given: list[Sample], folder: Path, classes: tuple[str, ...] = ("a", "b"), processes: int = 1, **rule: Any
) -> dict[str, int]:
    folder.mkdir(exist_ok=True)
    chosen = SplitRule(0.2, 0.2, 0, **rule)
    return packing.pack(given, classes, folder, name="toy", source="images", rule=chosen, processes=processes)


def digest_of(rows: pd.DataFrame) -> str:
    """As it was first defined."""
    test = rows[rows["split"] == "test"]
    pairs = sorted(f"{image}:{label}" for image, label in zip(test["sha256"], test["label"], strict=True))
    return hashlib.sha256("\n".join(pairs).encode()).hexdigest()


def test_round_trip(tmp_path: Path) -> None:
    given = samples()
    given[1] = given[1]._replace(annotations='{"boxes": []}')
    sizes = pack(given, tmp_path)
    read, info = manifest.read(tmp_path)
    assert tuple(read.columns) == manifest.COLUMNS
    assert info == manifest.DatasetInfo("toy", ("a", "b"), digest_of(read))
    assert read["split"].value_counts().to_dict() == sizes
    assert list(read["annotations"]) == ["", '{"boxes": []}', *[""] * 10]
    assert list(read["id"]) == [s.id for s in given]
    assert set(read["width"]) == {6}
    assert set(read["height"]) == {5}
    assert set(read["channels"]) == {1}
    assert list(manifest.encoded_images(tmp_path, read)) == [s.encoded for s in given]
    backwards = read.iloc[::-1]
    assert list(manifest.encoded_images(tmp_path, backwards)) == [s.encoded for s in reversed(given)]


def test_a_file_has_its_mode(tmp_path: Path) -> None:
    given = samples(40)
    deep = np.full((5, 6), 4095, np.uint16)  # 12 bits in 16: decoded, all is 15
    given[3] = given[3]._replace(encoded=cv2.imencode(".png", deep)[1].tobytes())
    given[4] = given[4]._replace(encoded=cv2.imencode(".jpg", picture(4, 5, 6, 3))[1].tobytes())
    given[5] = given[5]._replace(encoded=b"")
    pack(given, tmp_path)
    modes = manifest.read(tmp_path)[0]["mode"].tolist()
    assert modes == ["grey8"] * 3 + ["grey16+dim", "colour8", ""] + ["grey8"] * 34


def test_equal_samples_give_equal_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        pack(samples(), tmp_path / name)
    for file in ("manifest.parquet", "images.bin", "dataset.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_files_that_are_no_images_keep_their_rows_and_move_no_other(tmp_path: Path) -> None:
    given = samples()
    given[5] = given[5]._replace(split="test")
    others = pack([one for n, one in enumerate(given) if n not in (3, 7, 9)], tmp_path / "others")
    given[3] = given[3]._replace(encoded=given[3].encoded[:-9])
    given[7] = given[7]._replace(encoded=b"", split="test")
    given[9] = given[9]._replace(encoded=b"")
    assert pack(given, tmp_path / "all") == others | {"unreadable": 3}
    read, info = manifest.read(tmp_path / "all")
    assert np.flatnonzero(~manifest.readable(read)).tolist() == [3, 7, 9]
    bad = read[~manifest.readable(read)]
    assert bad["split"].tolist() == ["train", "test", "train"]
    assert list(manifest.encoded_images(tmp_path / "all", bad)) == [given[n].encoded for n in (3, 7, 9)]
    assert not bad[["width", "height", "channels", *Measures._fields]].to_numpy().any()
    kept, info_of_others = manifest.read(tmp_path / "others")
    same = ["id", "split", "label", "sha256", "width", "brightness", "phash"]
    assert read[manifest.readable(read)][same].reset_index(drop=True).equals(kept[same])
    assert info == info_of_others  # the digest of the test split too


def test_a_class_of_bad_files_alone_is_refused_with_their_names(tmp_path: Path) -> None:
    bad = [Sample(f"c/{n}.png", None, "c", b"hello") for n in range(3)]
    with pytest.raises(
        DataError, match=r"too few images of class c(.|\n)*3 files are no images(.|\n)*c/0.png: not an image format"
    ):
        pack([*samples(), *bad], tmp_path, ("a", "b", "c"))
    assert not (tmp_path / "manifest.parquet").exists() or not (tmp_path / "dataset.json").exists()


@pytest.mark.parametrize("split", ["val", "test", "train"])
@pytest.mark.parametrize("folds", [0, 3])
def test_a_split_of_the_source_without_images_is_refused_and_not_drawn(split: str, folds: int, tmp_path: Path) -> None:
    rest = [one for one in ("train", "val", "test") if one != split]
    given = [sample._replace(split=rest[n % 2]) for n, sample in enumerate(samples())]
    bad = [Sample(f"{split}/a/{n}.png", split, "a", b"hello") for n in range(20)]
    rule = SplitRule(0.2, 0.2, 0, folds=folds)
    message = rf"the source has a {split} split of its own, but none of its files(.|\n)*20 files are no images(.|\n)*a/0.png: "
    with pytest.raises(DataError, match=message):
        packing.pack([*given, *bad], ("a", "b"), tmp_path, name="two", source="x", rule=rule)
    assert not (tmp_path / "manifest.parquet").exists()


def test_equal_files_that_are_no_images_may_be_of_two_groups(tmp_path: Path) -> None:
    empty = [Sample(f"{g}/empty.png", None, g, b"") for g in "ab"]
    rule = SplitRule(0.2, 0.2, 0, group_by="^([ab]/[0-9]+|.*empty)")
    found = packing.pack([*samples(), *empty], ("a", "b"), tmp_path, name="two", source="x", rule=rule)
    assert found["unreadable"] == 2


def test_many_bad_files_are_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^25 files are no images, and no other(.|\n)* and 15 more"):
        pack([Sample(str(n), None, "a", b"x") for n in range(25)], tmp_path)
    with pytest.raises(DataError, match=r"^1 file is no image, and no other is there; repair each:\n  0: "):
        pack([Sample("0", None, "a", b"x")], tmp_path)


def test_a_class_that_is_too_small_to_split_is_named(tmp_path: Path) -> None:
    rare = Sample("c/1.png", None, "c", encode_png(picture(99)))
    with pytest.raises(DataError, match="too few images of class c"):
        pack([*samples(), rare], tmp_path, ("a", "b", "c"))


@pytest.mark.parametrize("name", ["manifest.parquet", "dataset.json"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"PAR1"])
def test_what_cannot_be_read_is_named(name: str, content: bytes | None, tmp_path: Path) -> None:
    pack(samples(), tmp_path)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{re.escape(str(tmp_path))}.*dvc repro ingest"):
        manifest.read(tmp_path)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    pack(samples(), tmp_path)
    table, _ = manifest.read(tmp_path)
    blob = bytearray((tmp_path / "images.bin").read_bytes())
    blob[table["offset"][4] + 40] ^= 1
    (tmp_path / "images.bin").write_bytes(blob)
    with pytest.raises(DataError, match=r"images.bin: damaged at image a/4.png"):
        list(manifest.encoded_images(tmp_path, table))


def test_the_measures_are_those_of_the_image(tmp_path: Path) -> None:
    given = samples()
    pack(given, tmp_path)
    read, _ = manifest.read(tmp_path)
    for name in Measures._fields:
        assert read[name].dtype == (np.uint64 if name == "phash" else np.float32)
        expected = [getattr(measure(decode(sample.encoded)), name) for sample in given]
        assert list(read[name]) == list(np.array(expected, read[name].dtype))


def test_processes_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_ALONE_S", -1.0)
    given = samples(2000)
    for processes in (1, 3):
        pack(given, tmp_path / str(processes), processes=processes)
    for file in ("manifest.parquet", "images.bin", "dataset.json"):
        assert len({(tmp_path / str(processes) / file).read_bytes() for processes in (1, 3)}) == 1


def test_rows_are_written_by_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = samples(23)
    pack(given, tmp_path / "one")
    monkeypatch.setattr(packing, "_ROWS", 5)
    pack(given, tmp_path / "two")
    one, two = (manifest.read(tmp_path / name) for name in ("one", "two"))
    pd.testing.assert_frame_equal(one[0], two[0])
    assert one[1] == two[1]
    assert {path.name for path in (tmp_path / "two").iterdir()} == {"manifest.parquet", "images.bin", "dataset.json"}


def test_an_error_of_the_source_comes_through_the_processes(tmp_path: Path) -> None:
    def broken() -> Any:
        yield from samples(200)
        raise DataError("the disk is gone")

    with pytest.raises(DataError, match="the disk is gone"):
        pack(broken(), tmp_path, processes=2)


def test_an_image_outside_of_all_groups_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"11 images are in no group of ingest.group_by.*(.|\n)*  a/0.png\n"):
        pack(samples(), tmp_path, group_by=r"(1)1\.png")
    with pytest.raises(DataError, match=r"^1 image is in no group of ingest.group_by.*:\n  x\.png$"):
        pack([*samples(), Sample("x.png", None, "a", encode_png(picture(99)))], tmp_path, group_by=r"^([ab])/")


def test_equal_images_of_two_groups_in_two_splits_are_named(tmp_path: Path) -> None:
    given = [sample._replace(encoded=samples()[0].encoded) for sample in samples()]
    with pytest.raises(DataError, match=r"equal images of two groups into two splits: [ab]/\d+\.png is in"):
        pack(given, tmp_path, group_by=r"(\d+)\.png", method="stable")


NAMES = ["with space.png", "ünïcödé 猫.png", "new\nline.png", 'quo"te.png', "-dash.png", "%41.png"]


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_names_of_all_kinds_come_through(kind: str, tmp_path: Path) -> None:
    root = write_images(tmp_path / "a set", [f"{c}/{name}" for c in ("größe 1", "b\nb") for name in NAMES])
    path = root
    if kind == "tar":
        path = tmp_path / "a set.tar"
        with tarfile.open(path, "w") as archive:
            archive.add(root, "a set")
    source = open_source(path, tmp_path)
    pack(list(source.samples()), tmp_path / "raw", source.classes)
    rows, info = manifest.read(tmp_path / "raw")
    assert info.classes == ("b\nb", "größe 1")
    prefix = "a set/" if kind == "tar" else ""
    assert set(rows["id"]) == {f"{prefix}{c}/{name}" for c in info.classes for name in NAMES}
    for image_id, encoded in zip(rows["id"], manifest.encoded_images(tmp_path / "raw", rows), strict=True):
        assert encoded == (root / image_id.removeprefix(prefix)).read_bytes()


def test_symlink_loops_are_refused(tmp_path: Path) -> None:
    root = write_images(tmp_path / "pets", [f"{c}/{n}.png" for c in "ab" for n in range(3)])
    (root / "a/loop.png").symlink_to("loop.png")
    with pytest.raises(DataError, match=r"loop.png: cannot be read"):
        list(open_source(root, tmp_path).samples())
    (root / "a/loop.png").unlink()
    (root / "a/up").symlink_to("..", target_is_directory=True)
    with pytest.raises(DataError, match="a symlinked folder"):
        open_source(root, tmp_path)
    (tmp_path / "self").symlink_to("self")
    with pytest.raises(DataError, match="there is no such file or folder"):
        open_source(tmp_path / "self", tmp_path)


def test_a_manifest_of_an_older_version_is_still_read(tmp_path: Path) -> None:
    pack(samples(), tmp_path / "new")
    pack(samples(), tmp_path / "old")
    rows, _ = manifest.read(tmp_path / "old")
    rows[list(manifest.COLUMNS[:10])].to_parquet(tmp_path / "old/manifest.parquet", index=False)
    assert tuple(manifest.read(tmp_path / "old")[0].columns) == manifest.COLUMNS[:10]
    assert open_images(tmp_path / "old", tmp_path).entries == open_images(tmp_path / "new", tmp_path).entries
    files = ("manifest.parquet", "dataset.json")
    sides = [Snapshot(name, {file: tmp_path / name / file for file in files}) for name in ("old", "new")]
    assert diff.report(*sides).diff.is_empty


def test_the_test_digest_is_of_content_alone(tmp_path: Path) -> None:
    given = samples(40)

    def digest(name: str, changed: list[Sample]) -> str:
        pack(changed, tmp_path / name)
        return manifest.read(tmp_path / name)[1].test_digest

    first = digest("first", given)
    assert digest("order", given[::-1]) == first
    assert digest("names", [sample._replace(id=f"x{sample.id}") for sample in given]) == first
    assert digest("labels", [sample._replace(label="ba"[sample.label == "b"]) for sample in given]) != first
    assert digest("fewer", given[:20]) != first
