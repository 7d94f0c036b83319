"""Which images an epoch visits when rare classes are to be seen more often."""

import torch
from torch import Tensor

from deepcv.data.augmentation.draws import BALANCE, hash32


def visits(counts: Tensor, balance: float) -> Tensor:
    """How often an epoch visits each class, int64 (classes,), of which `counts` (classes,) have that many images.

    The share of a class is proportional to its share of the images to the power of 1 − `balance`: as it is at 0, that of every other
    class at 1. They add up to the number of images; each is at most 1 off.
    """
    weights = torch.where(counts > 0, counts.double() ** (1 - balance), 0.0)
    ends = (weights.cumsum(0) / weights.sum() * counts.sum()).round().long()
    return ends.diff(prepend=ends.new_zeros(1))


def balanced(labels: Tensor, balance: float, seed: int, epoch: int) -> Tensor:
    """The samples of an epoch, int64 (n,), class by class, from labels (n,) on the CPU.

    The images of a class stand in an endless queue, all of them in a random order and again in the same. Each epoch takes as many
    as it visits from where the last one ended, so that in any epochs one after the other two images of a class are visited equally
    often, or once more. A sample is an image's number, to which n is added for each time that this epoch has visited it before.
    """
    images = torch.arange(len(labels))
    queues = torch.argsort((labels << 32) + hash32(seed, 0, images, BALANCE), stable=True)
    counts = torch.bincount(labels)
    taken = visits(counts, balance)
    of_class = torch.repeat_interleave(torch.arange(len(counts)), taken)
    number = images - (taken.cumsum(0) - taken)[of_class]  # of the visit, within its class
    length, first = counts[of_class], (counts.cumsum(0) - counts)[of_class]
    image = queues[first + (epoch * taken[of_class] + number) % length]
    return image + len(labels) * torch.div(number, length, rounding_mode="floor")
