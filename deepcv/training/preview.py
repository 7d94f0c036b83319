"""What a training will do, as pictures, before it does: the courses of its hyperparameters, and a batch as the network sees it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from deepcv.data.loaders import TrainLoader
from deepcv.training.hyperparameters import Scheduled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POINTS = 1000  # of a curve, at most
_COLUMNS = 8


def draw_schedules(courses: Sequence[Scheduled], epochs: int, steps_per_epoch: int, path: Path) -> None:
    """Draw the value of each hyperparameter that changes, over the epochs, as PNG; a plateau is drawn as it begins."""
    from matplotlib.figure import Figure  # a GPU machine may have torch and ignite alone

    columns = min(3, len(courses))
    rows = math.ceil(len(courses) / columns)
    figure = Figure(figsize=(4 * columns, 2.8 * rows), dpi=100, layout="constrained")
    steps = drawn_steps(epochs * steps_per_epoch)
    for place, course in enumerate(courses, start=1):
        axes: Axes = figure.add_subplot(rows, columns, place)
        values = [course.at(step if course.each_step else step // steps_per_epoch * steps_per_epoch) for step in steps]
        axes.plot([step / steps_per_epoch for step in steps], values, drawstyle="steps-post")
        axes.set_title(course.name, parse_math=False)
        axes.set_xlabel("epoch")
        if min(values) < max(values) / 2:
            axes.set_ylim(bottom=0)
    figure.savefig(path, format="png", metadata={"Software": None})


def drawn_steps(total: int) -> list[int]:
    """Which steps a curve shows: the first and the last, and evenly between them."""
    count = min(total, _POINTS)
    return sorted({round(number * (total - 1) / max(1, count - 1)) for number in range(count)})


def draw_batch(loader: TrainLoader, classes: Sequence[str], path: Path, images: int = 32) -> None:
    """Draw images of the first epoch as they go into the network, as PNG: a row per image where it has several views."""
    import cv2  # a GPU machine may have torch and ignite alone
    import numpy as np

    from deepcv.images import grid

    views = loader.views.count
    columns = views if views > 1 else _COLUMNS
    order = loader.order()
    batch = loader.at(order, torch.arange(min(max(1, images // views), len(order)), device=order.device))
    pictures = batch.images_nchw.unflatten(0, (batch.views, -1)).transpose(0, 1).flatten(0, 1)
    captions = [_caption(target, classes) for target in batch.targets for _ in range(views)]
    sheet = grid(np.ascontiguousarray(pictures.permute(0, 2, 3, 1).cpu().numpy()), captions, columns=columns)
    cv2.imwrite(str(path), sheet[:, :, ::-1])


def _caption(target: torch.Tensor, classes: Sequence[str]) -> tuple[str, ...]:
    """The class, or with MixUp or CutMix the two likeliest and their shares."""
    if target.ndim == 0:
        return (classes[int(target)],)
    shares, numbers = target.topk(min(2, len(target)))
    return tuple(f"{classes[int(n)]} {share:.2f}" for share, n in zip(shares, numbers, strict=True) if share > 0)
