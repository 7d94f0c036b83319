"""What a schedule may change, by the name that it has in params, and how its value gets there."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import nn

from deepcv.data.augmentation import Augmentation
from deepcv.data.loaders import TrainLoader
from deepcv.errors import DeepcvError
from deepcv.nn.layers.blur import set_blur
from deepcv.nn.layers.regularisation import DropPath
from deepcv.training.config import TrainConfig
from deepcv.training.losses import LOSSES, Term
from deepcv.training.optimizers import has_momentum, momentum_of, set_momentum
from deepcv.training.schedules import Curve, Joined, OneCycle, Plateau, Ramp

Setter = Callable[[float], None]
# These change between steps; `augmentation.…`, `shift` and `cutout` change between epochs.
OF_STEPS = (
    "lr", "momentum", "weight_decay", "label_smoothing", "clip_norm", "accumulate", "dropout", "drop_path", "blur",
)  # fmt: skip
OF_EPOCHS = ("shift", "cutout")
WITHOUT_VALUE = ("dropout", "drop_path", "blur")  # the network file has theirs
_WHOLE = ("shift", "cutout", "accumulate")
_AUGMENTATION = "augmentation."
_LOSS = re.compile(r"losses\.(\d{1,3})\.([a-z_]+)")


@dataclass(frozen=True)
class Scheduled:
    """One hyperparameter's course: `value` is what params give it, `follows` what it follows."""

    name: str
    value: float
    follows: Curve | Joined | Plateau

    @property
    def each_step(self) -> bool:
        """Whether it changes between steps, not only between epochs."""
        return _of_steps(self.name) and not isinstance(self.follows, Plateau)

    def at(self, step: int, history: Sequence[Mapping[str, float]] = ()) -> float:
        """Its value at a step, counted from 0; after the epochs of `history`, where it follows them."""
        value = self.follows.value(self.value, history) if isinstance(self.follows, Plateau) else self.follows.at(step)
        return float(round(value)) if self.name in _WHOLE else value


def scheduled(config: TrainConfig, steps: int) -> tuple[Scheduled, ...]:
    """Every hyperparameter that changes in a training of `steps` steps; `lr` always does, in one cycle where nothing else is said.

    Raises DeepcvError as `initial` does, and for an exponential schedule that would begin at 0.
    """
    named = {"lr": OneCycle(config.warmup), **config.schedules}
    found = []
    for name, schedule in named.items():
        value = initial(config, name)
        # Of a momentum that is the library's own, 0 of torch/SGD, params alone do not know it.
        if isinstance(schedule, Ramp) and schedule.shape == "exponential" and not schedule.begin(value):
            raise DeepcvError(
                f"train.schedules.{name}: an exponential schedule never leaves 0; give it a start above 0"
            )
        follows = schedule if isinstance(schedule, Plateau) else schedule.curve(value, steps)
        found.append(Scheduled(name, value, follows))
    return tuple(found)


def initial(config: TrainConfig, name: str) -> float:
    """The value that params give a hyperparameter, 0 for those of WITHOUT_VALUE, the optimizer's own momentum where they give none.

    Raises DeepcvError for an unknown name, and for the momentum of an optimizer that has none.
    """
    if name in WITHOUT_VALUE:
        return 0.0
    value: Any = config
    if name == "momentum":
        value = momentum_of(config)
        if value is None:
            raise DeepcvError(f"train.schedules.momentum: {config.optimizer} has no momentum; remove the schedule")
    elif loss := _LOSS.fullmatch(name):
        value = _of_loss(config.losses[int(loss[1])], loss[2]) if int(loss[1]) < len(config.losses) else None
    elif name in OF_STEPS or name in OF_EPOCHS or name.startswith(_AUGMENTATION):
        for part in _path(name):
            value = _member(value, part)
    if not _is_number(value):
        raise DeepcvError(
            f"train.schedules.{name}: expected one of {', '.join([*OF_STEPS, *OF_EPOCHS, *_of_losses(config.losses)])}, or a number of "
            "train.augmentation such as augmentation.randaugment.strength or augmentation.operations.0.magnitude.1"
        )
    return float(value)


