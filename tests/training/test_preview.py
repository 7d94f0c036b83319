import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st

from deepcv.data.augmentation import Recipe
from deepcv.data.augmentation.recipe import Mix
from deepcv.data.loaders import Views
from deepcv.images import decode
from deepcv.training.fit import set_up
from deepcv.training.hyperparameters import scheduled
from deepcv.training.preview import curves, draw_batch, drawn_steps
from deepcv.training.schedules import Plateau, Ramp


@given(st.integers(1, 10**6))
def test_a_curve_is_drawn_from_its_first_step_to_its_last(total: int) -> None:
    steps = drawn_steps(total)
    assert steps[0] == 0
    assert steps[-1] == total - 1
    assert steps == sorted(set(steps))
    assert len(steps) == min(total, 1000)


def test_curves_are_those_of_the_training() -> None:
    schedules = {"weight_decay": Ramp("linear"), "momentum": Plateau(), "cutout": Ramp("step", 4.0)}
    courses = scheduled(toys.config(schedules=schedules), 30)
    found = curves(courses, 3, 10)
    assert found.keys() == {"lr", *schedules}
    for course in courses:
        for step in range(30):
            epoch, value = found[course.name][step]
            assert epoch == step / 10
            assert value == course.at(step if course.each_step else step // 10 * 10)


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
