import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from deepcv.data.augmentation import Draws, hash32, permutation

CPU = torch.device("cpu")
SAMPLES = torch.arange(20_000)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**40), st.integers(0, 10**6), st.integers(0, 6))
def test_hash_is_in_range_and_repeats(seed: int, epoch: int, operation: int) -> None:
    numbers = torch.tensor([0, 1, 2**31, 2**32 - 1])
    found = hash32(seed, epoch, numbers, operation)
    assert found.dtype == torch.int64
    assert ((found >= 0) & (found < 2**32)).all()
    assert torch.equal(found, hash32(seed, epoch, numbers, operation))
    assert len(set(found.tolist())) == 4
    assert not torch.equal(found, hash32(seed, epoch + 1, numbers, operation))
    assert not torch.equal(found, hash32(seed + 1, epoch, numbers, operation))
    assert not torch.equal(found, hash32(seed, epoch, numbers, operation + 1))


def test_hash_is_lowbias32() -> None:
    """The mixer against plain Python integers: no product is rounded, no sign is lost."""

    def mix(x: int) -> int:
        x ^= x >> 16
        x = x * 0x7FEB352D & 0xFFFFFFFF
        x ^= x >> 15
        x = x * 0x846CA68B & 0xFFFFFFFF
        return x ^ x >> 16

    def expected(seed: int, epoch: int, sample: int, operation: int) -> int:
        mixed = 0
        for word in (seed, seed >> 32, epoch, operation):
            mixed = mix((mixed + (word & 0xFFFFFFFF) + 0x9E3779B9) & 0xFFFFFFFF)
        return mix(mixed ^ sample)

    samples = list(range(500))
    found = hash32(2**33 + 7, 3, torch.tensor(samples), 2).tolist()
    assert found == [expected(2**33 + 7, 3, sample, 2) for sample in samples]


@pytest.mark.parametrize("buckets", [2, 5, 16])
def test_draws_are_roughly_uniform(buckets: int) -> None:
    drawn = hash32(0, 0, torch.arange(16_000), 1) % buckets
    counts = torch.bincount(drawn, minlength=buckets).double()
    chi_square = ((counts - 16_000 / buckets) ** 2 / (16_000 / buckets)).sum()
    assert chi_square < (buckets - 1) + 4 * (2 * (buckets - 1)) ** 0.5  # four standard deviations


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.integers(0, 1000), st.integers(1, 300))
def test_a_permutation_holds_every_number_once(seed: int, epoch: int, count: int) -> None:
    assert sorted(permutation(seed, epoch, count, CPU).tolist()) == list(range(count))


