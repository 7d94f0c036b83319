import hashlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.optimizer import register_optimizer_step_pre_hook

from deepcv import training_commands
from deepcv.data.augmentation import Recipe
from deepcv.data.augmentation.recipe import Mix
from deepcv.data.shards import Dataset
from deepcv.nn.spec import NetworkSpec
from deepcv.training import range_search
from deepcv.training.range_search import Method, RangeError, Trace, Trial, compare, preserved, search, suggest, sweep
from deepcv.training.schedules import Piecewise
from deepcv.training.setup import Setup, set_up

METHODS: tuple[Method, ...] = get_args(Method)
DEEP_LINEAR = """\
nodes:
  - {id: pixels, op: flatten}
  - {id: hidden, op: linear, features: 64}
  - {id: head, op: linear, features: $classes}
outputs: {logits: head}
"""
EVERYTHING: dict[str, Any] = {
    "accumulate": 2, "clip_norm": 1.0, "layer_decay": 0.8, "unfreeze": {"stem": 2}, "batch_size": 4, "optimizer": "muon",
    "augmentation": Recipe("trivialaugment", mixup=Mix(0.4, 0.5)),
    "schedules": {"augmentation.mixup.probability": Piecewise(((0.0, 0.0), (0.4, 1.0)), "step")},
}  # fmt: skip


