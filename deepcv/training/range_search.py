"""Which learning rate, momentum and weight decay suit a training: short runs that leave no trace.

The learning rate rises exponentially over the steps of one run until the loss diverges (Smith 2015, arXiv 1506.01186). Momentum
and weight decay are compared over a grid, each value in a training in miniature at the learning rate that was found (Smith
2018, arXiv 1803.09820).
"""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from ignite.engine import Engine, Events
from numpy.typing import NDArray
from torch import nn

from deepcv.data.augmentation import permutation
from deepcv.data.shards import Split
from deepcv.errors import DeepcvError
from deepcv.evaluation import metrics
from deepcv.evaluation.inference import logits_of
from deepcv.training.checkpoints import RandomState
from deepcv.training.config import TrainConfig
from deepcv.training.engine import DivergedError, RunningMetrics, create_trainer
from deepcv.training.hyperparameters import Hyperparameters, Scheduled, Settings, initial, scheduled
from deepcv.training.optimizers import has_momentum
from deepcv.training.schedules import Curve
from deepcv.training.setup import Setup, objective_of, thaw

Method = Literal["between", "minimum/3", "minimum/10", "steepest", "valley"]
Grid = Literal["momentum", "weight_decay"]

LOWEST, HIGHEST, STEPS = 1e-6, 10.0, 100
GRIDS: Mapping[Grid, tuple[float, ...]] = {
    "momentum": (0.8, 0.9, 0.95, 0.98),
    "weight_decay": (0.0, 1e-4, 1e-3, 1e-2, 1e-1),
}
_SMOOTHING = 0.98  # share of its past that the running mean of the loss keeps; this and the next two are fastai's
_DIVERGED = 4.0  # times the least running mean
_SKIPPED_SHARE, _SKIPPED_LAST = 0.1, 5  # of the first steps, which are noise, and of the last, which diverge
_SHARE = 0.05  # of a training that the runs of one grid may take, where that is more than STEPS
_VAL_IMAGES, _EVALUATION_BATCH = 1000, 500
_CHANCE = 2.0  # standard errors


class RangeError(DeepcvError):
    """The runs tell no value."""


