import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st
from ignite.engine import Engine, Events
from torch import nn
from torch.optim import Optimizer

from deepcv.data.augmentation import Recipe
from deepcv.data.augmentation.policies import Operation
from deepcv.data.augmentation.recipe import Mix
from deepcv.data.loaders import Views
from deepcv.images import decode
from deepcv.training import fit as fitting
from deepcv.training.engine import Objective, create_trainer
from deepcv.training.hyperparameters import scheduled
from deepcv.training.losses import Term
from deepcv.training.preview import curves, draw_batch, drawn_steps
from deepcv.training.schedules import Piecewise, Plateau, Ramp
from deepcv.training.setup import set_up


@given(st.integers(1, 10**6))
def test_a_curve_is_drawn_from_its_first_step_to_its_last(total: int) -> None:
    steps = drawn_steps(total)
    assert steps[0] == 0
    assert steps[-1] == total - 1
    assert steps == sorted(set(steps))
    assert len(steps) == min(total, 1000)


def test_curves_are_what_a_training_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each plotted point against what optimizer, loss, layers and loader of a real training had at that step."""
    schedules = {
        "weight_decay": Ramp("linear", start=0.1), "momentum": Plateau(factor=0.5, patience=50), "cutout": Ramp("step", 4.0, until=0.5),
        "clip_norm": Ramp("exponential", start=5.0, end=0.5), "dropout": Ramp("linear", start=0.5, end=0.1),
        "losses.0.weight": Piecewise(((0.0, 1.0), (1.0, 0.25))), "losses.0.label_smoothing": Ramp("cosine", start=0.3),
        "augmentation.operations.0.magnitude.1": Ramp("linear", start=0.0, end=30.0),
        "losses.1.gamma": Ramp("linear", start=3.0, end=1.0), "losses.2.margin": Ramp("cosine", end=0.1),
        "losses.3.temperature": Ramp("exponential", start=0.5, end=0.1),
    }  # fmt: skip
    terms = (Term("cross_entropy"), Term("focal"), Term("triplet", options={"margin": 0.4}), Term("supcon"))
    rotate = Operation("rotate", 0.0, 30.0)
    config = toys.config(schedules=schedules, losses=terms, augmentation=Recipe(operations=(rotate,)))
    seen: dict[str, list[float]] = {}

    def watched(model: nn.Module, optimizer: Optimizer, objective: Objective, *given: Any, **named: Any) -> Engine:
        (dropout,) = (module for module in model.modules() if isinstance(module, nn.Dropout))
        hyperparameters, settings, _ = given
        loader = hyperparameters._loader

        def look(_engine: Engine) -> None:
            group = optimizer.param_groups[0]
            now = {
                "lr": group["lr"], "weight_decay": group["weight_decay"], "momentum": group["betas"][0],
                "cutout": loader.augmentation.cutout, "clip_norm": settings.clip_norm, "dropout": dropout.p,
                "losses.0.weight": settings.loss_weights[0], "losses.0.label_smoothing": settings.loss_options[0]["label_smoothing"],
                "losses.1.gamma": settings.loss_options[1]["gamma"], "losses.2.margin": settings.loss_options[2]["margin"],
                "losses.3.temperature": settings.loss_options[3]["temperature"],
                "augmentation.operations.0.magnitude.1": loader.policies[0].operations[0].end,
            }  # fmt: skip
            for name, value in now.items():
                seen.setdefault(name, []).append(value)

        trainer = create_trainer(model, optimizer, objective, *given, **named)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, look)
        return trainer

    monkeypatch.setattr(fitting, "create_trainer", watched)
    shards = toys.shards(tmp_path)
    fitting.fit(toys.network(tmp_path), shards, config)
    drawn = curves(scheduled(config, 9), epochs=3, steps_per_epoch=3)
    assert drawn.keys() == {"lr", *schedules}
    for name, points in drawn.items():
        assert [epoch for epoch, _ in points] == pytest.approx([step / 3 for step in range(9)])
        assert [value for _, value in points] == pytest.approx(seen[name]), name
    changing = {name for name, values in seen.items() if len(set(values)) > 1}
    assert changing == drawn.keys() - {"momentum"}  # a plateau is drawn as it begins


@pytest.mark.parametrize(("changes", "columns"), [
    ({}, 8), ({"augmentation": Recipe(cutmix=Mix(1.0, 1.0))}, 8),
    ({"views": Views(3, "clean"), "augmentation": Recipe("augmix")}, 3),
])  # fmt: skip
def test_a_batch_is_drawn_as_the_network_sees_it(changes: dict[str, object], columns: int, tmp_path: Path) -> None:
    shards = toys.shards(tmp_path)
    loader = set_up(toys.network(tmp_path), shards, replace(toys.CONFIG, **changes)).loader
    draw_batch(loader, shards, tmp_path / "batch.png", 12)
    sheet = decode((tmp_path / "batch.png").read_bytes(), 1)
    assert sheet.shape[1] == columns * 102
    batch = loader.at(loader.order(), torch.arange(12 // loader.views.count))
    first = batch.images_nchw[0, 0].numpy()
    assert np.array_equal(sheet[6:96:12, 6:96:12].squeeze(), first)  # the middle of each enlarged pixel


def test_the_command_draws_and_tells(made_project: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deepcv.cli", "preview"], cwd=made_project, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(toys.REPOSITORY)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "3 epochs of 3 batches of 8" in done.stdout
    assert "  lr: 0.002 to 2e-07" in done.stdout
    assert decode((made_project / "reports/training/schedules.png").read_bytes(), 3).std() > 1
    assert decode((made_project / "reports/training/batch.png").read_bytes(), 3).std() > 1


@pytest.fixture
def made_project(tmp_path: Path) -> Path:
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    toys.write_shards(tmp_path / "data/shards")
    toys.network(tmp_path)
    toys.no_weights(tmp_path)
    (tmp_path / "params.yaml").write_text(
        "train: {network: network.yaml, epochs: 3, batch_size: 8, lr: 0.05, weights: networks/weights/none.yaml}\n"
    )
    return tmp_path
