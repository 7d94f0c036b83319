"""Augmentation on the device: whole batches of uint8 images, every image with its own random draws."""

from deepcv.data.augmentation.draws import DROPOUT, Draws, hash32, permutation
from deepcv.data.augmentation.gather import Augmentation, gather
from deepcv.data.augmentation.marks import Marks
from deepcv.data.augmentation.recipe import Recipe

__all__ = ["DROPOUT", "Augmentation", "Draws", "Marks", "Recipe", "gather", "hash32", "permutation"]