@dataclass(frozen=True)
class Trace:
    """The learning rate of each step of a run, the loss there, and its running mean; `diverged` where the run ended for that."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    diverged: bool


@dataclass(frozen=True)
class Trial:
    """What a value of a grid led to: losses (n,) of the same val images for all values, infinite where the run diverged."""

    value: float
    val_losses: NDArray[np.float64]

    @property
    def val_loss(self) -> float:
        """Their mean."""
        return float(self.val_losses.mean())


@dataclass(frozen=True)
class Found:
    """The suggested values by name, and what they were read from."""

    suggested: Mapping[str, float]
    trace: Trace
    trials: Mapping[Grid, tuple[Trial, ...]] = field(default_factory=dict)


def search(
    setup: Setup, config: TrainConfig, val: Split, *, also: Iterable[Grid] = (), method: Method = "between",
    lowest: float = LOWEST, highest: float = HIGHEST, steps: int = STEPS,
) -> Found:  # fmt: skip
    """Suggest a learning rate and, at that, the values of grids named in `also`, one after the other. Raises RangeError.

    A grid costs as many steps as the sweep, or 5 % of the training where that is more. `setup` is afterwards as it was.
    """
    trace = sweep(setup, config, lowest=lowest, highest=highest, steps=steps)
    suggested = {"lr": float(f"{suggest(trace, method):.2g}")}
    trials: dict[Grid, tuple[Trial, ...]] = {}
    for name in also:
        trials[name] = compare(setup, _changed(config, suggested), val, name, steps=steps)
        suggested[name] = choose(trials[name], initial(config, name))
    return Found(suggested, trace, trials)


def sweep(
    setup: Setup, config: TrainConfig, *, lowest: float = LOWEST, highest: float = HIGHEST, steps: int = STEPS
) -> Trace:
    """Train for `steps` steps of the optimizer while the learning rate rises; `setup` is afterwards as it was.

    Ends where the loss is no number or its running mean four times the least. Images have their full size, and those parts
    learn that learn in the first epoch.
    """
    if not 0 < lowest < highest < math.inf or steps < 2:
        raise RangeError(f"expected 0 < lowest < highest, and 2 or more steps; got {lowest}, {highest} and {steps}")
    last = steps * config.accumulate - 1.0
    rise = Scheduled("lr", config.lr, Curve(((0.0, lowest), (last, highest)), "exponential"))
    with preserved(setup):
        return _run(setup, config, [rise], steps)


def suggest(trace: Trace, method: Method = "between") -> float:
    """Return the peak learning rate that a method reads from the running mean of the loss. Raises RangeError.

    `minimum/3` and `minimum/10` (fastai): that share of the rate at which the loss is least; `steepest` (fastai, ignite): where it
    falls fastest over the logarithm of the rate; `between`: the geometric mean of minimum/3 and steepest; `valley` (fastai's
    default): at half of its longest fall.
    """
    first, last = round(_SKIPPED_SHARE * len(trace.rates)), max(0, len(trace.rates) - _SKIPPED_LAST)
    rates, losses = trace.rates[first:last], np.array(trace.smoothed[first:last])
    least = int(losses.argmin()) if len(losses) else 0
    if least < 2:
        rise = "diverged" if trace.diverged else "did not fall"
        raise RangeError(
            f"the loss {rise} within {len(trace.rates)} steps; begin with a lower rate, take more steps, or see "
            "whether data and labels fit"
        )
    steepest = rates[int(np.gradient(losses[: least + 1], np.log(rates[: least + 1])).argmin())]
    match method:
        case "between":
            return math.sqrt(rates[least] / 3 * steepest)
        case "minimum/3":
            return rates[least] / 3
        case "minimum/10":
            return rates[least] / 10
        case "steepest":
            return steepest
        case "valley":
            return rates[_valley(losses)]


def suggestions(trace: Trace) -> dict[Method, float]:
    """What every method reads. Raises RangeError."""
    return {method: suggest(trace, method) for method in get_args(Method)}


def compare(
    setup: Setup, config: TrainConfig, val: Split, name: Grid, *, values: Iterable[float] = (), steps: int = STEPS
) -> tuple[Trial, ...]:
    """Train in miniature with each value of a grid and that of `config`, all from where `setup` is, and judge each on `val`.

    `setup` is afterwards as it was. Raises RangeError where the optimizer has no momentum.
    """
    if name == "momentum" and not has_momentum(setup.optimizer):
        raise RangeError(f"train.optimizer: {config.optimizer} has no momentum to compare; leave it out")
    grid = sorted({*(tuple(values) or GRIDS[name]), initial(config, name)})
    whole = config.epochs * len(setup.loader) // config.accumulate
    steps = max(1, max(steps, round(_SHARE * whole)) // len(grid))
    seen = permutation(config.seed, 0, len(val.labels), torch.device("cpu"))[:_VAL_IMAGES].sort().values.numpy()
    judged = Split(val.images_nhwc[seen], val.labels[seen])
    trials = []
    for value in grid:
        changed = _changed(config, {name: value})
        with preserved(setup):
            trace = _run(setup, changed, _miniature(setup, changed, name, steps), steps)
            losses = np.full(len(seen), np.inf) if trace.diverged else _val_losses(setup, judged)
        trials.append(Trial(value, losses))
    return tuple(trials)


def choose(trials: Sequence[Trial], present: float) -> float:
    """Return the value with the least val loss; the present one where no other is better by more than chance.

    Chance is two standard errors of the difference over the val images. Raises RangeError where every run diverged.
    """
    best = min(trials, key=lambda trial: trial.val_loss)
    if math.isinf(best.val_loss):
        raise RangeError("every run of the grid diverged; begin with a lower learning rate")
    own = next(trial for trial in trials if trial.value == present)
    if math.isinf(own.val_loss):
        return best.value
    gains = own.val_losses - best.val_losses
    error = gains.std(ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else math.inf
    return best.value if gains.mean() > _CHANCE * error else present


def _own(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What a module is beside its weights: its mode, a dropout's probability."""
    return ((name, value) for name, value in vars(module).items() if not name.startswith("_"))


@contextmanager
def preserved(setup: Setup) -> Iterator[None]:
    """Put network, optimizer, loader and torch's generators back on the way out, bit for bit, whatever happened."""
    network, optimizer, loader = setup.classifier, setup.optimizer, setup.loader
    random = RandomState(setup.hardware.torch_device)
    random.load_state_dict(random.state_dict())
    weights, state = copy.deepcopy(network.state_dict()), copy.deepcopy(optimizer.state_dict())
    modules = [(module, dict(_own(module))) for module in network.modules()]
    learning = [(parameter, parameter.requires_grad, parameter.grad) for parameter in network.parameters()]
    loading = dict(vars(loader))
    try:
        yield
    finally:
        network.load_state_dict(weights)
        optimizer.load_state_dict(state)
        for module, own in modules:
            vars(module).update(own)
        for parameter, learns, gradient in learning:
            parameter.requires_grad_(learns).grad = gradient
        vars(loader).update(loading)
        random.apply()


