from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcv.data.augmentation import Augmentation, Recipe, gather, permutation
from deepcv.data.augmentation.recipe import Mix
from deepcv.data.loaders import Batch, TrainLoader, Views
from deepcv.data.shards import Split

PLAIN = Augmentation()


def loader(count: int = 10, batch_size: int = 4, augmentation: Augmentation = PLAIN) -> TrainLoader:
    """Image n is filled with n, so that a batch tells which samples it holds."""
    images = np.tile(np.arange(count, dtype=np.uint8)[:, None, None, None], (1, 4, 5, 3))
    split = Split(images, np.arange(count, dtype=np.int64) * 10)
    return TrainLoader(split, batch_size=batch_size, augmentation=augmentation, seed=3, device=torch.device("cpu"))


def test_a_batch_is_uint8_channels_last_with_class_numbers() -> None:
    batches = list(loader())
    assert len(batches) == len(loader()) == 2
    for images, targets, _ in batches:
        assert images.shape == (4, 3, 4, 5)
        assert images.dtype == torch.uint8
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert targets.shape == (4,)
        assert targets.dtype == torch.int64
        assert (images == (targets // 10)[:, None, None, None]).all()


@pytest.mark.parametrize(("count", "batch_size", "batches"), [(10, 4, 2), (8, 4, 2), (3, 4, 1), (5, 1, 5)])
def test_an_epoch_visits_each_sample_at_most_once(count: int, batch_size: int, batches: int) -> None:
    found = list(loader(count, batch_size))
    seen = torch.cat([batch.targets for batch in found]).tolist()
    assert len(found) == batches
    assert len(seen) == len(set(seen)) == batches * min(batch_size, count)


def test_epochs_differ_and_repeat() -> None:
    one = loader()
    orders = []
    for epoch in (0, 1, 0):
        one.epoch = epoch
        orders.append(torch.cat([batch.targets for batch in one]).tolist())
    assert orders[0] == orders[2] != orders[1]
    assert orders[0] == [10 * n for n in permutation(3, 0, 10, torch.device("cpu")).tolist()][:8]


def test_batches_are_resized_after_they_are_augmented() -> None:
    one, whole = loader(augmentation=Augmentation(flip=True, shift=1)), loader(augmentation=Augmentation(True, 1))
    one.images_nhwc = whole.images_nhwc = torch.arange(10 * 4 * 5 * 3, dtype=torch.int64).view(10, 4, 5, 3).byte()
    one.size = (2, 5)
    for (images, targets, _), (expected, whole_targets, _) in zip(one, whole, strict=True):
        assert images.shape == (4, 3, 2, 5)
        assert images.dtype == torch.uint8
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(targets, whole_targets)
        near = torch.nn.functional.interpolate(expected.float(), (2, 5), mode="bilinear", antialias=True)
        assert (images - near).abs().max() <= 0.5


def test_batches_are_augmented_with_the_draws_of_their_samples() -> None:
    augmentation = Augmentation(flip=True, shift=1, cutout=2)
    one = loader(augmentation=augmentation)
    one.epoch = 2
    for images, targets, _ in one:
        expected = gather(one.images_nhwc, targets // 10, augmentation, 3, 2)
        assert torch.equal(images.permute(0, 2, 3, 1), expected)


def noise(views: Views = Views(), recipe: Recipe = Recipe()) -> TrainLoader:  # noqa: B008 - both are frozen
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3), np.uint8)
    return TrainLoader(
        Split(images, np.arange(16)), batch_size=16, augmentation=Augmentation(flip=True, shift=2), seed=3,
        device=torch.device("cpu"), recipe=recipe, views=views,
    )  # fmt: skip


def test_views_of_an_image_have_draws_of_their_own() -> None:
    both = next(iter(noise(Views(3))))
    assert both.views == 3
    assert len(both.images_nchw) == 3 * len(both.targets)
    one = next(iter(noise()))
    views = both.images_nchw.unflatten(0, (3, -1))
    assert torch.equal(views[0], one.images_nchw)
    assert torch.equal(both.targets, one.targets)
    assert not torch.equal(views[0], views[1])
    assert not torch.equal(views[1], views[2])
    assert both.images_nchw.is_contiguous(memory_format=torch.channels_last)


def test_with_a_clean_first_view_only_the_others_have_the_policy() -> None:
    batch = next(iter(noise(Views(3, "clean"), Recipe("augmix"))))
    clean, one, other = batch.images_nchw.unflatten(0, (3, -1))
    assert torch.equal(clean, next(iter(noise())).images_nchw)
    assert not torch.equal(one, clean)
    assert not torch.equal(one, other)
    only = next(iter(noise(Views(2, "clean"))))
    assert torch.equal(*only.images_nchw.unflatten(0, (2, -1)))  # without a policy: flip and shift are shared


@pytest.mark.parametrize("pieces", [1, 2, 3, 7])
def test_pieces_of_a_batch_have_all_views_of_their_images(pieces: int) -> None:
    batch = Batch(torch.arange(15).view(15, 1, 1, 1), torch.arange(5))
    for part in batch.split(pieces):
        for view, images in enumerate(part.images_nchw.unflatten(0, (3, -1))):
            assert torch.equal(images.flatten(), part.targets + 5 * view)
    assert torch.equal(torch.cat([part.targets for part in batch.split(pieces)]), batch.targets)


def with_further(count: int, **options: Any) -> TrainLoader:
    """Image n is filled with n; so are its further targets, with n and with n and -n."""
    images = np.tile(np.arange(count, dtype=np.uint8)[:, None, None, None], (1, 8, 8, 1))
    numbers = np.arange(count, dtype=np.float32)[:, None]
    further = {"numbers.n": numbers, "numbers": np.concatenate([numbers, -numbers], 1)}
    return TrainLoader(
        Split(images, np.arange(count) % 2, further), augmentation=PLAIN, seed=3, device=torch.device("cpu"), **options
    )


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(4, 40), share=st.integers(1, 4), ranks=st.sampled_from([1, 2]), views=st.integers(1, 3),
    balance=st.sampled_from([0.0, 0.6]), policy=st.sampled_from(["none", "randaugment"]), pieces=st.integers(1, 5),
)  # fmt: skip
def test_further_targets_follow_the_images(
    count: int, share: int, ranks: int, views: int, balance: float, policy: Any, pieces: int
) -> None:
    recipe = Recipe(policy)
    for rank in range(ranks):
        options: dict[str, Any] = {"rank": rank, "ranks": ranks, "views": Views(views), "balance": balance}
        one = with_further(count, batch_size=min(share * ranks, count // ranks * ranks), recipe=recipe, **options)
        order = one.order() % count
        for number, batch in enumerate(one):
            place = number * one.batch_size + rank * batch.size
            expected = order[place : place + batch.size].float()
            for part in batch.split(pieces):
                assert {len(values) for values in part.further.values()} == {part.size}
            for whole in (
                batch.further,
                {n: torch.cat([p.further[n] for p in batch.split(pieces)]) for n in batch.further},
            ):
                assert torch.equal(whole["numbers.n"], expected[:, None])
                assert torch.equal(whole["numbers"], torch.stack([expected, -expected], 1))
            if policy == "none":
                assert torch.equal(batch.images_nchw[: batch.size, 0, 0, 0].float(), expected)


def test_further_targets_are_mixed_as_the_images_are() -> None:
    one = with_further(40, batch_size=40, recipe=Recipe(mixup=Mix(1.0, 1.0)), classes=2)
    batch = next(iter(one))
    pixels = batch.images_nchw[:, 0, 0, 0].float()
    assert (pixels - batch.further["numbers.n"][:, 0]).abs().max() <= 0.51  # pixels are rounded
    assert torch.allclose(batch.further["numbers"][:, 1], -batch.further["numbers.n"][:, 0])
    assert (batch.further["numbers.n"] % 1 > 0).any()


def test_without_further_targets_there_are_none() -> None:
    batch = next(iter(loader()))
    assert batch.further == {}
    assert [part.further for part in batch.split(2)] == [{}, {}]
