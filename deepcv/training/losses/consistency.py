"""Losses that want the same answer for several views of an image."""

import math

from torch import Tensor
from torch.nn import functional

from deepcv.training.losses.precision import in_fp32


@in_fp32
def jensen_shannon(logits: Tensor, *, views: int) -> Tensor:
    """Jensen-Shannon divergence of the views' class probabilities, in nats, 0 to log(views); logits (views·b, classes).

    Rows are view by view: all images' first views, then all second ones. It is the second term of AugMix's loss, which has
    three views, the first of them clean, and a weight of 12 (Hendrycks et al. 2020, arXiv 1912.02781, equation 1).
    """
    log_p = functional.log_softmax(logits, 1).unflatten(0, (views, -1))
    log_mixture = log_p.logsumexp(0, keepdim=True) - math.log(views)  # in logarithms nothing underflows
    divergence = functional.kl_div(log_mixture.expand_as(log_p), log_p, reduction="none", log_target=True)
    return divergence.sum(2).mean()
