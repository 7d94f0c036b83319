"""Losses of numbers: predictions (b, ...) against as many targets, of which (b,) fit predictions (b, 1)."""

from torch import Tensor
from torch.nn import functional

from deepcv.training.losses.precision import in_fp32


@in_fp32
def mse(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error."""
    return functional.mse_loss(predictions, _like(predictions, targets))


@in_fp32
def l1(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean absolute error."""
    return functional.l1_loss(predictions, _like(predictions, targets))


@in_fp32
def smooth_l1(predictions: Tensor, targets: Tensor, *, beta: float = 1.0) -> Tensor:
    """Squared below `beta`, absolute above, with slope 1 there (Girshick 2015, arXiv 1504.08083, equation 3)."""
    return functional.smooth_l1_loss(predictions, _like(predictions, targets), beta=beta)


@in_fp32
def huber(predictions: Tensor, targets: Tensor, *, delta: float = 1.0) -> Tensor:
    """Half the square below `delta`, absolute above, with slope `delta` there (Huber 1964)."""
    return functional.huber_loss(predictions, _like(predictions, targets), delta=delta)


def _like(predictions: Tensor, targets: Tensor) -> Tensor:
    """Without it (b, 1) and (b,) would become (b, b)."""
    return targets.reshape(predictions.shape).to(predictions.dtype)
