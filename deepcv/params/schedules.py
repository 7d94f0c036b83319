"""How a hyperparameter changes over a training: one entry of `train.schedules`."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from deepcv.params.augmentation import (
    MAGNITUDES,
    AugmentationParams,
    AugMixParams,
    MixParams,
    OperationParams,
    RandAugmentParams,
)
from deepcv.params.base import Group, MisfitError, value_problem
from deepcv.params.losses import OPTIONS, LossParams

KINDS: Mapping[str, tuple[str, ...]] = {
    "one_cycle": ("warmup", "peak", "start", "end", "phases", "shape"),
    "cosine": ("start", "end", "warmup", "until"),
    "linear": ("start", "end", "warmup", "until"),
    "exponential": ("start", "end", "warmup", "until"),
    "step": ("start", "end", "warmup", "until"),
    "piecewise": ("points", "shape"),
    "plateau": ("factor", "patience", "metric", "least", "floor"),
}
STEPWISE = ("lr", "momentum", "weight_decay", "label_smoothing", "clip_norm", "accumulate", "shift", "cutout")
_LOSS = re.compile(r"losses\.(\d{1,3})\.([a-z_]+)")
_WITHOUT_VALUE = ("dropout", "drop_path", "blur")
_OWN_MOMENTUM = 0.9  # of adamw, sgd and muon, where params say `auto`; a library's optimizer has its own
_SHARES = ("momentum", "label_smoothing", "dropout", "drop_path")
# Whose keys they are: `losses.0.weight`, `augmentation.mixup.alpha`.
_OWNERS: Mapping[str, type[Group]] = {
    "losses": LossParams,
    "operations": OperationParams,
    "mixup": MixParams,
    "cutmix": MixParams,
    "augmix": AugMixParams,
    "randaugment": RandAugmentParams,
    "augmentation": AugmentationParams,  # last: what none of its groups has
}
_Value = Annotated[float, Field(ge=-1e6, le=1e6)]  # below 0 are magnitudes of operations alone


class ScheduleParams(Group):
    """A kind, and what belongs to that kind; a value that is not given is the hyperparameter's own in params."""

    also_called: ClassVar[Mapping[str, str]] = {"pct_start": "warmup", "max_lr": "peak", "gamma": "factor"}

    kind: Literal["one_cycle", "cosine", "linear", "exponential", "step", "piecewise", "plateau"] = Field(
        description="course of the values"
    )
    start: _Value | None = Field(None, description="first value; of one_cycle else a 25th of the peak")
    peak: _Value | None = Field(None, description="highest value of one_cycle")
    end: _Value | None = Field(None, description="last value; else 0, of one_cycle a 10,000th of the first")
    warmup: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="share of the steps in which the value rises"
    )
    until: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="share of the steps after which the value stays"
    )
    phases: Literal[2, 3] | None = Field(
        None, description="of one_cycle; 3: down as fast as up, then on to the last value"
    )
    shape: Literal["cosine", "linear", "exponential", "step"] | None = Field(None, description="between the points")
    points: Annotated[list[list[float]], Field(min_length=1, max_length=1000)] | None = Field(
        None, description="[share of the steps, value], ascending", examples=[[[0, 0.1], [1, 0]]]
    )
    factor: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="what a plateau multiplies the value with"
    )
    patience: Annotated[int, Field(ge=0, le=100_000)] | None = Field(
        None, description="epochs without progress before that"
    )
    metric: Literal["val_loss", "val_accuracy", "train_loss"] | None = Field(None, description="what must get better")
    least: _Value | None = Field(None, description="by how much")
    floor: _Value | None = Field(None, description="lowest value")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for key in self.model_dump(exclude_none=True).keys() - {"kind", *KINDS[self.kind]}:
            raise MisfitError(((key,), f"{self.kind} has no {key}; it has {', '.join(KINDS[self.kind])}"))
        if self.kind == "piecewise" or self.points is not None:
            _check_points(self.points, self.shape)
        if self.kind == "one_cycle" and self.shape not in (None, "cosine", "linear"):
            raise MisfitError((("shape",), f"expected cosine or linear, got {self.shape}"))
        if self.kind == "exponential" and not (self.end and self.start != 0 and not self.warmup):
            raise MisfitError(
                (("end",), "an exponential schedule never reaches 0; expected start and end > 0, and no warmup")
            )
        if (self.warmup or 0) >= (self.until or 1):
            raise MisfitError((("until",), f"expected more than warmup ({self.warmup:g}), got {self.until:g}"))
        return self


def _check_points(points: Sequence[Sequence[float]] | None, shape: str | None) -> None:
    if points is None:
        raise MisfitError((("points",), "missing; expected a list of [share of the steps, value]"))
    for number, point in enumerate(points):
        if len(point) != 2 or not 0 <= point[0] <= 1:
            raise MisfitError((("points", number), f"expected [share from 0 to 1, value], got {point}"))
        if shape == "exponential" and not point[1]:
            raise MisfitError((("points", number), "an exponential schedule never reaches 0"))
    for number, (one, other) in enumerate(pairwise(points), start=1):
        if one[0] >= other[0]:
            raise MisfitError((("points", number), f"expected a share above {one[0]:g}, got {other[0]:g}"))


