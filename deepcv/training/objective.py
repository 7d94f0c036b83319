"""What a training minimises: the terms of `train.losses`, or cross entropy of the output `logits`."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from deepcv.data.loaders import Batch
from deepcv.training.config import TrainConfig
from deepcv.training.engine import Objective
from deepcv.training.hyperparameters import Settings
from deepcv.training.losses import LOSSES, Target, Term, balanced_weights, check, total

_MIXING = ("augmentation.mixup.probability", "augmentation.cutmix.probability")
NOT_TRAINED = "none"  # the loss of an output that nothing is learned from


def create_objective(
    config: TrainConfig, settings: Settings, outputs: Mapping[str, tuple[int, ...]], counts: Tensor
) -> Objective:
    """Return the loss of a batch, with the label smoothings and the weights that are set at the time.

    `outputs` are those of the network, with the shape for one image; `counts` (classes,) how many images of each class an epoch visits.
    Raises DeepcvError where terms, outputs and views do not fit.
    """
    trained = _trained(config)
    terms = list(trained.values())
    left_out = [term.output for term in config.losses if term.loss == NOT_TRAINED]
    mixes = config.augmentation.mixes or any(name in _MIXING for name in config.schedules)
    target = Target("soft" if mixes else "class", len(counts))
    check(terms, outputs, {"label": target}, config.views.count, left_out=left_out)
    if not config.losses:
        return lambda outputs, batch: nn.functional.cross_entropy(
            batch.first_view(outputs["logits"]), batch.targets, label_smoothing=settings.label_smoothing
        )
    class_weights = balanced_weights(counts)

    def objective(outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        weights = [settings.loss_weights[place] for place in trained]
        targets = {"label": batch.targets}
        now = (
            [_smoothed(term, settings.smoothings.get(place)) for place, term in trained.items()]
            if settings.smoothings
            else terms
        )
        return total(now, outputs, targets, batch.views, weights=weights, class_weights=class_weights)

    return objective


def trained_outputs(config: TrainConfig) -> frozenset[str]:
    """The outputs that a loss is computed of."""
    return frozenset(term.output for term in _trained(config).values())


def divisible(config: TrainConfig) -> bool:
    """Whether the loss of a batch is the mean of the losses of its parts: where no loss compares images."""
    return all(LOSSES[term.loss].divisible for term in config.losses if term.loss in LOSSES)


def _trained(config: TrainConfig) -> dict[int, Term]:
    """The terms that something is learned from, by their places in the list."""
    terms = config.losses or (Term("cross_entropy"),)
    return {place: term for place, term in enumerate(terms) if term.loss != NOT_TRAINED}


def _smoothed(term: Term, smoothing: float | None) -> Term:
    """The term with another label smoothing, where there is one."""
    return term if smoothing is None else replace(term, options={**term.options, "label_smoothing": smoothing})


def class_counts(labels: Tensor, classes: int) -> Tensor:
    """How many images each class has, int64 (classes,)."""
    return torch.bincount(labels, minlength=classes)
