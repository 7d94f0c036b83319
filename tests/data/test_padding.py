from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import picture

from deepcv.data.packed import EncodedImage, PackedImages, write
from deepcv.data.padding import bucketed, pad, padded_batches
from deepcv.images import encode_png

SIZES = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=12)


@given(SIZES, st.sampled_from([1, 3]), st.sampled_from([1, 8, 32]))
def test_an_image_is_found_where_the_mask_is(sizes: list[tuple[int, int]], channels: int, multiple: int) -> None:
    images = [np.maximum(picture(n, *size, channels), 1) for n, size in enumerate(sizes)]
    batch = pad(images, torch.arange(len(images)), multiple)
    height, width = batch.images_nchw.shape[2:]
    assert height % multiple == width % multiple == 0
    assert max(h for h, _ in sizes) <= height < max(h for h, _ in sizes) + multiple
    assert max(w for _, w in sizes) <= width < max(w for _, w in sizes) + multiple
    assert batch.images_nchw.dtype == torch.uint8
    assert batch.images_nchw.is_contiguous(memory_format=torch.channels_last)
    assert batch.sizes.tolist() == [list(size) for size in sizes]
    for image, padded, mask in zip(images, batch.images_nchw, batch.mask, strict=True):
        assert np.array_equal(padded[:, mask].T.reshape(image.shape).numpy(), image)
        assert not padded[:, ~mask].any()


def test_an_image_of_the_common_size_is_not_padded() -> None:
    batch = pad([picture(0, 4, 5, 3)] * 2, torch.zeros(2))
    assert batch.images_nchw.shape == (2, 3, 4, 5)
    assert batch.mask.all()


@pytest.mark.parametrize(
    ("images", "got"), [([], "no image"), ([picture(0, 4, 4, 1), picture(0, 4, 4, 3)], r"\[1, 3\]")]
)
def test_what_makes_no_batch(images: list[np.ndarray], got: str) -> None:
    with pytest.raises(ValueError, match=f"same number of channels, got {got}"):
        pad(images, torch.zeros(len(images)))


@given(SIZES, st.integers(1, 5))
def test_every_image_is_in_one_batch(sizes: list[tuple[int, int]], batch_size: int) -> None:
    batches = bucketed(np.array(sizes), batch_size)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(sizes)))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert 0 < len(batches[-1]) <= batch_size


def padded_share(sizes: np.ndarray, batches: list[np.ndarray]) -> float:
    pixels = sum(sizes[batch].max(axis=0).prod() * len(batch) for batch in batches)
    return float(1 - sizes.prod(axis=1).sum() / pixels)


def test_buckets_pad_little() -> None:
    random = np.random.default_rng(0)
    shapes = np.array([(480, 640), (640, 480), (500, 375), (375, 500), (256, 256), (1024, 300)])
    sizes = shapes[random.integers(0, 6, 600)] + random.integers(0, 30, (600, 2))
    shuffled = np.split(random.permutation(600), 60)
    assert padded_share(sizes, bucketed(sizes, 10)) < 0.1 < 0.5 < padded_share(sizes, shuffled)


def test_no_image_is_no_batch() -> None:
    assert bucketed(np.zeros((0, 2), int), 4) == []


@pytest.fixture
def photographs(tmp_path: Path) -> tuple[PackedImages, list[np.ndarray]]:
    shapes = [(10, 14), (14, 10), (12, 12)] * 8
    pictures = [picture(n, *shape, 3) for n, shape in enumerate(shapes)]
    files = [EncodedImage(encode_png(one), n % 5, *one.shape[:2]) for n, one in enumerate(pictures)]
    write(tmp_path / "packed", files, tuple("abcde"))
    return PackedImages(tmp_path / "packed"), pictures


def test_an_epoch_has_each_image_once_with_its_target(photographs: tuple[PackedImages, list[np.ndarray]]) -> None:
    images, pictures = photographs
    seen = []
    for batch in padded_batches(images, 4, multiple=8, seed=1):
        assert batch.images_nchw.shape[0] == len(batch.targets) == 4
        assert batch.images_nchw.shape[2] % 8 == batch.images_nchw.shape[3] % 8 == 0
        for image_chw, (height, width), target in zip(
            batch.images_nchw, batch.sizes.tolist(), batch.targets, strict=True
        ):
            image_hwc = image_chw[:, :height, :width].permute(1, 2, 0).numpy()
            (number,) = [n for n, one in enumerate(pictures) if np.array_equal(one, image_hwc)]
            assert target == number % 5
            seen.append(number)
    assert sorted(seen) == list(range(24))


def test_epochs_differ_and_repeat(photographs: tuple[PackedImages, list[np.ndarray]]) -> None:
    images, _ = photographs

    def composed(seed: int, epoch: int) -> list[list[int]]:
        return [batch.targets.tolist() for batch in padded_batches(images, 4, seed=seed, epoch=epoch)]

    assert composed(1, 0) == composed(1, 0)
    assert composed(1, 0) != composed(1, 1)
    assert sorted(map(sorted, composed(1, 0))) != sorted(map(sorted, composed(1, 1)))  # other company too
    assert composed(1, 0) != composed(2, 0)


def test_grey_where_asked(photographs: tuple[PackedImages, list[np.ndarray]]) -> None:
    batch = next(padded_batches(photographs[0], 4, channels=1))
    assert batch.images_nchw.shape[1] == 1
