"""Random crops of packed images: which boxes, and their pixels, decoded on every core."""

import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from deepcv.data.augmentation import Draws
from deepcv.data.loaders import Crops
from deepcv.data.packed import PackedImages
from deepcv.images import ImageRecipe, prepare_crop

LEAST_AREA, RATIO = 0.08, (3 / 4, 4 / 3)  # torchvision's RandomResizedCrop
_TRIES = 10
_STEP = 2**20  # far above the steps of an augmentation policy, so that no draw is shared


def random_crops(
    images: PackedImages, stored_recipe: Mapping[str, Any], *, seed: int, least_area: float = LEAST_AREA
) -> Crops:
    """Return what `TrainLoader` takes: a random crop of each image, brought to the recipe's size, then through its later steps.

    A crop depends on seed, epoch and the sample alone. Raises ShardError where an image is damaged.
    """
    recipe = ImageRecipe(**stored_recipe)
    cv2.setNumThreads(1)  # images are what runs in parallel
    sizes = torch.from_numpy(np.stack([images.index["height"], images.index["width"]], 1).astype(np.int64))
    threads = len(os.sched_getaffinity(0))
    pool = ThreadPoolExecutor(threads)  # OpenCV decodes without Python's lock

    def take(samples: Tensor, epoch: int) -> Tensor:
        numbers, draws = samples % len(sizes), Draws(seed, epoch, samples, _STEP)
        boxes = [tuple(box) for box in crop_boxes(sizes[numbers], draws, least_area).tolist()]
        chosen = numbers.tolist()
        batch = np.empty((len(numbers), recipe.height, recipe.width, recipe.channels), np.uint8)

        def fill(thread: int) -> None:
            for place in range(thread, len(batch), threads):
                batch[place] = prepare_crop(images[chosen[place]], boxes[place], recipe)

        for _ in pool.map(fill, range(threads)):
            pass  # raises what one of them raised
        return torch.from_numpy(batch)

    return Crops(take, images.labels, (recipe.height, recipe.width), images.further)


def crop_boxes(sizes: Tensor, draws: Draws, least_area: float = LEAST_AREA) -> Tensor:
    """Boxes (top, left, height, width) in images of `sizes` (height, width): int64 (b, 4), from int64 (b, 2).

    The distribution is that of torchvision's RandomResizedCrop: up to ten tries of an area (`least_area` to 1 of the
    image's) and a logarithm of the ratio (3/4 to 4/3), each uniform; where none fits, the largest central box of an
    allowed ratio.
    """
    image_height, image_width = sizes[:, :1], sizes[:, 1:]
    share, ratio = draws.uniform(*range(2 * _TRIES)).double().chunk(2, dim=1)
    area = image_height * image_width * (least_area + share * (1 - least_area))
    low, high = (math.log(bound) for bound in RATIO)
    ratio = torch.exp(low + ratio * (high - low))
    width, height = torch.sqrt(area * ratio).round().long(), torch.sqrt(area / ratio).round().long()
    fits = (width > 0) & (width <= image_width) & (height > 0) & (height <= image_height)
    first = fits.long().argmax(dim=1, keepdim=True)
    whole = (image_width / image_height).double().clamp(*RATIO)
    widest = torch.minimum(image_width, (image_height * whole).round().long()).clamp(min=1)
    highest = torch.minimum(image_height, (image_width / whole).round().long()).clamp(min=1)
    any_fits = fits.any(dim=1, keepdim=True)
    width = torch.where(any_fits, width.gather(1, first), widest)
    height = torch.where(any_fits, height.gather(1, first), highest)
    free = torch.cat([image_height - height, image_width - width], dim=1)
    place = (draws.bits(2 * _TRIES, 2 * _TRIES + 1) * (free + 1)) >> 32
    centre = torch.div(free, 2, rounding_mode="floor")
    return torch.cat([torch.where(any_fits, place, centre), height, width], dim=1)
