import json
import resource
from pathlib import Path

import numpy as np
import pytest

from deepcv.data.packed import EncodedImage, PackedImages, ShardError, write

FILES = [np.random.default_rng(n).bytes(40 + n) for n in range(10)]  # nothing is decoded here
IMAGES = [EncodedImage(file, n % 2, 40 + n, 60 - n) for n, file in enumerate(FILES)]


def packed(folder: Path) -> Path:
    write(folder / "packed", IMAGES, ("cat", "dog"))
    return folder / "packed"


def test_numpy_alone_reads_it(tmp_path: Path) -> None:
    folder = packed(tmp_path)
    index, blob = np.load(folder / "index.npy"), (folder / "images.bin").read_bytes()
    assert [blob[r["offset"] : r["offset"] + r["bytes"]] for r in index] == FILES
    assert index["label"].tolist() == [n % 2 for n in range(10)]
    assert [(r["height"], r["width"]) for r in index] == [image[2:] for image in IMAGES]


def test_images_come_back(tmp_path: Path) -> None:
    images = PackedImages(packed(tmp_path))
    assert images.classes == ("cat", "dog")
    assert [images[n] for n in range(len(images))] == FILES
    assert images.labels.tolist() == [n % 2 for n in range(10)]


def test_no_image_is_a_folder_too(tmp_path: Path) -> None:
    write(tmp_path / "none", [], ("cat",))
    assert len(PackedImages(tmp_path / "none")) == 0


def test_a_full_disk_leaves_the_old_folder(tmp_path: Path) -> None:
    folder = packed(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write(folder, [IMAGES[0]] * 90, ("cat", "dog"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert PackedImages(folder)[9] == FILES[9]
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


@pytest.mark.parametrize("name", ["packed.json", "index.npy", "images.bin"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_file_is_named(name: str, damage: str, tmp_path: Path) -> None:
    path = packed(tmp_path) / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ShardError, match=rf"{name}: .*run `dvc repro preprocess`"):
        PackedImages(path.parent)


def test_one_flipped_bit_is_found_when_the_image_is_read(tmp_path: Path) -> None:
    folder = packed(tmp_path)
    blob = bytearray((folder / "images.bin").read_bytes())
    blob[-10] ^= 1
    (folder / "images.bin").write_bytes(blob)
    images = PackedImages(folder)
    assert images[0] == FILES[0]
    with pytest.raises(ShardError, match="damaged at image 9"):
        images[9]


def test_a_description_without_a_key_is_damaged(tmp_path: Path) -> None:
    folder = packed(tmp_path)
    description = json.loads((folder / "packed.json").read_text())
    (folder / "packed.json").write_text(json.dumps({k: v for k, v in description.items() if k != "classes"}))
    with pytest.raises(ShardError, match=r"packed\.json: damaged"):
        PackedImages(folder)
