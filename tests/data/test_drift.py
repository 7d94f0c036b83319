from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.metrics.pairwise import rbf_kernel

from deepcv.data import drift
from deepcv.data.drift import Side, compare, compare_classes, compare_features, compare_values, holm
from deepcv.data.samples import DataError

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def normal(seed: int, count: int, features: int = 3, shift: float = 0.0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).normal(size=(count, features)) + shift).astype(np.float32)


def side(seed: int, count: int, shift: float = 0.0, classes: str = "ab") -> Side:
    features = normal(seed, count, shift=shift)
    shares = Counter(classes[row % len(classes)] for row in range(count)) if classes else {}
    return Side({"brightness": features[:, 0].astype(float), "aspect": np.ones(count)}, shares, features)


@given(P_VALUES)
def test_holm_is_monotone_and_never_below_p(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    assert [adjusted[i] for i in np.argsort(p_values, kind="stable")] == sorted(adjusted)
    assert min(adjusted) == min(1, min(p_values) * len(p_values))


@given(P_VALUES, st.randoms())
def test_holm_does_not_depend_on_the_order(p_values: list[float], random: object) -> None:
    order = list(range(len(p_values)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert holm([p_values[i] for i in order]) == [holm(p_values)[i] for i in order]


def test_holm_of_the_textbook() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_values() -> None:
    pixels = load_digits().images
    dark, light = (np.sort(images.mean(axis=(1, 2))) for images in (pixels[:600], pixels[600:1200] + 1))
    found = compare_values("brightness", dark, light)
    assert found.effect == pytest.approx(stats.ks_2samp(dark, light).statistic)
    assert found.p < 1e-6
    assert found == compare_values("brightness", dark[::-1], np.random.default_rng(0).permutation(light))
    assert compare_values("brightness", dark, dark).p == 1
    assert compare_values("brightness", dark, dark + 100).effect == 1


def test_one_image_a_side_proves_nothing() -> None:
    outcome = compare(side(0, 1), side(1, 1, shift=9), alpha=0.01, seed=0)
    assert not outcome.drifted
    assert outcome.detectable > 1
    assert "embedding" in outcome.skipped


def test_class_shares() -> None:
    found = compare_classes({"a": 100, "b": 100, "c": 100}, {"a": 150, "b": 150}, 999, 0)
    assert (found.before, found.after) == ("c: 33.3%", "0.0%")
    assert found.p < 1e-9
    table = [[100, 100, 100], [150, 150, 0]]  # sides of equal size: Cramér's V itself
    assert found.effect == pytest.approx(stats.contingency.association(table, method="cramer"))
    few = compare_classes({"a": 100_000, "b": 100_000, "c": 100_000}, {"a": 15, "b": 15}, 999, 0)
    assert few.effect == pytest.approx(found.effect)  # does not shrink where one side is small


def test_few_labels_are_permuted() -> None:
    found = compare_classes({"a": 6, "b": 2}, {"a": 1, "b": 5}, 20_000, 0)
    exact = stats.fisher_exact([[6, 2], [1, 5]]).pvalue  # the same order of tables in this case
    assert found.p == pytest.approx(exact, abs=0.01)
    assert found == compare_classes({"b": 2, "a": 6}, {"b": 5, "a": 1}, 20_000, 0)


def test_permuted_class_shares_are_uniform_under_the_null() -> None:
    rng = np.random.default_rng(0)
    p_values = []
    for seed in range(200):
        labels = rng.integers(0, 4, 24)
        sides = [{str(k): int(v) for k, v in Counter(part.tolist()).items()} for part in (labels[:12], labels[12:])]
        p_values.append(compare_classes(sides[0], sides[1], 199, seed).p)
    assert np.mean(np.array(p_values) <= 0.05) <= 0.09
    assert 0.4 < np.mean(p_values) < 0.65  # with ties, a little above one half


def test_mmd_is_that_of_its_definition() -> None:
    x, y = normal(0, 20), normal(1, 30, shift=0.5)
    pooled = np.concatenate([x, y])
    distances = np.sqrt(((pooled[:, None] - pooled) ** 2).sum(axis=2))[np.tri(50, k=-1, dtype=bool)]
    gamma = 1 / (2 * float(np.median(distances)) ** 2)
    within_x, within_y = (
        (rbf_kernel(part, gamma=gamma).sum() - len(part)) / (len(part) * (len(part) - 1)) for part in (x, y)
    )
    squared = within_x + within_y - 2 * rbf_kernel(x, y, gamma=gamma).mean()
    assert compare_features(x, y, 9, 0).effect == pytest.approx((squared / (within_x + within_y)) ** 0.5, rel=1e-4)


def test_mmd_is_symmetric_and_knows_no_order() -> None:
    x, y = normal(0, 40), normal(1, 60, shift=0.6)
    forth, back = compare_features(x, y, 199, 0), compare_features(y, x, 199, 0)
    shuffled = compare_features(x[::-1].copy(), np.random.default_rng(5).permutation(y), 199, 0)
    assert forth.effect == pytest.approx(back.effect, rel=1e-5)
    assert forth.effect == pytest.approx(shuffled.effect, rel=1e-5)
    assert forth.p == back.p == shuffled.p == 1 / 200
    assert forth == compare_features(x, y, 199, 0)


def test_mmd_sees_what_means_do_not() -> None:
    x, y = normal(0, 300), 2 * normal(1, 300)
    found = compare_features(x, y, 999, 0)
    assert found.p == 1 / 1000
    assert found.effect >= drift.MIN_MMD


def test_permuted_p_values_are_uniform_under_the_null() -> None:
    p_values = [compare_features(normal(2 * s, 15), normal(2 * s + 1, 25), 99, s).p for s in range(300)]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert np.mean(np.array(p_values) <= 0.05) <= 0.08


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_features_that_are_all_the_same(value: float) -> None:
    same = np.full((5, 4), value, np.float32)
    found = compare_features(same, same[:3], 99, 0)
    assert (found.effect, found.p) == (0, 1)


def test_features_that_have_nothing_in_common() -> None:
    found = compare_features(normal(0, 30), normal(1, 30, shift=100), 999, 0)
    assert 0.62 < found.effect < 0.66  # 0.63: across is as far as the median distance
    assert found.p == 1 / 1000


def test_features_that_are_no_numbers() -> None:
    broken = normal(0, 5)
    broken[0, 0] = np.nan
    with pytest.raises(DataError, match="NaN"):
        compare_features(broken, normal(1, 5), 9, 0)


def test_the_same_side_twice_is_no_drift() -> None:
    outcome = compare(side(0, 300), side(0, 300), alpha=0.01, seed=0)
    assert not outcome.drifted
    assert [f.name for f in outcome.findings] == ["brightness", "class shares", "embedding"]
    assert all(f.p_holm == 1 and f.effect == 0 for f in outcome.findings)
    assert set(outcome.skipped) == {"aspect"}


def test_what_has_drifted_is_named_the_strongest_first() -> None:
    outcome = compare(side(0, 800), side(1, 800, shift=0.5, classes="aaab"), alpha=0.01, seed=0)
    assert {f.name for f in outcome.drifted} == {"brightness", "class shares", "embedding"}
    strengths = [f.effect / f.threshold for f in outcome.drifted]
    assert strengths == sorted(strengths, reverse=True)


def test_a_trifle_is_significant_and_no_drift() -> None:
    rng = np.random.default_rng(0)
    sides = [Side({"brightness": rng.normal(shift, 1, 50_000)}) for shift in (0, 0.1)]
    outcome = compare(sides[0], sides[1], alpha=0.01, seed=0)
    assert outcome.findings[0].p_holm < 1e-9
    assert not outcome.drifted


@pytest.mark.parametrize(
    ("reference", "new", "reason"),
    [
        ("", "ab", "REFERENCE has no labels"),
        ("ab", "", "NEW has no labels"),
        ("ab", "xy", "no class"),
        ("a", "a", "one"),
    ],
)
def test_class_shares_are_skipped_with_the_reason(reference: str, new: str, reason: str) -> None:
    outcome = compare(side(0, 50, classes=reference), side(1, 50, classes=new), alpha=0.01, seed=0)
    assert reason in outcome.skipped["class shares"]


def test_false_alarms_stay_at_alpha() -> None:
    images = load_digits().images
    values = {"mean": images.mean(axis=(1, 2)), "deviation": images.std(axis=(1, 2)), "corner": images[:, 0, 2]}
    alarms = 0
    for trial in range(200):
        order = np.random.default_rng(trial).permutation(len(images))
        halves = [Side({name: v[part] for name, v in values.items()}) for part in (order[:800], order[800:])]
        alarms += any(f.p_holm < 0.05 for f in compare(halves[0], halves[1], alpha=0.05, seed=0).findings)
    assert alarms / 200 <= 0.08


def test_the_detectable_distance_is_just_significant() -> None:
    distance = drift.detectable_distance(2000, 1000, 0.001)
    assert stats.kstwo.sf(distance, round(2000 * 1000 / 3000)) == pytest.approx(0.001, rel=0.1)
