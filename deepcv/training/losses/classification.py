"""Losses of logits (b, classes) against the class of each image, or against any number of labels per image."""

import torch
from torch import Tensor
from torch.nn import functional

from deepcv.training.losses.precision import in_fp32


@in_fp32
def cross_entropy(
    logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy in nats, torch's own: targets are class numbers, int64 (b,), or probabilities, float (b, classes).

    With `class_weights` (classes,) it is the plain mean over the images of what torch has for each, so that parts of a batch add
    up to the whole: let the weights average one over the data, as `balanced_weights` do. (torch divides by the weights in the
    batch.) Smoothing: Szegedy et al. 2016, arXiv 1512.00567, section 7.
    """
    wanted, weights = _as(logits, targets), _weights(logits, class_weights)
    if weights is None:
        return functional.cross_entropy(logits, wanted, label_smoothing=label_smoothing)
    return functional.cross_entropy(logits, wanted, weights, label_smoothing=label_smoothing, reduction="none").mean()


@in_fp32
def focal(logits: Tensor, targets: Tensor, *, gamma: float = 2.0, class_weights: Tensor | None = None) -> Tensor:
    """Softmax focal loss: each -log p is scaled by (1 - p)^gamma (Lin et al. 2017, arXiv 1708.02002, equation 5).

    Targets, weights and their mean are those of `cross_entropy`, which `gamma` 0 gives; `class_weights` are the paper's alpha.
    """
    log_p = functional.log_softmax(logits, 1)
    scaled = _power(-log_p.expm1(), gamma) * log_p
    weights = _weights(logits, class_weights)
    if targets.ndim == 1:
        return functional.nll_loss(scaled, targets, weights, reduction="none").mean()
    products = scaled * _as(logits, targets)
    return -(products if weights is None else products * weights).sum(1).mean()


@in_fp32
def bce(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0, pos_weight: float | Tensor = 1.0) -> Tensor:
    """Binary cross-entropy of every label, in nats, for targets 0–1, float (b, labels); the mean over images and labels.

    Smoothing moves targets towards one half. `pos_weight`, a number or (labels,), scales what positives cost.
    """
    smooth = targets.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
    return _bce(logits, smooth, pos_weight)


@in_fp32
def one_vs_rest(
    logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0, target_threshold: float = 0.0,
    sum_classes: bool = False, pos_weight: float | Tensor = 1.0,
) -> Tensor:  # fmt: skip
    """Binary cross-entropy of every class, for targets as `cross_entropy` takes them (Wightman et al. 2021, arXiv 2110.00476).

    Smoothing moves targets towards 1 / classes, before those above `target_threshold` become 1 and others 0 (0: they stay).
    `sum_classes` adds the classes up instead of their mean. It is timm's BinaryCrossEntropy of class numbers.
    """
    classes = logits.shape[1]
    one_hot = targets if targets.ndim == 2 else torch.zeros_like(logits).scatter(1, targets[:, None], 1.0)
    wanted = one_hot.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / classes
    if target_threshold:
        wanted = (wanted > target_threshold).to(logits.dtype)
    return _bce(logits, wanted, pos_weight) * (classes if sum_classes else 1)


@in_fp32
def sigmoid_focal(logits: Tensor, targets: Tensor, *, gamma: float = 2.0, alpha: float = 0.25) -> Tensor:
    """Focal loss of every label, for targets 0–1, float (b, labels); the mean over images and labels.

    `alpha` weighs positives and 1 - `alpha` negatives (Lin et al. 2017, arXiv 1708.02002, equation 5).
    """
    targets = targets.to(logits.dtype)
    p = logits.sigmoid()
    wrong = p * (1 - targets) + (1 - p) * targets
    weights = alpha * targets + (1 - alpha) * (1 - targets)
    losses = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (weights * _power(wrong, gamma) * losses).mean()


def balanced_weights(counts: Tensor) -> Tensor:
    """Weights (classes,), float32, inverse to how many images a class has, counts (classes,); one on average over all images.

    A class without images weighs 0.
    """
    shares = counts.float() / counts.sum()
    return torch.where(counts > 0, 1 / (shares * (counts > 0).sum()), 0.0)


def _bce(logits: Tensor, targets: Tensor, pos_weight: float | Tensor) -> Tensor:
    if not isinstance(pos_weight, Tensor):
        pos_weight = logits.new_full((), pos_weight)  # filled on the device, where torch.tensor would copy
    return functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=pos_weight.to(logits.dtype))


def _power(wrong: Tensor, gamma: float) -> Tensor:
    """`wrong`, 0–1, to the power of gamma; at 0 itself a gamma below 1 would have an infinite slope."""
    return wrong.clamp(min=torch.finfo(wrong.dtype).tiny) ** gamma


def _as(logits: Tensor, targets: Tensor) -> Tensor:
    """Class numbers as they are, probabilities in the arithmetic of the logits."""
    return targets if targets.ndim == 1 else targets.to(logits.dtype)


def _weights(logits: Tensor, weights: Tensor | None) -> Tensor | None:
    return None if weights is None else weights.to(logits.dtype)
