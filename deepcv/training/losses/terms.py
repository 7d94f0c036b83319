"""What a network trains on: a list of terms, each a loss of one output of the network with a weight."""

import difflib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from deepcv.errors import DeepcvError
from deepcv.nn.spec.errors import closest
from deepcv.training.losses import classification, consistency, metric, regression

Kind = Literal["class", "soft", "multi_label", "number", "image"]
Value = float | str  # a bool and an int are a float to the type checker


@dataclass(frozen=True)
class Target:
    """A target of a batch: class numbers (b,), soft classes (b, k), multi-label (b, k), numbers (b, k) or images (b, c, h, w).

    `shape` is that of an output for one image that can be held against it, (k,) or (c, h, w).
    """

    kind: Kind
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Term:
    """One entry of `train.losses`: a loss of LOSSES, the output and the target that it compares, its weight and options."""

    loss: str
    output: str = "logits"
    target: str = "label"
    weight: float = 1.0
    options: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Option:
    """A keyword of a loss: its default, what it must be in words, and whether a value is that."""

    default: Value
    expected: str
    fits: Callable[[Value], bool]


@dataclass(frozen=True)
class Loss:
    """What a loss is called with.

    `targets` are the kinds that it learns from, none where it needs no target. `per_class`: the output has one value per
    class, label or number of the target, or per value of an image; else it is a vector of any length. `views`: the loss
    sees all views of an image and needs so many or more; 0: it sees the first. `divisible`: it is the mean of what it is
    for parts of the batch.
    """

    function: Callable[..., Tensor]
    options: Mapping[str, Option] = field(default_factory=dict)
    targets: tuple[Kind, ...] = ()
    per_class: bool = False
    views: int = 0
    divisible: bool = True


def _number(default: float, expected: str, fits: Callable[[float], bool]) -> Option:
    def number_fits(value: Value) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and fits(value)

    return Option(default, f"a number {expected}", number_fits)


def _positive(default: float) -> Option:
    return _number(default, "above 0", lambda value: value > 0)


def _share(default: float) -> Option:
    return _number(default, "from 0 to below 1", lambda value: 0 <= value < 1)


def _choice(*names: str) -> Option:
    return Option(names[0], f"one of {', '.join(names)}", lambda value: value in names)


_GAMMA = _number(2.0, "of at least 0", lambda value: value >= 0)
_CLASS_WEIGHTS = _choice("none", "balanced")
_SWITCH = Option(False, "true or false", lambda value: isinstance(value, bool))

LOSSES: Mapping[str, Loss] = {
    "cross_entropy": Loss(
        classification.cross_entropy,
        {"label_smoothing": _share(0.0), "class_weights": _CLASS_WEIGHTS},
        targets=("class", "soft"), per_class=True,
    ),
    "focal": Loss(
        classification.focal, {"gamma": _GAMMA, "class_weights": _CLASS_WEIGHTS},
        targets=("class", "soft"), per_class=True,
    ),
    "one_vs_rest": Loss(
        classification.one_vs_rest,
        {
            "label_smoothing": _share(0.0), "target_threshold": _share(0.0),
            "sum_classes": _SWITCH, "pos_weight": _positive(1.0),
        },
        targets=("class", "soft"), per_class=True,
    ),
    "bce": Loss(
        classification.bce, {"label_smoothing": _share(0.0), "pos_weight": _positive(1.0)},
        targets=("multi_label",), per_class=True,
    ),
    "sigmoid_focal": Loss(
        classification.sigmoid_focal,
        {"gamma": _GAMMA, "alpha": _number(0.25, "from 0 to 1", lambda value: 0 <= value <= 1)},
        targets=("multi_label",), per_class=True,
    ),
    "mse": Loss(regression.mse, targets=("number", "image"), per_class=True),
    "l1": Loss(regression.l1, targets=("number", "image"), per_class=True),
    "smooth_l1": Loss(regression.smooth_l1, {"beta": _positive(1.0)}, targets=("number", "image"), per_class=True),
    "huber": Loss(regression.huber, {"delta": _positive(1.0)}, targets=("number", "image"), per_class=True),
    "jensen_shannon": Loss(consistency.jensen_shannon, views=2),
    "triplet": Loss(
        metric.triplet,
        {
            "margin": _positive(0.2), "mining": _choice("hard", "semi_hard", "all"),
            "distance": _choice("euclidean", "cosine"),
        },
        targets=("class",), divisible=False,
    ),
    "nt_xent": Loss(metric.nt_xent, {"temperature": _positive(0.5)}, views=2, divisible=False),
    "supcon": Loss(metric.supcon, {"temperature": _positive(0.1)}, targets=("class",), views=1, divisible=False),
}  # fmt: skip


