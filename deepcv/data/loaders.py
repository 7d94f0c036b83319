"""Batches from images that lie on the training device as uint8."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from deepcv.data.augmentation import Augmentation, gather, permutation
from deepcv.data.shards import Split


class Batch(NamedTuple):
    """Images `(b, channels, height, width)`, uint8, channels last in memory, and their targets, int64 class numbers `(b,)`."""

    images_nchw: Tensor
    targets: Tensor


class TrainLoader:
    """Shuffled, augmented batches of one epoch; set `epoch` before each pass. A last partial batch is left out."""

    def __init__(
        self, split: Split, *, batch_size: int, augmentation: Augmentation, seed: int, device: torch.device
    ) -> None:
        self.images_nhwc = torch.from_numpy(np.array(split.images_nhwc)).to(device)
        self.targets = torch.from_numpy(np.array(split.labels)).to(device)
        self.batch_size = min(batch_size, len(self.targets))
        self.augmentation = augmentation
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.targets) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        order = permutation(self.seed, self.epoch, len(self.targets), self.targets.device)
        for number in range(len(self)):
            index = order[number * self.batch_size : (number + 1) * self.batch_size]
            images_nhwc = gather(self.images_nhwc, index, self.augmentation, self.seed, self.epoch)
            yield Batch(images_nhwc.permute(0, 3, 1, 2), self.targets[index])
