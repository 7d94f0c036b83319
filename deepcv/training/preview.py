"""What a training will do, before it does: the courses of its hyperparameters, and a picture of a batch as the network sees it."""

from collections.abc import Sequence
from pathlib import Path

import torch

from deepcv.data.loaders import TrainLoader
from deepcv.data.shards import Dataset
from deepcv.training.hyperparameters import Scheduled

_POINTS = 1000  # of a curve, at most
_COLUMNS = 8


def curves(courses: Sequence[Scheduled], epochs: int, steps_per_epoch: int) -> dict[str, list[tuple[float, float]]]:
    """The course of each hyperparameter that changes as points (epoch, value); a plateau is as it begins."""
    steps = drawn_steps(epochs * steps_per_epoch)
    return {
        course.name: [
            (step / steps_per_epoch, course.at(step if course.each_step else step // steps_per_epoch * steps_per_epoch))
            for step in steps
        ]
        for course in courses
    }


def drawn_steps(total: int) -> list[int]:
    """Which steps a curve shows: the first and the last, and evenly between them."""
    count = min(total, _POINTS)
    return sorted({round(number * (total - 1) / max(1, count - 1)) for number in range(count)})


def draw_batch(loader: TrainLoader, shards: Dataset, path: Path, images: int = 32) -> None:
    """Draw images of the first epoch as they go into the network, as PNG: a row per image where it has several views."""
    import cv2  # a GPU machine may have torch and ignite alone
    import numpy as np

    from deepcv.images import grid

    views = loader.views.count
    columns = views if views > 1 else _COLUMNS
    order = loader.order()
    batch = loader.at(order, torch.arange(min(max(1, images // views), len(order)), device=order.device))
    pictures = batch.images_nchw.unflatten(0, (batch.views, -1)).transpose(0, 1).flatten(0, 1)
    captions = [_caption(target, shards) for target in batch.targets for _ in range(views)]
    sheet = grid(np.ascontiguousarray(pictures.permute(0, 2, 3, 1).cpu().numpy()), captions, columns=columns)
    cv2.imwrite(str(path), sheet[:, :, ::-1])


def _caption(target: torch.Tensor, shards: Dataset) -> tuple[str, ...]:
    """The class, or with MixUp or CutMix the two likeliest and their shares; the labels; the numbers."""
    task, classes = shards.task, shards.classes
    if task.kind == "regression":
        target = target.cpu() * torch.tensor(task.std) + torch.tensor(task.mean)
    if task.kind != "classification":
        return (task.in_words(classes, target.tolist()),)
    if target.ndim == 0:
        return (classes[int(target)],)
    shares, numbers = target.topk(min(2, len(target)))
    return tuple(f"{classes[int(n)]} {share:.2f}" for share, n in zip(shares, numbers, strict=True) if share > 0)