def problem(name: str, schedule: ScheduleParams, section: Mapping[str, Any]) -> str | None:
    """Say why a section has no hyperparameter of this name that the schedule could change, None where it has."""
    if name in _WITHOUT_VALUE:
        first = {"one_cycle": "peak", "piecewise": "points"}.get(schedule.kind, "start")
        if schedule.kind == "plateau":
            return "a plateau needs a value to begin with, and the network file has this one's"
        if getattr(schedule, first) is None:
            return f"expected `{first}`: the network file has this hyperparameter's value"
        return _range_problem(name, schedule, 0.0, section)
    losses = section["losses"]
    if (found := _LOSS.fullmatch(name)) and int(found[1]) < len(losses):
        return _of_loss(name, schedule, losses[int(found[1])], section)
    if name == "momentum" and section["momentum"] == "auto":
        return _range_problem(name, schedule, _OWN_MOMENTUM, section)
    value: Any = section if name in STEPWISE or name.startswith("augmentation.") else None
    for part in name.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        else:
            there = isinstance(value, Sequence) and part.isdecimal() and int(part) < len(value)
            value = value[int(part)] if there else None
    if not _is_number(value):
        of_losses = [f"losses.{place}.{key}" for place, loss in enumerate(losses) for key in _numbers_of(loss)]
        return (
            f"no such hyperparameter; there are {', '.join([*STEPWISE, *_WITHOUT_VALUE, *of_losses])}, and the numbers of "
            "train.augmentation, such as augmentation.randaugment.strength or augmentation.operations.0.magnitude.1"
        )
    if ".depth." in name or name.endswith(".chains"):
        return (
            "depth and chains are counts that bound each other, so they stay; schedule how strong the operations are or how "
            "likely: augmentation.augmix.severity, augmentation.operations.0.probability"
        )
    return _range_problem(name, schedule, value, section)


def _of_loss(name: str, schedule: ScheduleParams, loss: Mapping[str, Any], section: Mapping[str, Any]) -> str | None:
    """The same of a number of one entry of `losses`."""
    key, known = name.rpartition(".")[2], _numbers_of(loss)
    if key not in known:
        return f"{loss['loss']} has no {key} that is a number; it has {', '.join(known)}"
    return _range_problem(name, schedule, known[key], section)


def _numbers_of(loss: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an entry of `losses`, by name."""
    values = {"weight": loss["weight"], **OPTIONS[loss["loss"]]}
    values |= {key: loss[key] for key in values if loss[key] is not None}
    return {key: float(value) for key, value in values.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _range_problem(name: str, schedule: ScheduleParams, value: float, section: Mapping[str, Any]) -> str | None:
    """Say which value a hyperparameter that has `value` cannot have, and the schedule reaches; None where there is none."""
    reached = _reached(schedule, value)
    if schedule.kind == "exponential" and not reached[0]:
        return "an exponential schedule never leaves 0; give it a start above 0"
    if min(reached) < 0 and (schedule.kind == "plateau" or "exponential" in (schedule.kind, schedule.shape)):
        return f"this schedule is for values above 0, got {min(reached):g}; take linear, cosine, step or piecewise"
    texts = (_value_problem(name, one, section, whole=isinstance(value, int)) for one in reached)
    return next((text for text in texts if text is not None), None)


def _reached(schedule: ScheduleParams, value: float) -> list[float]:
    """The values between which a hyperparameter of `value` stays; but for a `warmup`, which comes from 0."""
    if schedule.kind == "piecewise":
        return [at for _, at in schedule.points or ()]
    if schedule.kind == "plateau":
        return [value, value if schedule.floor is None else schedule.floor]
    if schedule.kind == "one_cycle":
        peak = value if schedule.peak is None else schedule.peak
        start = peak / 25 if schedule.start is None else schedule.start
        return [start, peak, start / 1e4 if schedule.end is None else schedule.end]
    return [value if schedule.start is None else schedule.start, schedule.end or 0.0]


def _value_problem(name: str, value: float, section: Mapping[str, Any], *, whole: bool) -> str | None:
    parts = name.split(".")
    owner = next((cls for group, cls in _OWNERS.items() if group in parts), None)
    if name in _SHARES:
        return None if 0 <= value < 1 else f"expected values from 0 to below 1, got {value:g}"
    if owner is None:
        return None if value >= 0 else f"expected values of at least 0, got {value:g}"
    if "magnitude" in parts:
        operation = section["augmentation"]["operations"][int(parts[2])]["name"]
        low, high, unit = MAGNITUDES[operation] or (0.0, 0.0, "")
        if low <= value <= high:
            return None
        return f"{operation} takes {low} to {high} {unit}, the schedule reaches {value:g}"
    text = value_problem(owner, parts[-1], round(value) if whole else value)
    return None if text is None else f"a value that the schedule reaches {text}"
