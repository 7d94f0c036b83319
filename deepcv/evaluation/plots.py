"""Pictures of an evaluation as PNG files; equal numbers give equal bytes.

matplotlib is imported where it draws: training machines that only compute metrics may not have it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcv.evaluation.figures import new_figure, save

_MAX_WRITTEN_CLASSES = 20  # above, numbers inside the confusion matrix would not be readable


def draw_confusion(matrix: NDArray[np.int64], class_names: tuple[str, ...], path: Path) -> None:
    """Draw the confusion matrix, rows normalised to the actual class."""
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    side = max(4.0, 0.5 * len(class_names) + 2)
    figure = new_figure(side, side)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(class_names)), class_names, rotation=90, parse_math=False)
    axes.set_yticks(range(len(class_names)), class_names, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("actual")
    if len(class_names) <= _MAX_WRITTEN_CLASSES:
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    save(figure, path)


def draw_curves(history: Sequence[Mapping[str, float]], path: Path, points: Sequence[Mapping[str, float]] = ()) -> None:
    """Draw loss and accuracy (of numbers R²) of train and val over the epochs, and the learning rate.

    `points` are those within epochs, of which the last one ends the last epoch: train loss and rate have them too.
    """
    figure = new_figure(12, 3.5)
    epochs = [record["epoch"] for record in history]
    score = "accuracy" if "val_accuracy" in history[0] else "r2"
    panels = (
        ("loss", ("train_loss", "val_loss")),
        (score, (f"train_{score}", f"val_{score}")),
        ("learning rate", ("lr",)),
    )
    for number, (title, keys) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, 3, number)
        for key in keys:
            axes.plot(epochs, [record[key] for record in history], marker=".", label=key)
            if key in ("train_loss", "lr") and len(points) > len(epochs):
                places = [point["step"] / points[-1]["step"] * epochs[-1] for point in points]
                axes.plot(places, [point[key] for point in points], linewidth=0.7, label=f"{key} within epochs")
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.legend()
    save(figure, path)


def draw_reliability(bins: Sequence[tuple[float, float, int]], path: Path) -> None:
    """Draw accuracy over confidence; on the diagonal a model is as sure as it is right."""
    figure = new_figure(4, 4)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], linestyle="--", color="grey")
    axes.plot([confidence for confidence, _, _ in bins], [accuracy for _, accuracy, _ in bins], marker="o")
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy")
    save(figure, path)


def draw_embedding(
    points: NDArray[np.float32],
    labels: NDArray[np.int64],
    wrong: NDArray[np.bool_],
    class_names: tuple[str, ...],
    path: Path,
) -> None:
    """Draw points (n, 2) in the colours of their classes; crosses are images that were taken for another class."""
    from matplotlib import colormaps

    figure = new_figure(7.5, 6)
    axes = figure.add_subplot()
    few = len(class_names) <= _MAX_WRITTEN_CLASSES
    colours = colormaps["tab10" if len(class_names) <= 10 else "tab20" if few else "gist_rainbow"]
    for number, name in enumerate(class_names):
        colour = colours(number if few else number / len(class_names))
        for chosen, marker, size in ((~wrong, "o", 12), (wrong, "x", 60)):
            x, y = points[chosen & (labels == number)].T
            axes.scatter(x, y, s=size, marker=marker, color=colour, label=name if marker == "o" else None)
    axes.set_xticks([])
    axes.set_yticks([])
    if few:
        legend = axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        for text in legend.get_texts():
            text.set_parse_math(False)
    save(figure, path)


def draw_precision_recall(curves: Mapping[str, tuple[NDArray[Any], NDArray[Any]]], path: Path) -> None:
    """Draw precision over recall of each label, from its (precision, recall)."""
    figure = new_figure(6.5, 5)
    axes = figure.add_subplot()
    few = len(curves) <= _MAX_WRITTEN_CLASSES
    for name, (precision, recall) in curves.items():
        axes.plot(recall, precision, drawstyle="steps-post", label=name if few else None)
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    if few and curves:
        for text in axes.legend(loc="center left", bbox_to_anchor=(1, 0.5)).get_texts():
            text.set_parse_math(False)
    save(figure, path)


def draw_scatter(answers: NDArray[Any], labels: NDArray[Any], names: Sequence[str], path: Path) -> None:
    """Draw what each image was taken for over what it is, a panel per number (n, k); on the diagonal both are equal."""
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = new_figure(4.5 * columns, 4 * rows)
    for place, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.scatter(labels[:, place], answers[:, place], s=8, alpha=0.5)
        axes.axline((float(labels[0, place]),) * 2, slope=1, linestyle="--", color="grey")
        axes.set_title(name, parse_math=False)
        axes.set_xlabel("actual")
        axes.set_ylabel("predicted")
    save(figure, path)


def draw_range(
    rates: Sequence[float],
    losses: Mapping[str, Sequence[float]],
    suggested: float,
    grids: Mapping[str, tuple[Mapping[float, float], float]],
    path: Path,
) -> None:
    """Draw losses of a range search over the learning rate and, a panel each, over the values of grids; suggestions are marked.

    The last of `losses` sets the height. A grid is its mean val loss by value, infinite where the run diverged, and the
    suggested value.
    """
    figure = new_figure(6 + 3.5 * len(grids), 4)
    panels = figure.subplots(1, 1 + len(grids), squeeze=False, width_ratios=[6, *(3.5 for _ in grids)])[0]
    for name, values in losses.items():
        panels[0].plot(rates, values, label=name, linewidth=1)
    panels[0].axvline(suggested, linestyle="--", color="grey", label=f"suggested: {suggested:.2g}")
    panels[0].set_xscale("log")
    last = list(losses.values())[-1]
    panels[0].set_ylim(top=max(last) + 0.2 * (max(last) - min(last)))
    panels[0].set_xlabel("learning rate")
    panels[0].set_ylabel("train loss")
    panels[0].legend()
    for axes, (name, (found, best)) in zip(panels[1:], grids.items(), strict=True):
        places = range(len(found))
        axes.plot(places, [loss if np.isfinite(loss) else np.nan for loss in found.values()], marker="o")
        axes.axvline(list(found).index(best), linestyle="--", color="grey", label=f"suggested: {best:g}")
        axes.set_xticks(places, [f"{value:g}" for value in found])
        axes.set_xlabel(name, parse_math=False)
        axes.set_ylabel("val loss")
        axes.legend()
    save(figure, path)
