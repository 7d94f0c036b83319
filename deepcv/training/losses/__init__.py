"""Losses as pure functions, and `Term`: the typed list of those that a network trains on.

They compute in float32 at least, also under autocast, and never make a GPU wait for the host: no value is read, no shape
depends on one. Each returns the mean over the batch, a scalar ().
"""

from deepcv.training.losses.classification import (
    balanced_weights,
    bce,
    cross_entropy,
    focal,
    one_vs_rest,
    sigmoid_focal,
)
from deepcv.training.losses.consistency import jensen_shannon
from deepcv.training.losses.metric import nt_xent, supcon, triplet
from deepcv.training.losses.regression import huber, l1, mse, smooth_l1
from deepcv.training.losses.terms import LOSSES, Kind, Loss, Option, Target, Term, check, total, values

__all__ = [
    "LOSSES",
    "Kind",
    "Loss",
    "Option",
    "Target",
    "Term",
    "balanced_weights",
    "bce",
    "check",
    "cross_entropy",
    "focal",
    "huber",
    "jensen_shannon",
    "l1",
    "mse",
    "nt_xent",
    "one_vs_rest",
    "sigmoid_focal",
    "smooth_l1",
    "supcon",
    "total",
    "triplet",
    "values",
]
