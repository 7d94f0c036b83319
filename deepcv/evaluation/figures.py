"""Figures as PNG files: how they begin and end, and the one that a training draws; equal numbers give equal bytes.

matplotlib is imported where it draws: training machines that only compute metrics may not have it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_schedules(curves: Mapping[str, Sequence[tuple[float, float]]], path: Path) -> None:
    """Draw how each hyperparameter changes, from points (epoch, value)."""
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = new_figure(4 * columns, 2.8 * rows)
    for place, (name, points) in enumerate(curves.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        epochs, values = zip(*points, strict=True)
        axes.plot(epochs, values, drawstyle="steps-post")
        axes.set_title(name, parse_math=False)
        axes.set_xlabel("epoch")
        if min(values) < max(values) / 2:
            axes.set_ylim(bottom=0)
    save(figure, path)


def new_figure(width_inch: float, height_inch: float) -> "Figure":
    """A figure to draw in."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width_inch, height_inch), dpi=100, layout="constrained")


def save(figure: "Figure", path: Path) -> None:
    """Write it as PNG, without the name of the program that did."""
    figure.savefig(path, format="png", metadata={"Software": None})
