import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcv.data.augmentation import Augmentation, gather, hash32

ALL = Augmentation(flip=True, shift=2, cutout=3)


def images(count: int = 20, height: int = 6, width: int = 5, channels: int = 3) -> torch.Tensor:
    values = np.random.default_rng(0).integers(1, 256, (count, height, width, channels)).astype(np.uint8)
    return torch.from_numpy(values)


def windows(image: np.ndarray, shift: int) -> list[np.ndarray]:
    """Every translation by up to `shift` pixels, filled by reflection: numpy's own padding, image by image."""
    height, width = image.shape[:2]
    padded = np.pad(image, ((shift, shift), (shift, shift), (0, 0)), mode="reflect")
    steps = range(2 * shift + 1)
    return [padded[top : top + height, left : left + width] for top in steps for left in steps]


def test_no_augmentation_is_plain_indexing() -> None:
    index = torch.tensor([3, 0, 3])
    assert torch.equal(gather(images(), index, Augmentation(), 0, 0), images()[index])


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(20)), st.integers(1, 20), st.integers(0, 99))
def test_a_draw_does_not_depend_on_batch_or_order(order: list[int], size: int, epoch: int) -> None:
    whole = gather(images(), torch.arange(20), ALL, 5, epoch)
    for start in range(0, 20, size):
        index = torch.tensor(order[start : start + size])
        assert torch.equal(gather(images(), index, ALL, 5, epoch), whole[index])


def test_two_epochs_show_both_sides_of_each_image() -> None:
    source = torch.randint(0, 256, (50, 4, 5, 1), dtype=torch.uint8)
    first, second, third = (gather(source, torch.arange(50), Augmentation(flip=True), 3, epoch) for epoch in range(3))
    assert torch.equal(second, first.flip(2))
    assert torch.equal(third, first)


def test_flip_only_mirrors_and_mirrors_half() -> None:
    source = images(400)
    found = gather(source, torch.arange(400), Augmentation(flip=True), 0, 0)
    kept = (found == source).flatten(1).all(1)
    mirrored = (found == source.flip(2)).flatten(1).all(1)
    assert (kept | mirrored).all()
    assert 150 < int(mirrored.sum()) < 250


@pytest.mark.parametrize("shift", [1, 3])
def test_shift_translates_and_reflects(shift: int) -> None:
    source = images(300, 6, 5)
    found = gather(source, torch.arange(300), Augmentation(shift=shift), 1, 2).numpy()
    seen = set()
    for image, moved in zip(source.numpy(), found, strict=True):
        hits = [n for n, window in enumerate(windows(image, shift)) if np.array_equal(window, moved)]
        assert hits
        seen.add(hits[0])
    assert len(seen) > 0.8 * (2 * shift + 1) ** 2  # all translations are drawn


@pytest.mark.parametrize(("height", "width", "shift"), [(1, 1, 3), (2, 3, 50), (1, 8, 2)])
def test_shift_stays_inside_however_large(height: int, width: int, shift: int) -> None:
    source = images(50, height, width)
    found = gather(source, torch.arange(50), Augmentation(shift=shift), 0, 0)
    assert found.shape == source.shape
    for image, moved in zip(source.numpy(), found.numpy(), strict=True):
        assert set(moved.ravel()) <= set(image.ravel())


@pytest.mark.parametrize("side", [1, 2, 3, 4, 100])
def test_cutout_blanks_a_clipped_square(side: int) -> None:
    source = images(200, 6, 5)  # holds no zero
    found = gather(source, torch.arange(200), Augmentation(cutout=side), 0, 0)
    blank = (found == 0).all(3)
    assert torch.equal(found, source.masked_fill(blank[..., None], 0))
    rows, columns = blank.any(2), blank.any(1)
    assert torch.equal(blank, rows[:, :, None] & columns[:, None, :])
    assert (rows.sum(1) >= 1).all()
    assert (rows.sum(1) <= min(side, 6)).all()
    assert ((rows[:, 1:] != rows[:, :-1]).sum(1) <= 2).all()  # one stretch of neighbours
    whole = (rows.sum(1) == side) & (columns.sum(1) == side)
    assert bool(whole.any()) == (side <= 5)


def test_operations_draw_independently() -> None:
    """The flip does not tell which way the shift goes."""
    flips = hash32(0, 0, torch.arange(4000), 1) >> 31
    rights = hash32(0, 0, torch.arange(4000), 3) % 3 - 1
    correlation = np.corrcoef(flips.numpy(), rights.numpy())[0, 1]
    assert abs(correlation) < 0.06