def _run(setup: Setup, config: TrainConfig, courses: Sequence[Scheduled], steps: int) -> Trace:
    """Train for some steps, to be undone by who calls; the courses count batches, as those of a training do."""
    batches = steps * config.accumulate
    settings = Settings.of(config)
    running = RunningMetrics(setup.hardware.torch_device)
    hyperparameters = Hyperparameters(
        courses, config=config, settings=settings, model=setup.classifier, optimizer=setup.optimizer, loader=setup.loader
    )  # fmt: skip
    trainer = create_trainer(
        setup.classifier, setup.optimizer, objective_of(setup, config, settings), hyperparameters, settings, running,
        autocast=setup.hardware.autocast(), scaler=setup.hardware.scaler(),
    )  # fmt: skip
    seen: list[tuple[float, float, float]] = []  # rate, loss, running mean
    diverged = False

    def begin_epoch(engine: Engine) -> None:
        setup.loader.epoch, setup.loader.first, setup.loader.size = engine.state.epoch - 1, 0, None
        hyperparameters.begin_epoch(engine.state.iteration, [])

    def watch(engine: Engine) -> None:
        nonlocal diverged
        if engine.state.output:  # it was a step
            loss = running.read()[0]
            running.reset()
            mean = _smoothed([*(loss for _, loss, _ in seen), loss])
            diverged = not mean <= _DIVERGED * min([mean, *(mean for _, _, mean in seen)])  # also where it is nan
            if not diverged:
                seen.append((hyperparameters.courses["lr"].at(engine.state.iteration - 1), loss, mean))
        if diverged or engine.state.iteration == batches:
            engine.terminate()

    trainer.add_event_handler(Events.EPOCH_STARTED, begin_epoch)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, watch)
    thaw(setup.classifier, config, 1)
    torch.manual_seed(config.seed)
    try:
        trainer.run(setup.loader, max_epochs=math.ceil(batches / len(setup.loader)), epoch_length=len(setup.loader))
    except DivergedError:  # it looks at the loss before `watch` does
        diverged = True
    rates, losses, means = zip(*seen, strict=True) if seen else ((), (), ())
    return Trace(rates, losses, means, diverged)


def _smoothed(losses: Sequence[float]) -> float:
    """The last value of the running mean, each of its weights divided by their sum (Kingma and Ba 2014, section 3)."""
    weights = _SMOOTHING ** np.arange(len(losses))[::-1]
    return float(np.average(losses, weights=weights))


def _valley(losses: NDArray[np.float64]) -> int:
    """Where the longest falling subsequence is half over, counted as fastai does."""
    lengths = np.ones(len(losses), np.int64)
    for place, loss in enumerate(losses):
        lengths[place] += max(lengths[:place][losses[:place] > loss], default=0)
    end = int(lengths.argmax())
    third = lengths[end] / 3
    return end - int(lengths[end]) + int(third) + int(third / 2)


def _miniature(setup: Setup, config: TrainConfig, name: Grid, steps: int) -> list[Scheduled]:
    """The courses of a training of a few steps; what is compared keeps its value over all of them."""
    courses = {course.name: course for course in scheduled(config, steps * config.accumulate)}
    for other in GRIDS:
        if other == name or (other not in courses and (other != "momentum" or has_momentum(setup.optimizer))):
            value = initial(config, other)  # of an earlier grid, perhaps, of which the optimizer does not know
            courses[other] = Scheduled(other, value, Curve(((0.0, value),)))
    return list(courses.values())


def _changed(config: TrainConfig, values: Mapping[Any, Any]) -> TrainConfig:
    return replace(config, **values)


def _val_losses(setup: Setup, val: Split) -> NDArray[np.float64]:
    hardware = setup.hardware
    logits = logits_of(
        setup.classifier, val.images_nhwc, batch_size=_EVALUATION_BATCH, device=hardware.torch_device,
        memory_format=hardware.memory_format, autocast=hardware.autocast(),
    )  # fmt: skip
    with np.errstate(invalid="ignore", over="ignore"):  # of a run that diverged
        return np.nan_to_num(metrics.losses(setup.info.task, logits, val.labels), nan=math.inf, posinf=math.inf)
