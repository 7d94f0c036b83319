"""Losses of metric learning: embeddings (b, d) in which images of a class, or views of an image, lie near each other."""

from math import inf
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from deepcv.training.losses.precision import in_fp32

Mining = Literal["hard", "semi_hard", "all"]
Distance = Literal["euclidean", "cosine"]


@in_fp32
def triplet(
    embeddings: Tensor, labels: Tensor, *,
    margin: float = 0.2, mining: Mining = "hard", distance: Distance = "euclidean",
) -> Tensor:  # fmt: skip
    """Hinge loss max(0, d(anchor, positive) - d(anchor, negative) + margin) of mined triplets; labels are int64 (b,).

    `hard`: of each anchor the farthest positive and the nearest negative (Hermans et al. 2017, arXiv 1703.07737, equation 5).
    `all`: every triplet (equation 6). `semi_hard`: those whose negative is farther than the positive, but not by the margin
    (Schroff et al. 2015, arXiv 1503.03832, section 3.2). The mean is over triplets that violate the margin; 0 without any.
    Embeddings are normalised for the cosine distance, 1 - cosine, and used as they are for the Euclidean one.
    """
    distances = _distances(embeddings.double(), distance)  # small differences of distances decide which triplets count
    positive, negative = _pairs(labels)
    if mining == "hard":
        farthest = distances.masked_fill(~positive, -inf).amax(1)
        nearest = distances.masked_fill(~negative, inf).amin(1)
        hinges = functional.relu(farthest - nearest + margin)
        mean = hinges.sum() / (hinges > 0).sum().clamp(min=1)
    else:
        mean = _over_triplets(distances, positive, negative, margin, mining == "semi_hard")
    return mean.to(embeddings.dtype)


def _over_triplets(distances: Tensor, positive: Tensor, negative: Tensor, margin: float, semi_hard: bool) -> Tensor:
    """Mean hinge without the b³ triplets: of an anchor's sorted negatives those that violate the margin are one stretch.

    Its sum is a difference of prefix sums, for which `distances` (b, b) must be float64.
    """
    ordered = distances.masked_fill(~negative, inf).sort(1).values
    sums = functional.pad(ordered.masked_fill(ordered.isinf(), 0).cumsum(1), (1, 0))
    keys, limits = ordered.detach(), distances.detach()
    end = torch.searchsorted(keys, limits + margin)
    start = torch.searchsorted(keys, limits, right=True) if semi_hard else torch.zeros_like(end)
    counts = (end - start) * positive
    hinges = counts * (distances + margin) - (sums.gather(1, end) - sums.gather(1, start)) * positive
    return hinges.sum() / counts.sum().clamp(min=1)


@in_fp32
def nt_xent(embeddings: Tensor, *, views: int = 2, temperature: float = 0.5) -> Tensor:
    """SimCLR's loss for embeddings (views·b, d), view by view (Chen et al. 2020, arXiv 2002.05709, equation 1).

    With more than two views it is the mean over all pairs of views of an image: each against the negatives alone, without
    the image's other views in the denominator.
    """
    images = torch.arange(len(embeddings) // views, device=embeddings.device).repeat(views)
    positive, negative = _pairs(images)
    similarities = _cosines(embeddings) / temperature
    of_negatives = similarities.masked_fill(~negative, -inf).logsumexp(1, keepdim=True)
    losses = functional.softplus(of_negatives - similarities, threshold=80)  # log(e^positive + Σ e^negative) - positive
    return losses.masked_fill(~positive, 0).sum() / (len(embeddings) * (views - 1))


@in_fp32
def supcon(embeddings: Tensor, labels: Tensor, *, views: int = 1, temperature: float = 0.1) -> Tensor:
    """Supervised contrastive loss for embeddings (views·b, d), view by view, and labels, int64 (b,).

    L_out of Khosla et al. 2020, arXiv 2004.11362, equation 2; the mean over anchors that have a positive, 0 without any.
    """
    positive, _ = _pairs(labels.repeat(views))
    oneself = torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device)
    similarities = _cosines(embeddings) / temperature
    log_p = similarities.masked_fill(oneself, -inf).log_softmax(1)
    counts = positive.sum(1)
    of_anchors = log_p.masked_fill(~positive, 0).sum(1) / counts.clamp(min=1)
    return -of_anchors.sum() / (counts > 0).sum().clamp(min=1)


def _pairs(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which pairs (b, b) have one label, but are not an image with itself, and which have two."""
    same = labels[:, None] == labels
    return same ^ torch.eye(len(labels), dtype=torch.bool, device=labels.device), ~same


def _distances(embeddings: Tensor, distance: Distance) -> Tensor:
    """Distances (b, b), up to a constant: a hinge is of their differences.

    The Euclidean ones are by coordinates: by a product of matrices, near points lose half of their digits.
    """
    if distance == "cosine":
        return -_cosines(embeddings)
    return torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")


def _cosines(embeddings: Tensor) -> Tensor:
    unit = functional.normalize(embeddings, dim=1)
    return unit @ unit.T