def digest(setup: Setup) -> dict[str, str]:
    """sha256 of everything that a run changes, by what it is.

    Without Python's own generator: a training never draws from it, threads that earlier tests left (Prefect's) do.
    """
    model, optimizer, loader = setup.classifier, setup.optimizer, setup.loader
    parts: dict[str, Any] = {
        "weights": dict(model.state_dict()),
        "gradients": [parameter.grad for parameter in model.parameters()],
        "what learns": [parameter.requires_grad for parameter in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "probabilities": [getattr(module, "p", None) for module in model.modules()],
        "optimizer": optimizer.state_dict(),
        "step of the optimizer": repr(sorted(vars(optimizer))),
        "loader": {key: value for key, value in vars(loader).items() if key not in ("policies", "_crops")},
        "policies": [id(policy) for policy in loader.policies],
        "generators": [torch.get_rng_state(), repr(np.random.get_state())],
    }
    return {name: hashlib.sha256(_bytes(value)).hexdigest() for name, value in parts.items()}


def _bytes(value: Any) -> bytes:
    match value:
        case torch.Tensor():
            return repr((value.dtype, value.stride())).encode() + value.detach().contiguous().numpy().tobytes()
        case dict():
            return b"".join(repr(key).encode() + _bytes(one) for key, one in value.items())
        case list() | tuple():
            return b"".join(map(_bytes, value))
        case _:
            return repr(value).encode()


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize(
    "changes", [{}, {"optimizer": "sgd", "momentum": 0.0}, {"optimizer": "torch/NAdam"}, EVERYTHING]
)
def test_a_search_leaves_no_trace(changes: dict[str, Any], is_new: bool, network: NetworkSpec, shards: Dataset) -> None:
    config = toys.config(**changes)
    setup = set_up(network, shards, config)
    setup.classifier.eval()
    if not is_new:  # in the middle of a training: an optimizer with state, gradients, a loader within its epoch
        setup.loader.epoch, setup.loader.first, setup.loader.size = 2, 1, (6, 6)
        setup.classifier.train()
        for batch in setup.loader:
            setup.classifier(batch.images_nchw)["logits"].square().mean().backward()
            setup.optimizer.step()
    before = digest(setup)
    found = search(setup, config, shards.val, also=("momentum", "weight_decay"), steps=40)
    assert set(found.suggested) == {"lr", "momentum", "weight_decay"}
    assert digest(setup) == before
    with preserved(setup):  # the digest sees what a run changes
        range_search._run(setup, config, range_search._miniature(setup, config, "weight_decay", 8), 8)
        changed = {name for name, value in digest(setup).items() if value != before[name]}
        assert changed >= {"weights", "gradients", "optimizer", "loader", "generators"} | (
            {"modes"} if is_new else set()
        )
    assert digest(setup) == before


def test_what_fails_in_the_middle_leaves_no_trace_either(network: NetworkSpec, shards: Dataset) -> None:
    config = toys.config()
    setup = set_up(network, shards, config)
    before, steps = digest(setup), 0

    def fail(*_: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 7:
            raise KeyboardInterrupt

    handle = register_optimizer_step_pre_hook(fail)
    try:
        with pytest.raises(KeyboardInterrupt):
            sweep(setup, config)
    finally:
        handle.remove()
    assert steps == 7
    assert digest(setup) == before


def test_the_rate_rises_exponentially_by_layer_and_repeats(network: NetworkSpec, shards: Dataset) -> None:
    config = toys.config(layer_decay=0.5, lr=3.0)
    setup = set_up(network, shards, config)
    seen: list[list[float]] = []
    handle = register_optimizer_step_pre_hook(
        lambda optimizer, *_: seen.append([g["lr"] for g in optimizer.param_groups])
    )
    try:
        trace = sweep(setup, config, lowest=1e-4, highest=0.1, steps=31)
    finally:
        handle.remove()
    assert trace.rates == pytest.approx([1e-4 * 1000 ** (step / 30) for step in range(31)])
    scales = [group["lr_scale"] for group in setup.optimizer.param_groups]
    assert len(set(scales)) > 1
    assert seen == [pytest.approx([rate * scale for scale in scales]) for rate in trace.rates]
    assert sweep(setup, config, lowest=1e-4, highest=0.1, steps=31) == trace
    assert not trace.diverged
    assert trace.losses[-1] < trace.losses[0]


def test_the_running_mean_is_the_first_loss_and_then_follows(network: NetworkSpec, shards: Dataset) -> None:
    trace = sweep(set_up(network, shards, toys.config()), toys.config(), steps=20)
    mean = weight = 0.0
    for loss, smoothed in zip(trace.losses, trace.smoothed, strict=True):
        mean, weight = 0.98 * mean + 0.02 * loss, 0.98 * weight + 0.02
        assert smoothed == pytest.approx(mean / weight)
    assert trace.smoothed[0] == trace.losses[0]


def test_an_accumulated_batch_is_one_step(network: NetworkSpec, shards: Dataset) -> None:
    config = toys.config(accumulate=3, batch_size=4)  # 6 batches an epoch
    trace = sweep(set_up(network, shards, config), config, lowest=1e-4, highest=1e-2, steps=20)
    assert len(trace.rates) == 20
    assert trace.rates[-1] == pytest.approx(1e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_ends_where_it_diverges(precision: str, tmp_path: Path, shards: Dataset) -> None:
    config = toys.config(optimizer="sgd", precision=precision)
    setup = set_up(toys.network(tmp_path, DEEP_LINEAR), shards, config)
    trace = sweep(setup, config, highest=1e6)
    assert trace.diverged
    assert 20 < len(trace.rates) < 100
    assert all(map(math.isfinite, trace.losses))
    assert max(trace.smoothed) <= 4 * min(trace.smoothed)
    assert trace.rates[-1] < 1e3
    assert 0 < suggest(trace) < trace.rates[-1]
    with pytest.raises(RangeError, match="the loss diverged within"):
        suggest(sweep(setup, config, lowest=1e3, highest=1e6))


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (1.0, 1.0), (1.0, math.inf), (math.nan, 1.0)])
def test_a_range_is_checked(bounds: tuple[float, float], network: NetworkSpec, shards: Dataset) -> None:
    setup = set_up(network, shards, toys.config())
    with pytest.raises(RangeError, match="expected 0 < lowest < highest"):
        sweep(setup, toys.config(), lowest=bounds[0], highest=bounds[1])


def trace_of(losses: list[float], scale: float = 1.0) -> Trace:
    """A sweep with a given running mean."""
    rates = tuple(scale * 1e-5 * 1e6 ** (step / (len(losses) - 1)) for step in range(len(losses)))
    return Trace(rates, tuple(losses), tuple(losses), diverged=True)


curves = st.lists(st.integers(1, 1000).map(float), min_size=30, max_size=60)


@given(curves)
@settings(max_examples=200, deadline=None)
def test_suggestions_follow_the_rates_and_do_not_depend_on_the_scale_of_the_loss(losses: list[float]) -> None:
    trace = trace_of(losses)
    try:
        found = range_search.suggestions(trace)
    except RangeError:
        inner = losses[round(0.1 * len(losses)) : -5]
        assert inner.index(min(inner)) < 2
        return
    assert set(found) == set(METHODS)
    assert found["minimum/10"] == pytest.approx(found["minimum/3"] * 0.3)
    assert found["between"] ** 2 == pytest.approx(found["minimum/3"] * found["steepest"])
    least = found["minimum/10"] * 10
    assert trace.rates[0] < least < trace.rates[-1]
    assert max(found["steepest"], found["valley"]) < trace.rates[-5]
    assert found["steepest"] <= least * (1 + 1e-9)
    assert range_search.suggestions(trace_of(losses, scale=8.0)) == pytest.approx(
        {method: 8 * rate for method, rate in found.items()}
    )
    assert range_search.suggestions(trace_of([loss / 4 + 64 for loss in losses])) == found


def test_a_fall_and_a_rise() -> None:
    """Flat, then down by a logistic curve in the middle, then up."""
    losses = [2.3 - 2 / (1 + math.exp(30 - step)) for step in range(60)] + [0.3 + 0.1 * step for step in range(1, 40)]
    trace = trace_of(losses)
    assert suggest(trace, "minimum/3") == pytest.approx(trace.rates[59] / 3)
    assert suggest(trace, "steepest") == pytest.approx(trace.rates[30])
    assert trace.rates[30] < suggest(trace, "valley") < trace.rates[59]


@given(curves)
@settings(max_examples=200, deadline=None)
def test_valley_is_fastais(losses: list[float]) -> None:
    """The lines of fastai's `valley` (fastai 2.8, callback/schedule.py, Apache 2.0)."""
    n, (max_start, max_end) = len(losses), (0, 0)
    lds = [1] * n
    for i in range(1, n):
        for j in range(i):
            if losses[i] < losses[j] and lds[i] < lds[j] + 1:
                lds[i] = lds[j] + 1
            if lds[max_end] < lds[i]:
                max_end = i
                max_start = max_end - lds[max_end]
    sections = (max_end - max_start) / 3
    expected = max_start + int(sections) + int(sections / 2)
    if max_end:  # else nothing falls, which `suggest` refuses before
        assert range_search._valley(np.array(losses)) == expected


def test_a_loss_that_does_not_fall_is_refused() -> None:
    for method in METHODS:
        with pytest.raises(RangeError, match="within 50 steps; begin with a lower rate"):
            suggest(trace_of([float(step) for step in range(50)]), method)
    with pytest.raises(RangeError, match="within 4 steps"):
        suggest(trace_of([4.0, 3.0, 2.0, 1.0]))


@pytest.mark.parametrize("name", get_args(range_search.Grid))
def test_each_value_of_a_grid_trains_from_the_same_weights(
    name: range_search.Grid, network: NetworkSpec, shards: Dataset
) -> None:
    config = replace(toys.config(optimizer="sgd", lr=0.02), **{name: 0.3})
    setup = set_up(network, shards, toys.config(optimizer="sgd"))  # it does not know the values of `config`
    seen: list[tuple[float, float, float, float]] = []

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        group, weight = optimizer.param_groups[0], setup.classifier.state_dict()["network.head.weight"]
        seen.append((group["lr"], group["momentum"], group["weight_decay"], weight.sum().item()))

    handle = register_optimizer_step_pre_hook(look)
    try:
        trials = compare(setup, config, shards.val, name, values=(0.1, 0.5), steps=30)
    finally:
        handle.remove()
    assert [trial.value for trial in trials] == [0.1, 0.3, 0.5]
    assert len(seen) == 30
    position = 1 if name == "momentum" else 2
    other = config.weight_decay if name == "momentum" else config.momentum
    assert [step[position] for step in seen] == [0.1] * 10 + [0.3] * 10 + [0.5] * 10
    assert {step[3 - position] for step in seen} == {other}
    assert max(step[0] for step in seen[:10]) == pytest.approx(0.02, rel=0.1)
    assert seen[0][3] == seen[10][3] == seen[20][3]
    assert len({trial.val_loss for trial in trials}) == 3
    assert all(trial.val_losses.shape == (8,) for trial in trials)


def test_an_optimizer_without_momentum(network: NetworkSpec, shards: Dataset) -> None:
    config = toys.config(optimizer="torch/Adagrad", momentum="auto")
    setup = set_up(network, shards, config)
    with pytest.raises(RangeError, match="torch/Adagrad has no momentum"):
        compare(setup, config, shards.val, "momentum")
    assert len(compare(setup, config, shards.val, "weight_decay")) == len(range_search.GRIDS["weight_decay"])


def test_an_optimizer_of_three_betas_and_its_own_momentum(network: NetworkSpec, shards: Dataset) -> None:
    config = toys.config(optimizer="timm/adan", momentum="auto")
    setup = set_up(network, shards, config)
    seen: list[tuple[float, ...]] = []
    handle = register_optimizer_step_pre_hook(lambda optimizer, *_: seen.append(optimizer.param_groups[0]["betas"]))
    try:
        trials = compare(setup, config, shards.val, "momentum", values=(0.5,), steps=4)
    finally:
        handle.remove()
    assert [trial.value for trial in trials] == [0.5, 0.98]
    assert seen == [(0.5, 0.92, 0.99)] * 2 + [(0.98, 0.92, 0.99)] * 2


def trial(value: float, *losses: float) -> Trial:
    return Trial(value, np.array(losses))


@pytest.mark.parametrize(
    ("trials", "present", "expected"),
    [
        ((trial(0.8, 1.0, 1.1, 0.9), trial(0.9, 2.0, 2.1, 1.9)), 0.9, 0.8),  # clearly better
        ((trial(0.8, 1.0, 1.1, 0.9), trial(0.9, 2.0, 2.1, 1.9)), 0.8, 0.8),
        ((trial(0.8, 1.0, 3.0, 1.9), trial(0.9, 2.0, 2.0, 2.0)), 0.9, 0.9),  # better by chance
        ((trial(0.8, 1.0, 1.0, 1.0), trial(0.9, 1.0, 1.0, 1.0)), 0.9, 0.9),  # the same
        ((trial(0.8, 1.0, 1.0, 1.0), trial(0.9, math.inf, math.inf, math.inf)), 0.9, 0.8),  # the present one diverged
        ((trial(0.8, 1.0), trial(0.9, 2.0)), 0.9, 0.9),  # one image tells nothing
    ],
)
def test_a_value_is_kept_unless_another_is_better(trials: tuple[Trial, ...], present: float, expected: float) -> None:
    assert range_search.choose(trials, present) == expected


def test_a_grid_that_diverges() -> None:
    with pytest.raises(RangeError, match="every run of the grid diverged"):
        range_search.choose((trial(0.8, math.inf), trial(0.9, math.inf)), 0.9)


def test_the_command_offers_what_there_is() -> None:
    assert training_commands._METHODS == METHODS
