import math
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deepcv.params import schedules as schedule_params
from deepcv.training import hyperparameters
from deepcv.training.schedules import Curve, OneCycle, Piecewise, Plateau, Ramp, of

STEPS = st.integers(2, 300)


def torchs(steps: int, **options: Any) -> Iterator[dict[str, float]]:
    """What torch's own OneCycleLR sets, step after step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps, **options)
    for step in range(steps):
        yield optimizer.param_groups[0]
        optimizer.step()
        if step < steps - 1:
            scheduler.step()


@settings(deadline=None)  # the first call imports
@given(
    STEPS, st.sampled_from([0.0, 0.07, 0.25, 0.3, 0.45]), st.sampled_from([2, 3]), st.sampled_from(["cosine", "linear"])
)
def test_one_cycle_is_torchs(
    steps: int, warmup: float, phases: Literal[2, 3], shape: Literal["cosine", "linear"]
) -> None:
    if warmup * steps == 1 or (phases == 3 and (warmup * steps <= 1 or 2 * warmup * steps - 2 >= steps - 1)):
        return  # torch divides by zero, or its phases overlap
    options = {"pct_start": warmup, "three_phase": phases == 3, "anneal_strategy": {"cosine": "cos"}.get(shape, shape)}
    rate = OneCycle(warmup, phases=phases, shape=shape).curve(0.1, steps)
    momentum = OneCycle(warmup, peak=0.85, start=0.95, end=0.95, phases=phases, shape=shape).curve(0.9, steps)
    for step, group in enumerate(torchs(steps, **options)):
        assert math.isclose(rate.at(step), group["lr"], rel_tol=0, abs_tol=1e-9)
        assert math.isclose(momentum.at(step), group["momentum"], rel_tol=0, abs_tol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 10, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.2, 0.25, 0.5, 0.99])
def test_every_number_of_steps_has_one_cycle(steps: int, warmup: float) -> None:
    """Where the rise ends on the first step, torch's own schedule divides by zero."""
    for phases in (2, 3):
        curve = OneCycle(warmup, phases=phases).curve(0.1, steps)
        rates = [curve.at(step) for step in range(steps)]
        assert all(0 < rate <= 0.1 + 1e-12 for rate in rates)
        peak = rates.index(max(rates))
        assert rates[peak:] == sorted(rates[peak:], reverse=True)
        assert rates[:peak] == sorted(rates[:peak])


@given(STEPS, st.sampled_from(["cosine", "linear", "exponential", "step"]), st.floats(0.0, 0.5), st.floats(0.6, 1.0))
def test_a_ramp_goes_from_its_start_to_its_end(
    steps: int, shape: Literal["cosine", "linear", "exponential", "step"], warmup: float, until: float
) -> None:
    curve = Ramp(shape, end=0.001, warmup=warmup, until=until).curve(0.5, steps)
    values = [curve.at(step) for step in range(steps)]
    assert values[-1] == 0.001
    highest = values.index(max(values))
    assert values[:highest] == sorted(values[:highest])
    assert values[highest:] == sorted(values[highest:], reverse=True)
    assert max(values) <= 0.5
    if warmup == 0:
        assert values[0] == 0.5 or until * steps <= 1
    else:
        assert values[0] > 0  # a first step of rate 0 would be lost


def test_a_cosine_is_torchs() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40, eta_min=0.01)
    curve = Ramp("cosine", end=0.01).curve(0.1, 41)
    for step in range(41):
        assert math.isclose(curve.at(step), optimizer.param_groups[0]["lr"], abs_tol=1e-9)
        optimizer.step()
        scheduler.step()


def test_points_are_met() -> None:
    points = ((0.0, 1.0), (0.5, 3.0), (1.0, 2.0))
    linear = Piecewise(points).curve(9.0, 101)
    assert [linear.at(step) for step in (0, 50.5, 100)] == [1.0, 3.0, 2.0]
    assert linear.at(25.25) == pytest.approx(2.0)
    step = Piecewise(points, "step").curve(9.0, 10)
    assert [step.at(number) for number in range(10)] == [1.0] * 5 + [3.0] * 4 + [2.0]
    assert Curve(((3.0, 7.0),)).at(0) == Curve(((3.0, 7.0),)).at(9) == 7.0


def history(*losses: float) -> list[dict[str, float]]:
    return [{"val_loss": loss, "val_accuracy": 1 - loss} for loss in losses]


def test_a_plateau_lowers_its_value_when_nothing_gets_better() -> None:
    plateau = Plateau(factor=0.5, patience=1, floor=0.3)
    assert plateau.value(1.0, []) == 1.0
    assert plateau.value(1.0, history(0.9, 0.8, 0.8)) == 1.0
    assert plateau.value(1.0, history(0.9, 0.8, 0.8, 0.85)) == 0.5
    assert plateau.value(1.0, history(0.9, 0.8, 0.8, 0.85, 0.7, 0.9)) == 0.5
    assert plateau.value(1.0, history(*[0.9] * 9)) == 0.3
    assert Plateau(patience=0, floor=2.0).value(1.0, history(*[0.9] * 9)) == 1.0  # it never rises
    rising = Plateau(patience=0, metric="val_accuracy")
    assert rising.value(1.0, history(0.9, 0.5)) == 1.0
    assert rising.value(1.0, history(0.5, 0.9)) == 0.5


def test_a_plateau_is_torchs() -> None:
    losses = [1.0, 0.9, 0.95, 0.95, 0.95, 0.8, 0.81, 0.82, 0.83, 0.84, 0.85, 0.86]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.1, patience=2, threshold=1e-4, threshold_mode="abs"
    )
    for count, loss in enumerate(losses, start=1):
        scheduler.step(loss)
        assert math.isclose(
            Plateau(0.1, 2).value(1.0, history(*losses[:count])), optimizer.param_groups[0]["lr"], rel_tol=1e-9
        )


@pytest.mark.parametrize(("values", "schedule"), [
    ({"kind": "one_cycle", "warmup": 0.1, "peak": None}, OneCycle(0.1)),
    ({"kind": "linear", "start": 0.1, "end": 0.2}, Ramp("linear", 0.1, 0.2)),
    ({"kind": "piecewise", "points": [[0, 1], [1, 0]]}, Piecewise(((0.0, 1.0), (1.0, 0.0)))),
    ({"kind": "plateau", "patience": 2}, Plateau(patience=2)),
])  # fmt: skip
def test_schedules_of_params(values: dict[str, Any], schedule: object) -> None:
    assert of(values) == schedule


def test_params_know_every_hyperparameter() -> None:
    """`deepcv.params` imports no torch, so it has the names a second time."""
    assert {*schedule_params.STEPWISE, *hyperparameters.WITHOUT_VALUE} == {
        *hyperparameters.OF_STEPS,
        *hyperparameters.OF_EPOCHS,
    }
