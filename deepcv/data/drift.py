"""Do two collections of images come from one distribution? Two-sample tests, each with an effect size beside its p-value.

A p-value says whether there is a difference, not whether it matters: with enough images any trifle is significant. So a
finding counts as drift only where p, after Holm's correction over all tests, is below alpha AND its effect reaches a threshold.
Every effect lies in 0–1 (0: the same) and is estimated with both sides weighted equally, whatever their sizes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, log, sqrt

import numpy as np
from numpy.typing import NDArray

from deepcv.data.samples import DataError

FloatArray = NDArray[np.float64]

# A tenth of the images would have to change to make the two distributions equal; for two bell curves, a shift by 0.25 sigma.
MIN_KS = 0.1
# Cohen's "small" for shares of classes (w = 0.1); one of ten classes missing gives 0.23.
MIN_CRAMERS_V = 0.1
# Small by nature: of the changes in docs/results.md, the one of 0.01 cost the model no accuracy, that of 0.04 five points.
MIN_MMD = 0.03

_MIN_EXPECTED = 5  # Cochran's rule: below, the chi-square distribution is no approximation of the statistic's
_PERMUTATIONS_AT_ONCE = 512


@dataclass(frozen=True)
class Finding:
    """The outcome of one test; `before` and `after` say in words what REFERENCE and NEW look like."""

    name: str
    measure: str  # of the effect: KS, V or MMD
    effect: float
    threshold: float
    p: float
    before: str = ""
    after: str = ""
    p_holm: float = 1.0
    drifted: bool = False


@dataclass(frozen=True)
class Side:
    """One collection as the tests see it: `statistics` (n,) by name, `classes` counts of labels, `features` (n, f).

    `classes` is empty where images have no labels; `features` is None where no model looked at them.
    """

    statistics: Mapping[str, FloatArray]
    classes: Mapping[str, int] = field(default_factory=dict)
    features: NDArray[np.float32] | None = None

    @property
    def images(self) -> int:
        """How many images were measured."""
        return len(next(iter(self.statistics.values())))


@dataclass(frozen=True)
class Comparison:
    """All findings, what was skipped and why, and the smallest KS distance that so many images can show."""

    findings: tuple[Finding, ...]
    skipped: Mapping[str, str]
    alpha: float
    detectable: float

    @property
    def drifted(self) -> tuple[Finding, ...]:
        """The findings that count, the strongest first."""
        return tuple(sorted((f for f in self.findings if f.drifted), key=lambda f: -f.effect / f.threshold))


def compare(reference: Side, new: Side, *, alpha: float, seed: int) -> Comparison:
    """Run every test that the two sides allow; the outcome depends on their values and the seed alone."""
    findings: list[Finding] = []
    skipped: dict[str, str] = {}
    for name, values in reference.statistics.items():
        if np.ptp(np.concatenate([values, new.statistics[name]])) == 0:
            skipped[name] = f"the same everywhere ({values[0]:.4g})"
        else:
            findings.append(compare_values(name, values, new.statistics[name]))
    # Holm multiplies the smallest p by the number of tests: a permutation test must be able to come below that.
    permutations = ceil(4 * (len(findings) + 2) / alpha)
    if reason := _no_class_test(reference.classes, new.classes):
        skipped["class shares"] = reason
    else:
        findings.append(compare_classes(reference.classes, new.classes, permutations, seed))
    if reference.features is None or new.features is None:
        skipped["embedding"] = "no model"
    elif min(reference.images, new.images) < 2:
        skipped["embedding"] = "one image has no distribution"
    else:
        findings.append(compare_features(reference.features, new.features, permutations, seed))
    smallest = detectable_distance(reference.images, new.images, alpha / max(1, len(findings)))
    return Comparison(judge(findings, alpha), skipped, alpha, smallest)


def compare_values(name: str, reference: FloatArray, new: FloatArray) -> Finding:
    """Kolmogorov-Smirnov test; the effect is its D, the largest distance between the two cumulative distributions."""
    exact = max(len(reference), len(new)) <= 500  # above, the asymptotic p-value is as good and much faster
    from scipy import stats  # slow to import, and often not needed

    result = stats.ks_2samp(reference, new, method="exact" if exact else "asymp")
    before, after = (f"{np.median(values):.4g}" for values in (reference, new))
    return Finding(name, "KS", float(result.statistic), MIN_KS, float(result.pvalue), before, after)


def compare_classes(reference: Mapping[str, int], new: Mapping[str, int], permutations: int, seed: int) -> Finding:
    """Chi-square test of homogeneity; the effect is Cramér's V that these shares have between sides of equal size.

    Where a cell is expected below 5 (Cochran 1954), p comes from random permutations of the labels instead.
    """
    names = sorted(reference.keys() | new.keys())
    table = np.array([[side.get(name, 0) for name in names] for side in (reference, new)])
    before, after = table / table.sum(axis=1, keepdims=True)
    effect = sqrt(float(((before - after) ** 2 / (before + after)).sum()) / 2)
    from scipy import stats

    result = stats.chi2_contingency(table, correction=False)
    p = float(result.pvalue)
    if result.expected_freq.min() < _MIN_EXPECTED:
        p = _permuted_chi_square(table, result.expected_freq, float(result.statistic), permutations, seed)
    most = int(np.abs(before - after).argmax())
    return Finding(
        "class shares", "V", effect, MIN_CRAMERS_V, p, f"{names[most]}: {before[most]:.1%}", f"{after[most]:.1%}"
    )


def compare_features(
    reference_nf: NDArray[np.float32], new_nf: NDArray[np.float32], permutations: int, seed: int
) -> Finding:
    """Kernel two-sample test (Gretton et al. 2012): unbiased MMD², RBF kernel, median heuristic, permutation p-value.

    The effect is sqrt(MMD² / (k(x,x') + k(y,y'))), the distance between the two mean embeddings relative to their length:
    0.63 for two equally large groups that are far apart, because the median distance is then that between them.
    Takes 4·(n+m)² bytes three times over, and 2·permutations·(n+m)² operations. Raises DataError for values that are no numbers.
    """
    if not (np.isfinite(reference_nf).all() and np.isfinite(new_nf).all()):
        raise DataError("the model's features hold NaN or infinity; give another one, or --model none")
    kernel = rbf_kernel(np.concatenate([reference_nf, new_nf]))
    first = np.zeros((1, len(kernel)), np.float32)
    first[0, : len(reference_nf)] = 1
    observed, effect = (float(values[0]) for values in _mmd(kernel, first))
    reached = 0
    rng = np.random.default_rng(seed)
    for start in range(0, permutations, _PERMUTATIONS_AT_ONCE):
        masks = rng.permuted(np.repeat(first, min(_PERMUTATIONS_AT_ONCE, permutations - start), axis=0), axis=1)
        # Equal splits give equal values but for float32's rounding.
        reached += int((_mmd(kernel, masks)[0] >= observed - 1e-6).sum())
    return Finding("embedding", "MMD", effect, MIN_MMD, (1 + reached) / (1 + permutations))


def rbf_kernel(features_nf: NDArray[np.float32]) -> NDArray[np.float32]:
    """exp(-d²/2s²) with s the median distance, (n, n), zeros on the diagonal: an image is not compared with itself."""
    centred = (features_nf - features_nf.mean(axis=0)).astype(np.float32)  # small numbers, small rounding
    norms = (centred**2).sum(axis=1)
    squares = np.maximum(norms[:, None] + norms - 2 * centred @ centred.T, 0)
    others = squares[np.tri(len(squares), k=-1, dtype=bool)]
    median = float(np.median(others)) or float(others.mean()) or 1.0
    kernel: NDArray[np.float32] = np.exp(squares / np.float32(-2 * median))
    np.fill_diagonal(kernel, 0)
    return kernel


def judge(findings: Sequence[Finding], alpha: float) -> tuple[Finding, ...]:
    """Correct the p-values for their number and say which findings count as drift."""
    corrected = holm([finding.p for finding in findings])
    return tuple(
        replace(finding, p_holm=p, drifted=p < alpha and finding.effect >= finding.threshold)
        for finding, p in zip(findings, corrected, strict=True)
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values after Holm 1979: below alpha, they hold the chance of any false alarm at alpha, however dependent."""
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values, np.float64)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(scaled))
    return [float(p) for p in adjusted]


