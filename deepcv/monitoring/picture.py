"""drift.png: one small histogram per statistic, both sides in each, class shares, and the model's view. Equal input, equal bytes."""

from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from deepcv.data.drift import Comparison, Finding, FloatArray, Side
from deepcv.files import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_REFERENCE, _NEW, _DRIFT, _QUIET = "#4477aa", "#ee7733", "#b2182b", "#555555"  # told apart by the colour-blind too
_COLUMNS, _BINS, _MOST_CLASSES, _MOST_POINTS = 4, 40, 20, 1000
_STEPS = 4  # between an axis' labels: "0.0125" beside "0.0150" is as much as fits


def draw(path: Path, title: str, comparison: Comparison, reference: Side, new: Side) -> None:
    """Write the picture."""
    drawn = figure_of(title, comparison, reference, new)
    with atomic(path) as aside:
        drawn.savefig(aside, format="png", metadata={"Software": None})


def figure_of(title: str, comparison: Comparison, reference: Side, new: Side) -> "Figure":
    """Draw the picture."""
    from matplotlib.figure import Figure

    findings = comparison.findings
    rows = max(1, -(-len(findings) // _COLUMNS))
    figure = Figure(figsize=(13, 2.7 * rows + 1.1), dpi=110, layout="constrained")
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axes in panels[len(findings) :]:
        axes.set_axis_off()
    for finding, axes in zip(findings, panels, strict=False):
        if finding.name == "class shares":
            _class_shares(axes, reference, new)
        elif finding.name == "embedding":
            _embedding(axes, reference, new)
        else:
            _histograms(axes, reference.statistics[finding.name], new.statistics[finding.name])
        _frame(axes, finding)
    figure.suptitle(fill(title, 130), x=0.01, ha="left", fontsize=12, fontweight="bold", parse_math=False)
    figure.legend(
        handles=[_swatch(_REFERENCE, f"reference, {reference.images} images"), _swatch(_NEW, f"new, {new.images} images")],
        loc="outside lower left", ncols=2, frameon=False, fontsize=10,
    )  # fmt: skip
    return figure


def _histograms(axes: "Axes", reference: FloatArray, new: FloatArray) -> None:
    pooled = np.concatenate([reference, new])
    low, high = np.quantile(pooled, [0.005, 0.995])
    if low == high:
        low, high = pooled.min(), pooled.max()
    edges = np.linspace(low, high, _BINS + 1)
    for values, colour in ((reference, _REFERENCE), (new, _NEW)):
        counts, _ = np.histogram(values, edges)
        axes.stairs(100 * counts / len(values), edges, fill=True, color=colour, alpha=0.3)
        axes.stairs(100 * counts / len(values), edges, color=colour, linewidth=1.3)
    axes.set_xlim(low, high)
    axes.locator_params(axis="x", nbins=_STEPS)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("% of images", fontsize=8)


def _class_shares(axes: "Axes", reference: Side, new: Side) -> None:
    """Shares of the classes; of many, those that changed most."""
    names = sorted(reference.classes.keys() | new.classes.keys())
    shares = {
        name: [100 * side.classes.get(name, 0) / sum(side.classes.values()) for side in (reference, new)]
        for name in names
    }
    shown = sorted(names, key=lambda name: -abs(shares[name][0] - shares[name][1]))[:_MOST_CLASSES]
    shown = [name for name in names if name in set(shown)]
    places = np.arange(len(shown))
    for offset, side, colour in ((-0.2, 0, _REFERENCE), (0.2, 1, _NEW)):
        axes.bar(places + offset, [shares[name][side] for name in shown], 0.38, color=colour, alpha=0.75)
    labels = [name if len(name) <= 14 else f"{name[:13]}…" for name in shown]
    axes.set_xticks(places, labels, rotation=60, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_ylabel("% of images", fontsize=8)
    if len(shown) < len(names):
        axes.set_xlabel(f"the {len(shown)} of {len(names)} classes that changed most", fontsize=8)


def _embedding(axes: "Axes", reference: Side, new: Side) -> None:
    """The two directions in which the features vary most."""
    if reference.features is None or new.features is None:
        return
    pooled = np.concatenate([reference.features, new.features]).astype(np.float64)
    pooled -= pooled.mean(axis=0)
    values, directions = np.linalg.eigh(pooled.T @ pooled)
    two = directions[:, np.argsort(values)[::-1][:2]]
    two = two * np.sign(two[np.abs(two).argmax(axis=0), np.arange(two.shape[1])])  # a direction has no sign of its own
    points = pooled @ two
    split = len(reference.features)
    for part, colour in ((points[:split], _REFERENCE), (points[split:], _NEW)):
        shown = part[:_MOST_POINTS]
        axes.scatter(shown[:, 0], shown[:, -1], s=5, color=colour, alpha=0.35, linewidths=0)
    axes.set_xlabel("first principal components of the features", fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])


def _frame(axes: "Axes", finding: Finding) -> None:
    p = f"p {finding.p_holm:.2g}" if finding.p_holm >= 1e-4 else "p < 0.0001"
    axes.set_title(
        f"{finding.name}   {finding.measure} {finding.effect:.2f}, {p}", loc="left", fontsize=9.5,
        color=_DRIFT if finding.drifted else _QUIET, fontweight="bold" if finding.drifted else "normal",
    )  # fmt: skip
    axes.tick_params(labelsize=8, colors=_QUIET)
    for name, spine in axes.spines.items():
        spine.set_visible(name in {"left", "bottom"})
        spine.set_color("#bbbbbb")


def _swatch(colour: str, label: str) -> "object":
    from matplotlib.patches import Patch

    return Patch(color=colour, alpha=0.75, label=label)