def _of_losses(terms: Sequence[Term]) -> list[str]:
    """The names of what can change in losses."""
    return [
        f"losses.{place}.{key}"
        for place, term in enumerate(terms)
        for key in ["weight", *(LOSSES[term.loss].options if term.loss in LOSSES else ())]
        if _is_number(_of_loss(term, key))
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _of_loss(term: Term, key: str) -> Any:
    """The weight of a term, or an option; None where the loss has no such option."""
    if key == "weight":
        return term.weight
    option = LOSSES[term.loss].options.get(key) if term.loss in LOSSES else None
    return option and term.options.get(key, option.default)


def _path(name: str) -> list[str]:
    """Where a name of params leads in TrainConfig, whose operations call the two numbers of their magnitude otherwise."""
    return name.replace(".magnitude.0", ".start").replace(".magnitude.1", ".end").split(".")


def _member(values: Any, part: str) -> Any:
    """A field of a dataclass or an entry of a tuple, None where there is none."""
    if isinstance(values, tuple):
        return values[int(part)] if part.isdecimal() and int(part) < len(values) else None
    return getattr(values, part, None)


def _of_steps(name: str) -> bool:
    return name in OF_STEPS or _LOSS.fullmatch(name) is not None


@dataclass
class Settings:
    """Values that the training step reads anew each time; `loss_options` are those of `losses`, by place and name, which change."""

    label_smoothing: float
    clip_norm: float
    accumulate: int
    loss_weights: list[float]
    loss_options: dict[int, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, config: TrainConfig) -> Self:
        """Those that params give."""
        weights = [term.weight for term in config.losses]
        return cls(config.label_smoothing, config.clip_norm, config.accumulate, weights)


class Hyperparameters:
    """Puts the scheduled values where they act: `begin_epoch` before an epoch's first step, `step` before each step.

    The layers of `mean`, a running mean of the model, follow those of the model.
    """

    def __init__(
        self,
        courses: Sequence[Scheduled],
        *,
        config: TrainConfig,
        settings: Settings,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loader: TrainLoader,
        mean: nn.Module | None = None,
    ) -> None:
        self.courses = {course.name: course for course in courses}
        self.settings, self._loader, self._config = settings, loader, config
        models = [model] if mean is None else [model, mean]
        setters = {
            course.name: _setter(course.name, settings, models, optimizer)
            for course in courses
            if _of_steps(course.name)
        }
        self._per_step = [(course, setters[course.name]) for course in courses if course.each_step]
        self._per_epoch = [
            (course, setters[course.name]) for course in courses if course.name in setters and not course.each_step
        ]
        self._of_data = [course for course in courses if course.name not in setters]
        self._of_epoch: dict[str, float] = {}

    def values(self, step: int) -> dict[str, float]:
        """What each of them is at a step of the epoch that began last, by name."""
        return {
            name: course.at(step) if course.each_step else self._of_epoch[name] for name, course in self.courses.items()
        }

    def step(self, step: int) -> None:
        """Set what changes between steps; `step` counts from 0."""
        for course, put in self._per_step:
            put(course.at(step))

    def begin_epoch(self, step: int, history: Sequence[Mapping[str, float]]) -> None:
        """Set what changes between epochs; `step` is the number of the epoch's first step."""
        held = [course for course in self.courses.values() if not course.each_step]
        self._of_epoch = {course.name: course.at(step, history) for course in held}
        for course, put in self._per_epoch:
            put(self._of_epoch[course.name])
        if self._of_data:
            changed = self._config
            for course in self._of_data:
                changed = _replaced(changed, _path(course.name), self._of_epoch[course.name])
            self._loader.use(Augmentation(changed.flip, changed.shift, changed.cutout), changed.augmentation)


def _replaced(values: Any, path: Sequence[str], value: float) -> Any:
    """A dataclass or tuple with one number changed, whole where it was whole."""
    if not path:
        return round(value) if isinstance(values, int) else value
    changed = _replaced(_member(values, path[0]), path[1:], value)
    if isinstance(values, tuple):
        return (*values[: int(path[0])], changed, *values[int(path[0]) + 1 :])
    return dataclasses.replace(values, **{path[0]: changed})


def _setter(name: str, settings: Settings, models: Sequence[nn.Module], optimizer: torch.optim.Optimizer) -> Setter:
    def lr(value: float) -> None:
        for group in optimizer.param_groups:  # a list that load_state_dict replaces
            group["lr"] = value * group["lr_scale"]

    def momentum(value: float) -> None:
        set_momentum(optimizer, value)

    def weight_decay(value: float) -> None:
        for group in optimizer.param_groups:
            if group["decays"]:
                group["weight_decay"] = value

    def probability(value: float) -> None:
        for layer in layers:
            layer.p = value

    def accumulate(value: float) -> None:
        settings.accumulate = max(1, round(value))

    def blur(value: float) -> None:
        for model in models:
            set_blur(model, value)

    def of_settings(value: float) -> None:
        setattr(settings, name, value)

    def of_loss(value: float) -> None:
        _, place, key = name.split(".")
        if key == "weight":
            settings.loss_weights[int(place)] = value
        else:
            settings.loss_options.setdefault(int(place), {})[key] = value

    kind = DropPath if name == "drop_path" else nn.modules.dropout._DropoutNd
    layers = [one for model in models for one in model.modules() if isinstance(one, kind)]
    if (name in ("dropout", "drop_path") and not layers) or (name == "blur" and not set_blur(models[0], 0.0)):
        raise DeepcvError(
            f"train.schedules.{name}: the network has no layer `{name}`; remove the schedule or add a layer"
        )
    if name == "momentum" and not has_momentum(optimizer):
        raise DeepcvError(
            f"train.schedules.momentum: {type(optimizer).__name__} has no momentum that can change during training; remove the schedule"
        )
    own = {
        "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "dropout": probability, "drop_path": probability,
        "accumulate": accumulate, "blur": blur,
    }  # fmt: skip
    return of_loss if _LOSS.fullmatch(name) else own.get(name, of_settings)
