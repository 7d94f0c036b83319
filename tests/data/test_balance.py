"""Which images a balanced epoch visits."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcv.data.augmentation import Augmentation, Recipe, gather, permutation
from deepcv.data.augmentation.recipe import Mix
from deepcv.data.balance import balanced, visits
from deepcv.data.loaders import TrainLoader
from deepcv.data.shards import Split

CPU = torch.device("cpu")
RARE = [40, 1, 0, 7, 16]  # images of each class; 40 + 1 + 7 + 16 = 64
COUNTS = st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(any)
SEEDS, EPOCHS = st.integers(0, 2**31 - 1), st.integers(0, 10**5)


def labels_of(counts: list[int], seed: int = 0) -> torch.Tensor:
    """So many labels of each class, shuffled."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return labels[permutation(seed, 0, len(labels), CPU)]


def loader(batch_size: int = 8, balance: float = 1.0, recipe: Recipe = Recipe(), **options: int) -> TrainLoader:  # noqa: B008 - it is frozen
    """Images of noise; `RARE` says how many of each class."""
    images = np.random.default_rng(0).integers(0, 256, (sum(RARE), 8, 8, 3), np.uint8)
    return TrainLoader(
        Split(images, labels_of(RARE).numpy()), batch_size=batch_size, seed=3, device=CPU, balance=balance,
        augmentation=Augmentation(flip=True, shift=3, cutout=2), recipe=recipe, classes=len(RARE), **options,
    )  # fmt: skip


@settings(deadline=None)
@given(COUNTS, st.floats(0, 1))
def test_shares_of_classes_are_between_their_own_and_equal_ones(counts: list[int], balance: float) -> None:
    found, own = visits(torch.tensor(counts), balance).numpy(), np.array(counts)
    assert found.sum() == own.sum()
    weights = np.where(own > 0, own.astype(float) ** (1 - balance), 0)
    assert np.abs(found - own.sum() * weights / weights.sum()).max() < 1 + 1e-9
    if balance == 0:
        assert (found == own).all()
    if balance == 1:
        assert np.ptp(found[own > 0]) <= 1
        assert not found[own == 0].any()


@settings(deadline=None)
@given(COUNTS, st.floats(0, 1), SEEDS, EPOCHS, st.integers(1, 4))
def test_images_of_a_class_are_visited_equally_often(
    counts: list[int], balance: float, seed: int, epoch: int, epochs: int
) -> None:
    """In an epoch, and in several one after the other."""
    labels = labels_of(counts, seed)
    count = len(labels)
    samples = [balanced(labels, balance, seed, epoch + number) for number in range(epochs)]
    for one in samples:
        assert len(one.unique()) == count
        assert torch.equal(torch.bincount(labels[one % count]), visits(torch.bincount(labels), balance))
        for image, times in Counter((one % count).tolist()).items():  # its visits are numbered without a gap
            assert sorted(one[one % count == image].tolist()) == [image + count * n for n in range(times)]
    seen = torch.bincount(torch.cat(samples) % count, minlength=count)
    for label in labels.unique():
        of_class = seen[labels == label]
        assert of_class.max() - of_class.min() <= 1


@pytest.mark.parametrize("balance", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("recipe", [Recipe(), Recipe("trivialaugment", mixup=Mix(0.4, 0.5), cutmix=Mix(1.0, 0.4))])
def test_an_epoch_is_the_same_at_any_batch_size_and_from_any_batch(balance: float, recipe: Recipe) -> None:
    def pixels_and_targets(batch_size: int, first: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        one = loader(batch_size, balance, recipe)
        one.epoch, one.first = 5, first
        images, targets, _ = zip(*one, strict=True)
        return torch.cat(images), torch.cat(targets)

    whole = pixels_and_targets(64)
    for batch_size, first in ((1, 0), (8, 0), (16, 0), (8, 3), (1, 60)):
        for found, expected in zip(pixels_and_targets(batch_size, first), whole, strict=True):
            assert torch.equal(found, expected[batch_size * first :])


def test_an_epoch_has_all_classes_equally_often_in_an_order_of_its_own() -> None:
    one = loader()
    orders = []
    for epoch in (0, 1, 0):
        one.epoch = epoch
        orders.append(one.order())
        targets = torch.cat([batch.targets for batch in one])
        assert torch.bincount(targets, minlength=5).tolist() == [16, 16, 0, 16, 16]
        assert torch.equal(targets, one.targets[orders[-1] % 64])
        assert (targets[1:] != targets[:-1]).sum() > 32  # not class by class
    assert torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0], orders[1])


def test_unbalanced_epochs_are_permutations() -> None:
    one = loader(balance=0.0)
    one.epoch = 7
    assert torch.equal(one.order(), permutation(3, 7, 64, CPU))


def test_each_visit_of_an_image_has_draws_of_its_own() -> None:
    one = loader(64)
    order = one.order()
    images = next(iter(one)).images_nchw
    (only,) = (labels_of(RARE) == 1).nonzero()[0].tolist()
    visited = images[order % 64 == only]
    assert len(visited) == 16
    assert len({picture.numpy().tobytes() for picture in visited}) >= 15  # 2 · 7² · 8² pictures are possible
    expected = gather(one.images_nhwc[[only] * 16], order[order % 64 == only], one.augmentation, 3, 0, taken=True)
    assert torch.equal(visited.permute(0, 2, 3, 1), expected)
    assert torch.equal(one.plain(order[:9]).permute(0, 2, 3, 1), one.images_nhwc[order[:9] % 64])
