import json
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import FURTHER, labelled, write_several_shards, write_shards

from deepcv.data.shards import ShardError, channel_statistics, open_shards, write_description

FILES = ["dataset.json", *(f"{s}_{kind}.npy" for s in ("train", "val", "test") for kind in ("images", "labels"))]


@pytest.mark.parametrize("channels", [1, 3])
def test_round_trip(channels: int, tmp_path: Path) -> None:
    shards = open_shards(write_shards(tmp_path, channels=channels))
    assert shards.classes == ("dark", "light")
    assert shards.input_shape == (channels, 8, 8)
    assert shards.test_digest == "t" * 64
    for seed, split in enumerate((shards.train, shards.val, shards.test)):
        images, labels = labelled(len(split.labels), channels, seed=seed)
        assert np.array_equal(split.images_nhwc, images)
        assert split.images_nhwc.dtype == np.uint8
        assert np.array_equal(split.labels, labels)
        assert split.labels.dtype == np.int64
    assert isinstance(shards.train.images_nhwc, np.memmap)
    expected = channel_statistics(shards.train.images_nhwc)
    assert (shards.mean, shards.std) == expected


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 9), st.sampled_from([1, 3]), st.integers(0, 99), st.integers(2, 256))
def test_statistics_are_numpys(count: int, side: int, channels: int, seed: int, levels: int) -> None:
    images = np.random.default_rng(seed).integers(0, levels, (count, side, side, channels)).astype(np.uint8)
    mean, std = channel_statistics(images)
    pixels = images.reshape(-1, channels).astype(np.float64)
    assert np.allclose(mean, pixels.mean(axis=0) / 255, rtol=0, atol=1e-12)
    assert np.allclose(std, np.maximum(pixels.std(axis=0), 1) / 255, rtol=0, atol=1e-12)


def test_statistics_of_more_images_than_a_chunk() -> None:
    images = np.random.default_rng(0).integers(0, 256, (100, 256, 256, 3), np.uint8)
    tracemalloc.start()
    mean, std = channel_statistics(images)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.allclose(mean, images.mean(axis=(0, 1, 2)) / 255, rtol=0, atol=1e-12)
    assert np.allclose(std, images.std(axis=(0, 1, 2)) / 255, rtol=0, atol=1e-12)
    assert peak < 100 * 2**20  # large images need no more memory than small ones


def test_a_constant_channel_is_not_blown_up() -> None:
    assert channel_statistics(np.full((4, 2, 2, 1), 255, np.uint8)) == ((1.0,), (1 / 255,))


def test_statistics_come_from_the_train_split_alone(tmp_path: Path) -> None:
    one = open_shards(write_shards(tmp_path / "one", held_out=8))
    more = open_shards(write_shards(tmp_path / "more", held_out=20))
    folder = write_shards(tmp_path / "poisoned", held_out=8)
    for split in ("val", "test"):
        np.save(folder / f"{split}_images.npy", 255 - np.load(folder / f"{split}_images.npy"))
    write_description(folder, name="toy", classes=one.classes, test_digest=one.test_digest, recipe=one.recipe)
    poisoned = open_shards(folder)
    assert not np.array_equal(poisoned.test.images_nhwc, one.test.images_nhwc)
    for other in (more, poisoned):
        assert (other.mean, other.std) == (one.mean, one.std)
        assert other.digest != one.digest


def test_equal_content_has_an_equal_digest(tmp_path: Path) -> None:
    assert (
        open_shards(write_shards(tmp_path / "one")).digest == open_shards(write_shards(tmp_path / "a" / "two")).digest
    )


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "one bit"])
def test_a_damaged_file_is_named(name: str, damage: str, tmp_path: Path) -> None:
    path = write_shards(tmp_path) / name
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "one bit" and name == "dataset.json":
        path.write_bytes(content.replace(b'"sha256": {', b'"sha256": 7, "x": {'))
    elif damage == "one bit":
        content[-5] ^= 4
        path.write_bytes(content)
    else:
        path.write_bytes(content[: 0 if damage == "empty" else len(content) // 2])
    with pytest.raises(ShardError, match=rf"{re.escape(str(path))}: .*dvc repro preprocess"):
        open_shards(tmp_path)


@pytest.mark.parametrize("key", ["sha256", "name", "classes", "recipe", "mean"])
def test_a_description_that_lacks_a_key_is_damaged(key: str, tmp_path: Path) -> None:
    path = write_shards(tmp_path) / "dataset.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))
    with pytest.raises(ShardError, match=r"dataset\.json: damaged"):
        open_shards(tmp_path)


@pytest.mark.parametrize("encoded", [False, True])
def test_further_targets_are_read_by_name_and_measured_on_train(encoded: bool, tmp_path: Path) -> None:
    folder = write_several_shards(tmp_path, encoded=encoded)
    shards = open_shards(folder)
    assert [target.of for target in shards.further] == ["numbers.größe/2", "tags.bright"]
    assert [target.names for target in shards.further] == [target.names for target in FURTHER]
    for split, name in ((shards.train, "train"), (shards.val, "val"), (shards.test, "test")):
        for place, of in enumerate(split.further, start=1):
            assert np.array_equal(split.further[of], np.load(folder / f"{name}_labels_{place}.npy"))
        assert list(split.further) == ["numbers.größe/2", "tags.bright"]
    numbers = np.load(folder / "train_labels_1.npy").astype(np.float64)
    assert shards.further[0].task.mean == tuple(numbers.mean(axis=0))
    assert shards.further[0].task.std == tuple(numbers.std(axis=0))
    path = folder / "val_labels_2.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ShardError, match=r"val_labels_2\.npy: damaged"):
        open_shards(folder)


def test_without_further_targets_nothing_says_that_there_could_be_some(tmp_path: Path) -> None:
    description = json.loads((write_shards(tmp_path) / "dataset.json").read_text())
    assert list(description) == ["name", "classes", "test_digest", "recipe", "mean", "std", "sha256"]
    assert open_shards(tmp_path).further == ()
