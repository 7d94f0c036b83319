import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from deepcv.data.augmentation import Draws, mixing, permutation

COUNT = 4_000
CPU = torch.device("cpu")


def draws(count: int = COUNT) -> Draws:
    return Draws(0, 0, torch.arange(count))


def test_partners_depend_on_the_epochs_order_alone() -> None:
    order = permutation(0, 3, 100, CPU)
    whole = mixing.partners(order, torch.arange(100), shift=37)
    assert sorted(whole.tolist()) == list(range(100))  # each is somebody's partner once
    assert not bool((whole == order).any())
    for size in (1, 7, 64):
        parts = [mixing.partners(order, torch.arange(100)[start : start + size], 37) for start in range(0, 100, size)]
        assert torch.equal(torch.cat(parts), whole)


def test_mixup_blends_by_beta() -> None:
    black = torch.zeros(COUNT, 1, 2, 2, dtype=torch.uint8)
    mixed = mixing.mixup(black, torch.full_like(black, 255), draws(), alpha=0.4)
    partner_share = mixed.images_nchw[:, 0, 0, 0].double() / 255
    assert torch.allclose(partner_share, 1 - mixed.own_share.double(), atol=0.5 / 255 + 1e-6)
    assert stats.kstest(mixed.own_share.numpy(), stats.beta(0.4, 0.4).cdf).pvalue > 1e-3


@pytest.mark.parametrize("size", [(32, 32), (7, 50), (1, 1)])
def test_cutmix_counts_the_pixels_it_pastes(size: tuple[int, int]) -> None:
    own = torch.full((COUNT, 3, *size), 10, dtype=torch.uint8)
    mixed = mixing.cutmix(own, torch.full_like(own, 20), draws(), alpha=1.0)
    pasted = (mixed.images_nchw == 20).all(1)
    assert torch.equal((mixed.images_nchw == 20).any(1), pasted)
    assert torch.allclose(mixed.own_share, 1 - pasted.float().mean((1, 2)))
    rows, columns = pasted.any(2), pasted.any(1)
    assert torch.equal(pasted, rows[:, :, None] & columns[:, None, :])


def test_cutmix_pastes_the_share_that_was_drawn() -> None:
    own = torch.zeros(COUNT, 1, 64, 64, dtype=torch.uint8)
    mixed = mixing.cutmix(own, torch.ones_like(own), draws(), alpha=1.0)
    drawn = draws().beta(1.0, 1.0, 0)[:, 0]
    clipped = mixed.own_share - drawn  # a rectangle over the border is cut: more of its own is left
    assert float(clipped.min()) > -0.04  # 64 pixels: rounding
    edges = [
        mixed.images_nchw[:, 0, 0],
        mixed.images_nchw[:, 0, -1],
        mixed.images_nchw[:, 0, :, 0],
        mixed.images_nchw[:, 0, :, -1],
    ]
    inside = torch.stack([edge.sum(1) == 0 for edge in edges]).all(0)
    assert int(inside.sum()) > 500
    assert float(clipped[inside].abs().max()) < 0.04


def test_erasing_stays_in_its_share_and_ratio() -> None:
    images = torch.full((COUNT, 3, 80, 120), 9, dtype=torch.uint8)
    wanted = torch.linspace(0.04, 0.2, COUNT)
    gone = (mixing.fill(images, wanted, draws(), ratio=3.0) == 0).all(1)
    share = gone.float().mean((1, 2))
    assert float((share - wanted).abs().max()) < 0.01  # sides are whole pixels
    assert float(share.min()) > 0.036
    assert float(share.max()) < 0.21
    assert float(share.mean()) == pytest.approx(0.12, abs=0.003)
    heights, widths = gone.any(2).sum(1), gone.any(1).sum(1)
    assert torch.equal(gone.sum((1, 2)), heights * widths)  # one whole rectangle
    assert float((heights / widths).max()) < 3.2
    assert float((widths / heights).max()) < 3.2
    often = gone.float().mean(0)
    for side in (0, 1):  # neither end is preferred
        assert float((often - often.flip(side)).abs().max()) < 0.05


@settings(deadline=None, max_examples=10)
@given(st.permutations(range(64)), st.integers(1, 64))
def test_erasing_does_not_depend_on_the_batch(order: list[int], size: int) -> None:
    images = torch.full((64, 1, 64, 64), 9, dtype=torch.uint8)
    share = torch.linspace(0.02, 0.33, 64)
    whole = mixing.fill(images, share, draws(64))
    part = torch.tensor(order[:size])
    assert torch.equal(mixing.fill(images[part], share[part], draws(64).of(part)), whole[part])


def test_soft_targets_share_between_two_classes() -> None:
    found = mixing.soft_targets(torch.tensor([0, 1]), torch.tensor([2, 1]), torch.tensor([0.75, 0.3]), classes=3)
    assert torch.allclose(found, torch.tensor([[0.75, 0, 0.25], [0, 1.0, 0]]))