def test_every_epoch_and_seed_has_its_own_order() -> None:
    orders = {tuple(permutation(seed, epoch, 50, CPU).tolist()) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@settings(deadline=None, max_examples=20)
@given(st.permutations(range(20)), st.integers(1, 20), st.integers(0, 99), st.integers(0, 5))
def test_draws_do_not_depend_on_batch_or_order(order: list[int], size: int, epoch: int, step: int) -> None:
    def drawn(samples: list[int]) -> list[torch.Tensor]:
        draws = Draws(3, epoch, torch.tensor(samples), step)
        return [
            draws.bits(0, 1),
            draws.uniform(2, 0),
            draws.integers(7, 3),
            draws.beta(0.2, 0.2, 4),
            draws.dirichlet(1.0, 5, 6),
        ]

    whole = drawn(list(range(20)))
    for start in range(0, 20, size):
        part = order[start : start + size]
        for found, expected in zip(drawn(part), whole, strict=True):
            assert torch.equal(found, expected[part])


def test_streams_and_steps_are_apart() -> None:
    """Neither another stream, nor another step, nor the loader's own streams give the same numbers."""
    first, second = Draws(0, 0, SAMPLES, 0).uniform(0, 1), Draws(0, 0, SAMPLES, 1).uniform(0, 1)
    columns = torch.cat([first, second, (hash32(0, 0, SAMPLES, 0) / 2**32)[:, None]], dim=1).double()
    correlations = torch.corrcoef(columns.T) - torch.eye(5)
    assert correlations.abs().max() < 0.03  # four standard deviations


def test_uniform_draws_are_uniform_and_below_one() -> None:
    found = Draws(1, 2, SAMPLES).uniform(0)[:, 0]
    assert found.dtype == torch.float32
    assert float(found.max()) < 1
    assert stats.kstest(found.numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("count", [1, 3, 9, 1000])
def test_integers_are_in_range_and_even(count: int) -> None:
    found = Draws(1, 2, SAMPLES).integers(count, 0)[:, 0]
    assert int(found.min()) >= 0
    counts = torch.bincount(found, minlength=count)
    assert len(counts) == count
    assert count == 1 or stats.chisquare(counts.numpy()).pvalue > 1e-3


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (0.2, 0.2), (1.0, 2.0), (0.4, 3.0), (5.0, 0.7), (20.0, 20.0)])
def test_beta_draws_have_its_distribution(a: float, b: float) -> None:
    found = Draws(4, 0, SAMPLES).beta(a, b, 0)[:, 0].numpy()
    assert found.min() >= 0
    assert found.max() <= 1
    expected = (
        np.random.default_rng(0).beta(a, b, 200_000).astype(np.float32)
    )  # of which Beta(0.2, 0.2) rounds 2 % to 1
    assert stats.ks_2samp(found, expected).pvalue > 1e-3


@pytest.mark.parametrize(("a", "b"), [(0.2, 0.2), (20.0, 20.0), (50.0, 1000.0), (600.0, 600.0), (50.0, 5000.0)])
def test_beta_draws_have_its_tails(a: float, b: float) -> None:
    found = Draws(4, 0, torch.arange(200_000)).beta(a, b, 0)[:, 0].double()
    assert float(found.mean()) == pytest.approx(a / (a + b), rel=0.01)
    assert float(found.var()) == pytest.approx(stats.beta(a, b).var(), rel=0.02)


@pytest.mark.parametrize(("a", "b"), [(0.0, 1.0), (1.0, -2.0)])
def test_beta_wants_parameters_above_zero(a: float, b: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Draws(0, 0, SAMPLES).beta(a, b, 0)


@pytest.mark.parametrize(("step", "stream"), [(0, 256), (0, -1), (-1, 0)])
def test_streams_of_another_step_are_out_of_reach(step: int, stream: int) -> None:
    with pytest.raises(ValueError, match="streams 0 to 255"):
        Draws(0, 0, SAMPLES, step).bits(stream)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_dirichlet_weights_sum_to_one_and_are_alike(alpha: float) -> None:
    weights = Draws(4, 0, SAMPLES).dirichlet(alpha, 0, 1)
    assert torch.allclose(weights.sum(1), torch.ones(len(SAMPLES)))
    for column in weights.T.numpy():  # each weight alone is Beta(α, 2α)
        assert stats.kstest(column, stats.beta(alpha, 2 * alpha).cdf).pvalue > 1e-3
    expected = -1 / (3 * 3 * (3 * alpha + 1))  # covariance of two weights
    assert np.cov(weights.T.numpy())[0, 1] == pytest.approx(expected, rel=0.1)


def test_draws_of_a_part_are_the_parts_draws() -> None:
    draws = Draws(0, 0, SAMPLES[:50])
    chosen = torch.tensor([4, 7, 2])
    assert torch.equal(draws.of(chosen).bits(0), draws.bits(0)[chosen])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_draws_the_same() -> None:
    here, there = Draws(5, 6, SAMPLES), Draws(5, 6, SAMPLES.cuda())
    for draw in (
        lambda d: d.bits(0, 1), lambda d: d.uniform(0), lambda d: d.integers(9, 2),
        lambda d: d.beta(0.2, 0.2, 3), lambda d: d.dirichlet(1.0, 4, 5),
    ):  # fmt: skip
        assert torch.equal(draw(here), draw(there).cpu())