def detectable_distance(reference: int, new: int, alpha: float) -> float:
    """Smallest KS distance that these numbers of images can show at `alpha` (asymptotic); above 1, none."""
    return sqrt(-log(alpha / 2) * (reference + new) / (2 * reference * new))


def _no_class_test(reference: Mapping[str, int], new: Mapping[str, int]) -> str:
    for name, classes in (("REFERENCE", reference), ("NEW", new)):
        if not classes:
            return f"{name} has no labels"
    if not reference.keys() & new.keys():
        return f"no class has the same name on both sides ({min(reference)}, … against {min(new)}, …)"
    return "one class" if len(reference.keys() | new.keys()) == 1 else ""


def _permuted_chi_square(
    table: NDArray[np.int64], expected: FloatArray, observed: float, permutations: int, seed: int
) -> float:
    rng = np.random.default_rng(seed)
    drawn = rng.multivariate_hypergeometric(table.sum(axis=0), int(table[1].sum()), size=permutations)
    # Both rows of a drawn table are as far from what is expected: their sum is that of the columns.
    values = ((drawn - expected[1]) ** 2 * (1 / expected).sum(axis=0)).sum(axis=1)
    return float((1 + (values >= observed * (1 - 1e-9)).sum()) / (1 + permutations))


def _mmd(kernel: NDArray[np.float32], masks: NDArray[np.float32]) -> tuple[FloatArray, FloatArray]:
    """Unbiased MMD² and the relative distance for each row of `masks` (1: first side, 0: second side)."""
    first = float(masks[0].sum())
    second = len(kernel) - first
    rows = kernel.sum(axis=1, dtype=np.float64)
    within_first = np.einsum("pn,pn->p", masks @ kernel, masks, dtype=np.float64)
    all_of_first = masks @ rows
    across = (all_of_first - within_first) / (first * second)
    within_second = (rows.sum() - 2 * all_of_first + within_first) / (second * (second - 1))
    within_first /= first * (first - 1)
    squared = within_first + within_second - 2 * across
    length = np.maximum(within_first + within_second, np.finfo(np.float64).tiny)
    return squared, np.sqrt(np.clip(squared / length, 0, 1))
