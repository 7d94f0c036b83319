"""The search over values of the train section."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import ClassVar, Self

from pydantic import Field, model_validator

from deepcv.params.base import MisfitError, Section, closest, value_problem
from deepcv.params.losses import OPTIONS, LossParams
from deepcv.params.train import Scalar, TrainParams

KINDS: Mapping[str, tuple[str, ...]] = {
    "choice": (),
    "uniform": ("lo", "hi"),
    "loguniform": ("lo", "hi"),
    "quniform": ("lo", "hi", "step"),
    "randint": ("lo", "hi"),
}
# Keys of the train section that are mappings, of which a search draws entries: `train.network_parameters.width`.
_MAPPINGS = ("network_parameters", "network_choices", "optimizer_options", "lr_scales")
_IDLE = (
    "archive",
    "checkpoint_minutes",
    "keep_best",
    "log_every",
)  # of what a training keeps and tells, and a trial does not
_OF_LOSSES = sorted({"weight"}.union(*OPTIONS.values()))


class SearchParams(Section):
    """Section `search`; `space` is {key of the train section: {kind: values}}, the kinds as NNI names them."""

    section: ClassVar[str] = "search"

    trials: int = Field(8, ge=1, le=100_000, description="how many trials to run")
    concurrency: int = Field(1, ge=1, le=1024, description="how many trials at a time")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the tuner")
    space: dict[str, dict[str, list[Scalar]]] = Field(
        default_factory=dict, description="what is searched: {train.lr: {loguniform: [1.0e-3, 1.0e-1]}}"
    )

    @model_validator(mode="after")
    def _space_fits_train(self) -> Self:
        problems = [(("space", key), text) for key, entry in self.space.items() for text in _problems(key, entry)]
        if problems:
            raise MisfitError(*problems)
        return self

    def typed(self, key: str, value: Scalar) -> Scalar:
        """Give a value that the tuner drew for `key` the type that params.yaml takes: tuners return 16.0 for 16."""
        ((kind, values),) = self.space[key].items()
        whole = kind in ("quniform", "randint") and all(type(bound) is int for bound in values)
        return int(value) if whole and isinstance(value, float) and value.is_integer() else value


def misfits(space: Collection[str], train: TrainParams) -> Iterator[tuple[str, str]]:
    """Say which keys of `space` change nothing: those of no entry of `train.losses` or option of its loss, and what is replaced."""
    if train.losses and "train.label_smoothing" in space:
        yield "train.label_smoothing", "changes nothing beside train.losses; theirs is train.losses.0.label_smoothing"
    if "lr" in train.schedules and "train.warmup" in space:
        yield "train.warmup", "changes nothing beside train.schedules.lr, which has a warmup of its own"
    for key in space:
        place, name = _of_loss(key.removeprefix("train.")) or (0, "")
        if name and place >= len(train.losses):
            yield (
                key,
                f"train.losses has {len(train.losses)} entries; the first is losses.0"
                if train.losses
                else "train.losses is empty",
            )
        elif name and name not in (known := ["weight", *OPTIONS[train.losses[place].loss]]):
            yield key, f"{train.losses[place].loss} has no {name}; it has {', '.join(known)}"


def _of_loss(key: str) -> tuple[int, str] | None:
    """The place and the name of `losses.1.weight`."""
    field, _, rest = key.partition(".")
    place, _, name = rest.partition(".")
    return (int(place), name) if field == "losses" and re.fullmatch(r"\d{1,3}", place) and name in _OF_LOSSES else None


def _near(field: str, key: str) -> list[str]:
    """What may be meant by a key that there is not."""
    if field in _MAPPINGS:
        return [f"{field}.NAME"]
    if field == "losses":
        return [f"losses.0.{name}" for name in closest(key.rpartition(".")[2], _OF_LOSSES)] or ["losses.0.weight"]
    return closest(field or key, TrainParams.model_fields, TrainParams.also_called)


def _problems(key: str, entry: Mapping[str, list[Scalar]]) -> Iterator[str]:
    section, _, rest = key.partition(".")
    field, _, name = rest.partition(".")
    loss = _of_loss(rest)
    entries = loss is not None if field == "losses" else bool(name) == (field in _MAPPINGS)
    if section != "train" or field not in TrainParams.model_fields or not entries:
        valid = " or ".join(f"'train.{name}'" for name in _near(field, key))
        hint = f"the closest is {valid}" if valid else f"there are {', '.join(TrainParams.model_fields)}"
        yield f"not a key of the train section; {hint}"
        return
    if field in _IDLE:
        yield "changes nothing in a trial, which keeps no checkpoints and has no points within epochs; remove it"
        return
    if len(entry) != 1 or next(iter(entry)) not in KINDS:
        near = [kind for word in entry for kind in closest(word, KINDS)]
        hint = f"; the closest is '{near[0]}'" if near else ""
        yield f"must have one of {', '.join(KINDS)}, got {', '.join(entry) or 'nothing'}{hint}"
        return
    ((kind, values),) = entry.items()
    names = KINDS[kind]
    if kind == "choice":
        if not values or len({(type(value), value) for value in values}) < len(values):
            yield f"choice takes one or more different values, got {values}"
    elif len(values) != len(names) or not all(type(value) in (int, float) for value in values):
        yield f"{kind} takes the numbers [{', '.join(names)}], got {values}"
        return
    else:
        yield from _range_problems(kind, [value for value in values if not isinstance(value, str)])
    if field == "network_choices" and not all(isinstance(value, str) for value in values):
        yield f"takes names of candidates, such as {{choice: [small, wide]}}, got {kind}: {values}"
        return
    for value in ends(kind, values):
        text = (
            value_problem(LossParams, loss[1], value)
            if loss
            else value_problem(TrainParams, field, {name: value} if name else value)
        )
        if text is not None:
            fractions = kind.endswith("uniform") and isinstance(value, float) and "whole number" in text
            more = "; draw whole numbers with randint, choice or quniform of three whole numbers" if fractions else ""
            yield f"{kind} {values} leaves the range of {key}: {text}{more}"
            return


def _range_problems(kind: str, values: list[int | float]) -> Iterator[str]:
    low, high = values[:2]
    if not low < high:
        yield f"{kind} needs lo < hi, got {low} and {high}"
    if kind == "loguniform" and low <= 0:
        yield f"loguniform needs lo > 0, got {low}"
    if kind == "quniform" and not 0 < values[2] <= high - low:
        yield f"quniform needs 0 < step <= hi - lo, got {values[2]}"
    if kind == "randint" and not all(type(value) is int for value in values):
        yield f"randint needs whole numbers, got {low} and {high}"


def ends(kind: str, values: list[Scalar]) -> list[Scalar]:
    """Return the values of an entry that must be valid for its key: the ends, as the tuner would draw them."""
    if kind == "choice":
        return values
    low, high, *step = (value for value in values if not isinstance(value, str))
    if kind == "randint":
        return [low, high - 1]
    whole = kind == "quniform" and all(type(value) is int for value in (low, high, *step))
    return [low, high] if whole else [float(low), float(high)]
