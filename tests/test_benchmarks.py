"""What no machine without a GPU measures is at least stepped here."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys

from benchmarks.engine import TRIVIAL, compare, digits_training
from benchmarks.resume import Kill
from deepcv.data.shards import write_description, write_split

# In the form of PyPI's airbench: the network comes back, accuracy and seconds are printed; it needs a GPU, this does not.
PACKAGE = """\
import torch
seen = []
def train94(run=0):
    seen.append(run)
    images = torch.load("cifar10/train.pt")["images"]
    assert images.shape[1:] == (32, 32, 3) and images.dtype == torch.uint8
    if run == -1:
        return print("|  warmup  |          |")
    print(f"|  {run}  |  1  |  0.5000  |  0.1000  |")
    print(f"|     |  eval  |     |  0.9{run}00  |  {len(seen)}.2500  |")
    return torch.nn.Identity()
"""


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    for seed, (split, count) in enumerate({"train": 96, "val": 20, "test": 20}.items()):
        images = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)
        write_split(folder, split, images, [number % 10 for number in range(count)], images.shape)
    recipe = {"height": 32, "width": 32, "channels": 3, "resize": "stretch"}
    write_description(folder, name="cifar", classes=tuple("0123456789"), test_digest="t" * 64, recipe=recipe)
    return folder


def result(*command: object) -> dict[str, Any]:
    """The last line that a benchmark prints."""
    arguments = [sys.executable, "-W", "ignore", "-m", *map(str, command)]
    done = subprocess.run(arguments, cwd=toys.REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_gpu_rows_are_stepped_without_a_gpu(shards: Path) -> None:
    line = result("benchmarks.cifar_gpu", "--path", shards, "--quick")
    assert line["holds"]
    assert line["baseline"] is None
    for row in (line["fast"], line["accurate"]):
        assert row["runs"] == 1
        assert row["deepcv_s"] > 0
        assert 0 <= row["deepcv_accuracy"] <= 1
        assert "airbench_s" not in row


def test_a_package_of_airbench_tells_accuracy_and_seconds(shards: Path, tmp_path: Path) -> None:
    package = tmp_path / "airbench"
    package.mkdir()
    (package / "__init__.py").write_text(PACKAGE)
    found = result("benchmarks.airbench_peer", package, shards, 2)
    assert found == {"accuracies": [0.9, 0.91], "seconds": [2.25, 3.25]}  # the first run warms up


def test_the_bare_loop_trains_what_the_stage_does(store: Path, tmp_path: Path) -> None:
    assert store
    training = digits_training(tmp_path / "digits", 1, toys.network(tmp_path, TRIVIAL))
    found = compare(training, 2, tmp_path / "run")
    assert found.same_weights
    assert found.ms_per_iteration > 0
    assert list((tmp_path / "run/checkpoints").glob("*.pt"))
    assert list((tmp_path / "run/tensorboard").iterdir())


WHOLE = ("FINISHED", 6, 6)


@pytest.mark.parametrize(
    ("runs", "clean"),
    [
        ([WHOLE], True),
        ([WHOLE, WHOLE], False),
        ([("FINISHED", 7, 6)], False),  # a step twice
        ([("RUNNING", 6, 6)], False),
        ([("FINISHED", 5, 5)], False),
        ([], False),
    ],
)
def test_a_kill_is_clean_where_nothing_is_lost_or_doubled(runs: list[tuple[str, int, int]], clean: bool) -> None:
    def kill(same: bool, left: list[str]) -> Kill:
        return Kill("dvc", 1.0, same, runs, left, within_epoch=False, after_training=True)

    assert kill(True, []).is_clean() == clean
    assert not kill(False, []).is_clean()
    assert not kill(True, ["python -m deepcv.stages.train"]).is_clean()