def check(
    terms: Sequence[Term], outputs: Mapping[str, tuple[int, ...]], targets: Mapping[str, Target], views: int = 1, *,
    left_out: Collection[str] = (),
) -> None:  # fmt: skip
    """Raise DeepcvError, a line per problem, where terms do not fit the network, the targets or the views of each image.

    `outputs` are those that the network computes, with the shape for one image. All but those `left_out` are trained on.
    """
    trained = {name: shape for name, shape in outputs.items() if name not in left_out}
    problems = [
        f"train.losses[{place}] ({term.loss} of {term.output!r}): {problem}"
        for place, term in enumerate(terms)
        for problem in _problems(term, trained, targets, views)
    ]
    for name in trained:
        learned = {t.target: None for t in terms if t.output == name and t.loss in LOSSES and LOSSES[t.loss].targets}
        if len(learned) > 1:
            problems.append(
                f"train.losses: the output {name!r} learns {' and '.join(learned)}; expected one target: give each an output "
                "of its own"
            )
    used = {term.output for term in terms}
    problems += [
        f"train.losses: no term uses the network's output {name!r}: give it a loss, or leave it out"
        for name in trained
        if name not in used
    ]
    if views > 1 and not any(term.loss in LOSSES and LOSSES[term.loss].views for term in terms):
        several = " or ".join(name for name, loss in LOSSES.items() if loss.views)
        problems.append(
            f"train.views.count is {views}, and no loss sees more than one view; expected 1, or {several} in train.losses"
        )
    if not terms:
        problems.insert(0, "train.losses: expected one term or more, got none")
    if problems:
        raise DeepcvError("\n".join(problems))


def _problems(
    term: Term, outputs: Mapping[str, tuple[int, ...]], targets: Mapping[str, Target], views: int
) -> Iterator[str]:
    if term.loss not in LOSSES:
        yield f"there is no such loss; {closest(term.loss, LOSSES)}"
        return
    loss = LOSSES[term.loss]
    if not math.isfinite(term.weight):
        yield f"expected a finite weight, got {term.weight}"
    for name, value in term.options.items():
        if name not in loss.options:
            yield f"there is no option {name!r}; {closest(name, loss.options)}"
        elif not loss.options[name].fits(value):
            yield f"{name} must be {loss.options[name].expected}; got {value!r}"
    if views < loss.views:
        yield f"it compares views of an image and needs {loss.views} or more of each; got {views}"
    target = targets.get(term.target) if loss.targets else None
    if loss.targets and target is None:
        near = difflib.get_close_matches(term.target, targets, n=1)
        meant = f"; the closest is {near[0]!r}" if near else ""
        yield f"there is no target {term.target!r}; there are {', '.join(targets) or 'none'}{meant}"
    elif target is not None and target.kind not in loss.targets:
        mixed = " (MixUp and CutMix make classes soft)" if target.kind == "soft" else ""
        yield f"it learns from targets of kind {' or '.join(loss.targets)}; {term.target!r} is {target.kind}{mixed}"
    shape = outputs.get(term.output)
    if shape is None:
        yield f"the network has no such output, or it was left out; there are {', '.join(outputs) or 'none'}"
    elif target is not None and target.kind == "image":
        if shape != target.shape:
            yield f"it needs the shape of the images, {target.shape}; the output has {shape}"
    elif len(shape) != 1:
        there = ", ".join(f"{name} {shape}" for name, shape in outputs.items())
        yield f"it takes a vector for each image, the output has shape {shape}; there are {there}"
    elif loss.per_class and target is not None and shape != target.shape:
        yield f"it needs {target.shape[0]} values for {term.target!r}, the output has {shape[0]}"


def values(
    terms: Sequence[Term], outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor], views: int = 1, *,
    class_weights: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The loss of each term, a scalar (), without its weight; the terms are those that `check` let pass.

    Outputs are (views·b, ...), view by view; targets are those of the b images. A loss that does not compare views sees the
    first. `class_weights` (classes,) are for terms that ask for `balanced` ones.
    """
    return tuple(_value(term, outputs[term.output], targets, views, class_weights) for term in terms)


def _value(
    term: Term, output: Tensor, targets: Mapping[str, Tensor], views: int, class_weights: Tensor | None
) -> Tensor:
    loss = LOSSES[term.loss]
    options: dict[str, Any] = {name: option.default for name, option in loss.options.items()} | dict(term.options)
    if "class_weights" in options:
        balanced = options["class_weights"] == "balanced"
        if balanced and class_weights is None:
            raise DeepcvError(f"{term.loss} of {term.output!r} wants balanced class weights and was given none")
        options["class_weights"] = class_weights if balanced else None
    if loss.views:
        options["views"] = views
    else:
        output = output.unflatten(0, (views, -1))[0]
    return loss.function(output, *([targets[term.target]] if loss.targets else []), **options)


def total(
    terms: Sequence[Term], outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor], views: int = 1, *,
    weights: Sequence[float] | None = None, class_weights: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The weighted sum of all terms' `values`, a scalar (). `weights` stand in for those of the terms, e.g. of a schedule."""
    losses = values(terms, outputs, targets, views, class_weights=class_weights)
    factors = [term.weight for term in terms] if weights is None else weights
    weighted = [factor * loss for factor, loss in zip(factors, losses, strict=True)]
    return sum(weighted[1:], start=weighted[0])
