import json
import resource
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import RandomResizedCrop
from toys import picture

from deepcv.data.augmentation import Draws
from deepcv.data.packed import CropLoader, PackedImages, crop_boxes, write
from deepcv.data.shards import ShardError
from deepcv.images import DecodeError, decode, encode_png, resized_crop


def smooth(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.dstack([columns * 255 // width, rows * 255 // height, (rows + columns) % 256]).astype(np.uint8)


def jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


FILES = [jpeg(smooth(40 + n, 60 - n)) for n in range(9)] + [encode_png(picture(9, 30, 50, 3))]


def packed(folder: Path) -> Path:
    write(folder / "packed", ((encoded, n % 2) for n, encoded in enumerate(FILES)), ("cat", "dog"))
    return folder / "packed"


def test_numpy_alone_reads_it(tmp_path: Path) -> None:
    folder = packed(tmp_path)
    index, blob = np.load(folder / "index.npy"), (folder / "images.bin").read_bytes()
    assert [blob[r["offset"] : r["offset"] + r["bytes"]] for r in index] == FILES
    assert index["label"].tolist() == [n % 2 for n in range(10)]
    assert [(r["height"], r["width"]) for r in index] == [decode(file).shape[:2] for file in FILES]


def test_images_come_back(tmp_path: Path) -> None:
    images = PackedImages(packed(tmp_path))
    assert images.classes == ("cat", "dog")
    assert [images[n] for n in range(len(images))] == FILES


def test_a_bad_image_is_named_and_the_old_folder_stays(tmp_path: Path) -> None:
    folder = packed(tmp_path)
    with pytest.raises(DecodeError, match="image 1: not a whole image"):
        write(folder, [(FILES[0], 0), (FILES[1][:-40], 1)], ("cat", "dog"))
    assert PackedImages(folder)[9] == FILES[9]
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


def test_a_full_disk_leaves_the_old_folder(tmp_path: Path) -> None:
    folder = packed(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write(folder, [(FILES[0], 0)] * 9, ("cat", "dog"))
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
    with pytest.raises(ShardError, match=rf"{name}: .*pack again"):
        PackedImages(path.parent)


def test_one_flipped_bit_is_found_when_the_image_is_read(tmp_path: Path) -> None:
    folder = packed(tmp_path)
    blob = bytearray((folder / "images.bin").read_bytes())
    blob[-100] ^= 1
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


def crops(loader: CropLoader, epoch: int = 0) -> dict[bytes, int]:
    loader.epoch = epoch
    found = {}
    for batch in loader:
        assert batch.images_nchw.shape[1:] == (3, 16, 16)
        assert batch.images_nchw.dtype == torch.uint8
        for image, target in zip(batch.images_nchw, batch.targets, strict=True):
            found[image.numpy().tobytes()] = int(target)
    return found


def test_a_crop_depends_on_seed_epoch_and_image_alone(tmp_path: Path) -> None:
    images = PackedImages(packed(tmp_path))
    whole = crops(CropLoader(images, batch_size=10, side=16, seed=1))
    assert len(whole) == 10
    assert crops(CropLoader(images, batch_size=2, side=16, seed=1)) == whole
    loader = CropLoader(images, batch_size=5, side=16, seed=1)
    assert not whole.keys() & crops(loader, epoch=1).keys()
    assert crops(loader, epoch=0) == whole
    assert not whole.keys() & crops(CropLoader(images, batch_size=10, side=16, seed=2)).keys()


def boxes(height: int, width: int, count: int = 20_000) -> np.ndarray:
    sizes = torch.tensor([[height, width]]).expand(count, 2)
    return crop_boxes(sizes, Draws(0, 0, torch.arange(count))).numpy()


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 100), (300, 300)])
def test_boxes_are_distributed_as_torchvisions(height: int, width: int) -> None:
    ours = boxes(height, width)
    torch.manual_seed(0)
    picture = torch.empty(3, height, width)
    theirs = np.array([
        RandomResizedCrop.make_params(RandomResizedCrop(224), [picture])[name]
        for _ in range(4_000) for name in ("top", "left", "height", "width")
    ]).reshape(-1, 4)  # fmt: skip
    grid = np.linspace(0, max(height, width), 200)
    for column in range(4):
        one, two = (np.searchsorted(np.sort(side[:, column]), grid) / len(side) for side in (ours, theirs))
        assert np.abs(one - two).max() < 0.035  # Kolmogorov and Smirnov: p 0.001 is at 0.034
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()


def test_where_nothing_fits_the_centre_is_taken() -> None:
    assert boxes(1, 1, 1).tolist() == [[0, 0, 1, 1]]
    top, left, height, width = boxes(1000, 2, 50)[0]
    assert (abs(top + height // 2 - 500) <= 1, left, width) == (True, 0, 2)


@pytest.mark.parametrize(("box", "limit"), [
    ((10, 20, 230, 240), 2.0),  # below a shrinkage of 2: interpolated
    ((0, 0, 600, 800), 2.0),  # decoded at a half
    ((7, 13, 1200, 1500), 2.0),  # at a quarter
])  # fmt: skip
def test_a_resized_crop_is_pillows_crop(box: tuple[int, int, int, int], limit: float) -> None:
    encoded = jpeg(smooth(1300, 1600) if box[2] > 600 else smooth(700, 900))
    top, left, height, width = box
    whole = Image.fromarray(decode(encoded, 3))
    theirs = whole.resize((224, 224), Image.Resampling.BILINEAR, (left, top, left + width, top + height), None)
    difference = np.abs(resized_crop(encoded, box, 224, 224).astype(int) - np.asarray(theirs))
    assert difference[:, :, :2].mean() < limit  # the third channel jumps from 255 to 0


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_box_counts_in_the_upright_image(orientation: int) -> None:
    from test_images import with_orientation

    encoded = with_orientation(jpeg(smooth(480, 640)), orientation)
    upright = decode(encoded, 3)
    found = resized_crop(encoded, (0, 0, *upright.shape[:2]), 60, 60)  # decoded at 1/8
    theirs = cv2.resize(upright, (60, 60), interpolation=cv2.INTER_AREA)
    assert np.abs(found.astype(int) - theirs)[:, :, :2].mean() < 2
