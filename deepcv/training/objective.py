"""What a training minimises: the terms of `train.losses`, or the task's own loss of the output `logits`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from deepcv.data.loaders import Batch
from deepcv.errors import DeepcvError
from deepcv.task import CLASSIFICATION, FurtherTarget, Task
from deepcv.training.config import TrainConfig
from deepcv.training.engine import Objective
from deepcv.training.hyperparameters import Settings
from deepcv.training.losses import LOSSES, Kind, Target, Term, balanced_weights, bce, check, mse, total

_MIXING = ("augmentation.mixup.probability", "augmentation.cutmix.probability")
_OWN_LOSS = {"classification": "cross_entropy", "multi_label": "bce", "regression": "mse"}
NOT_TRAINED = "none"  # the loss of an output that nothing is learned from
_NO_SIZES: Mapping[str, int] = {}


@dataclass(frozen=True)
class Images:
    """The images of a batch as a target: the shape of one, (c, h, w), and what the network does to uint8 ones first."""

    shape: tuple[int, ...]
    normalise: Callable[[Tensor], Tensor]


def create_objective(
    config: TrainConfig, settings: Settings, outputs: Mapping[str, tuple[int, ...]],
    task: Task, size: int, counts: Tensor | None, images: Images | None = None, further: Mapping[str, int] = _NO_SIZES,
) -> Objective:  # fmt: skip
    """Return the loss of a batch, with the options and the weights that are set at the time.

    `outputs`, `size` and `further` are those of `check_losses`; `counts` (classes,) says how many images of each class an epoch
    visits; `images` are for terms that learn them. Without `train.losses` it is cross entropy of classes, binary cross entropy of
    labels, the squared error of numbers. Raises DeepcvError as `check_losses` does.
    """
    check_losses(config, outputs, task, size, further, images.shape if images else None)
    trained = _trained(config, task)
    terms = list(trained.values())
    if not config.losses and task.kind == "classification":
        return lambda outputs, batch: nn.functional.cross_entropy(
            batch.first_view(outputs["logits"]), batch.targets, label_smoothing=settings.label_smoothing
        )
    if not config.losses and task.kind == "multi_label":
        return lambda outputs, batch: bce(
            batch.first_view(outputs["logits"]), batch.targets, label_smoothing=settings.label_smoothing
        )
    if not config.losses:
        return lambda outputs, batch: mse(batch.first_view(outputs["logits"]), batch.targets)
    shown = images if any(term.target == "images" for term in terms) else None
    class_weights = None if counts is None else balanced_weights(counts)

    def objective(outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        weights = [settings.loss_weights[place] for place in trained]
        targets = {"label": batch.targets, **batch.further}
        if shown:
            targets["images"] = shown.normalise(batch.first_view(batch.images_nchw))
        now = (
            [
                replace(term, options={**term.options, **settings.loss_options.get(place, {})})
                for place, term in trained.items()
            ]
            if settings.loss_options
            else terms
        )
        return total(now, outputs, targets, batch.views, weights=weights, class_weights=class_weights)

    return objective


def check_losses(
    config: TrainConfig, outputs: Mapping[str, tuple[int, ...]], task: Task, size: int, further: Mapping[str, int],
    images: tuple[int, ...] | None,
) -> None:  # fmt: skip
    """Raise DeepcvError where terms, outputs, views and targets do not fit.

    `outputs` are those of the network, with the shape for one image; `size` is how many classes, labels or numbers there are,
    `further` how many labels or numbers each further target has, by its name; `images` the shape (c, h, w) of one that terms may
    learn.
    """
    terms = list(_trained(config, task).values())
    left_out = [term.output for term in config.losses if term.loss == NOT_TRAINED]
    mixes = config.augmentation.mixes or any(name in _MIXING for name in config.schedules)
    kinds: dict[str, Kind] = {"classification": "soft" if mixes else "class", "multi_label": "multi_label"}
    there = {"label": Target(kinds.get(task.kind, "number"), (size,))}
    there |= {"images": Target("image", images)} if images else {}
    there |= {name: Target(kinds.get(Task(name).kind, "number"), (count,)) for name, count in further.items()}
    check(terms, outputs, there, config.views.count, left_out=left_out)
    compared = [term.output for term in terms if term.loss == "jensen_shannon"]
    if compared and task.kind != "classification":
        raise DeepcvError(f"train.losses: jensen_shannon compares class probabilities; preprocess.target is {task.of}")
    for term in terms:
        if term.output in compared and term.target in further and LOSSES[term.loss].targets:
            raise DeepcvError(
                f"train.losses: jensen_shannon compares class probabilities; the output {term.output!r} learns {term.target}"
            )


def trained_outputs(config: TrainConfig) -> frozenset[str]:
    """The outputs that a loss is computed of."""
    return frozenset(term.output for term in _trained(config, CLASSIFICATION).values())


def further_outputs(config: TrainConfig, further: Sequence[FurtherTarget]) -> dict[str, FurtherTarget]:
    """The outputs that learn a further target, and which. Raises DeepcvError where `logits` would, which answers the main one."""
    there = {target.of: target for target in further}
    found = {
        term.output: there[term.target]
        for term in config.losses
        if term.target in there and term.loss in LOSSES and LOSSES[term.loss].targets
    }
    if "logits" in found:
        raise DeepcvError(
            f"train.losses: logits answers preprocess.target and cannot learn {found['logits'].of}; expected another output "
            "of the network"
        )
    return found


def divisible(config: TrainConfig) -> bool:
    """Whether the loss of a batch is the mean of the losses of its parts: where no loss compares images."""
    return all(LOSSES[term.loss].divisible for term in config.losses if term.loss in LOSSES)


def _trained(config: TrainConfig, task: Task) -> dict[int, Term]:
    """The terms that something is learned from, by their places in the list."""
    terms = config.losses or (Term(_OWN_LOSS[task.kind]),)
    return {place: term for place, term in enumerate(terms) if term.loss != NOT_TRAINED}


def class_counts(labels: Tensor, classes: int) -> Tensor:
    """How many images each class has, int64 (classes,)."""
    return torch.bincount(labels, minlength=classes)
