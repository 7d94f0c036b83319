import re
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import picture

from deepcv.data import manifest
from deepcv.data.samples import DataError, Sample
from deepcv.images import encode_png


def samples(count: int = 12, split: str | None = None) -> list[Sample]:
    return [Sample(f"{'ab'[n % 2]}/{n}.png", split, "ab"[n % 2], encode_png(picture(n, 5, 6))) for n in range(count)]


def pack(given: list[Sample], folder: Path, classes: tuple[str, ...] = ("a", "b")) -> pd.DataFrame:
    folder.mkdir(exist_ok=True)
    return manifest.pack(
        given, classes, folder, name="toy", source="images", val_fraction=0.2, test_fraction=0.2, seed=0
    )


def rows(labels: list[str], splits: list[str | None] | None = None) -> pd.DataFrame:
    ids = [f"{n:03d}" for n in range(len(labels))]
    return pd.DataFrame({"id": ids, "sha256": ids, "label": labels, "split": splits or [None] * len(labels)})


def test_equal_images_are_never_split() -> None:
    table = rows(["a"] * 200)
    table["sha256"] = [f"{n // 2}" for n in range(200)]  # each image twice
    splits = manifest.assign_splits(table, val_fraction=0.1, test_fraction=0.2, seed=0)
    assert (splits.groupby(table["sha256"]).nunique() == 1).all()
    assert splits.value_counts()["test"] in (40, 41)


@pytest.mark.parametrize("seed", range(5))
def test_equal_images_of_two_classes_are_never_split(seed: int) -> None:
    table = rows(["a"] * 60 + ["b"] * 90)
    table["sha256"] = [f"{n}" for n in [*range(60), *range(40, 130)]]
    splits = manifest.assign_splits(table, val_fraction=0.1, test_fraction=0.2, seed=seed)
    assert (splits.groupby(table["sha256"]).nunique() == 1).all()


def assign(table: pd.DataFrame, val: float = 0.2, test: float = 0.2, seed: int = 0) -> dict[str, str]:
    splits = manifest.assign_splits(table, val_fraction=val, test_fraction=test, seed=seed)
    return dict(zip(table["id"], splits, strict=True))


def test_round_trip(tmp_path: Path) -> None:
    given = samples()
    written = pack(given, tmp_path)
    read, info = manifest.read(tmp_path)
    pd.testing.assert_frame_equal(read, written, check_dtype=False)
    assert tuple(read.columns) == manifest.COLUMNS
    assert info == manifest.DatasetInfo("toy", ("a", "b"), manifest.digest_of_test_split(written))
    assert list(read["id"]) == [s.id for s in given]
    assert set(read["width"]) == {6}
    assert set(read["height"]) == {5}
    assert set(read["channels"]) == {1}
    assert list(manifest.encoded_images(tmp_path, read)) == [s.encoded for s in given]
    backwards = read.iloc[::-1]
    assert list(manifest.encoded_images(tmp_path, backwards)) == [s.encoded for s in reversed(given)]


def test_equal_samples_give_equal_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        pack(samples(), tmp_path / name)
    for file in ("manifest.parquet", "images.bin", "dataset.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_every_bad_file_is_named(tmp_path: Path) -> None:
    given = samples()
    given[3] = given[3]._replace(encoded=given[3].encoded[:-9])
    given[7] = given[7]._replace(encoded=b"")
    with pytest.raises(DataError, match=r"2 files are no images(.|\n)*b/3.png: not a whole(.|\n)*b/7.png: .*empty"):
        pack(given, tmp_path)
    assert not (tmp_path / "manifest.parquet").exists()
    assert not (tmp_path / "dataset.json").exists()


def test_many_bad_files_are_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"25 files are no images(.|\n)* and 15 more"):
        pack([Sample(str(n), None, "a", b"x") for n in range(25)], tmp_path)


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
    table = pack(samples(), tmp_path)
    blob = bytearray((tmp_path / "images.bin").read_bytes())
    blob[table["offset"][4] + 40] ^= 1
    (tmp_path / "images.bin").write_bytes(blob)
    with pytest.raises(DataError, match=r"images.bin: damaged at image a/4.png"):
        list(manifest.encoded_images(tmp_path, table))


labels = st.lists(st.sampled_from("abc"), min_size=1, max_size=60)
fractions = st.floats(0.05, 0.45)


@settings(deadline=None, max_examples=50)
@given(labels, fractions, fractions, st.integers(0, 9))
def test_splits_are_stratified(names: list[str], val: float, test: float, seed: int) -> None:
    table = rows(names)
    found = assign(table, val, test, seed)
    assert set(found.values()) <= {"train", "val", "test"}
    for label, count in Counter(names).items():
        sizes = Counter(found[i] for i, name in zip(table["id"], names, strict=True) if name == label)
        assert sizes["val"] == min(count, max(1, round(val * count)))
        assert sizes["test"] == min(count - sizes["val"], max(1, round(test * count)))


@settings(deadline=None, max_examples=30)
@given(labels, st.randoms(use_true_random=False))
def test_splits_do_not_depend_on_the_order_of_the_rows(names: list[str], random: object) -> None:
    table = rows(names)
    order = list(range(len(names)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert assign(table) == assign(table.iloc[order].reset_index(drop=True))


def test_splits_depend_on_the_seed() -> None:
    table = rows(["a"] * 50)
    assert assign(table, seed=0) != assign(table, seed=1)
    assert assign(table, seed=1) == assign(table, seed=1)


@pytest.mark.parametrize("own", ["val", "test"])
def test_a_split_of_the_source_is_kept(own: str) -> None:
    table = rows(["a", "b"] * 20, [own if n < 8 else "train" for n in range(40)])
    found = assign(table)
    assert [i for i, split in found.items() if split == own] == list(table["id"][:8])
    other = {"val": "test", "test": "val"}[own]
    assert Counter(found.values())[other] == 6  # 20 % of the 16 train images of each class


def test_all_splits_of_the_source_are_kept() -> None:
    splits = ["train", "val", "test", "train"] * 3
    assert list(assign(rows(["a"] * 12, splits)).values()) == splits


def test_the_test_digest_is_of_content_alone() -> None:
    table = pd.DataFrame(
        {"id": list("wxyz"), "sha256": list("1234"), "label": list("abab"), "split": ["test", "test", "test", "train"]}
    )
    digest = manifest.digest_of_test_split(table)
    assert manifest.digest_of_test_split(table.iloc[::-1]) == digest
    assert manifest.digest_of_test_split(table.assign(id=list("abcd"), width=[3] * 4)) == digest
    assert manifest.digest_of_test_split(table.iloc[:3]) == digest  # train does not count
    assert manifest.digest_of_test_split(table.assign(label=list("bbab"))) != digest
    assert manifest.digest_of_test_split(table.assign(split=["test"] * 4)) != digest
    assert manifest.digest_of_test_split(table.assign(sha256=list("5234"))) != digest
