"""Every recipe that is shipped trains: its own network, optimizer, schedules and augmentation, on a few images of its size."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import toys

from deepcv.data.shards import open_shards, write_description, write_split
from deepcv.nn import spec
from deepcv.params.whole import load
from deepcv.training.config import TrainConfig
from deepcv.training.fit import fit
from deepcv.training.start import Start

RECIPES = [toys.REPOSITORY / "params.yaml", *sorted((toys.REPOSITORY / "examples").glob("*.yaml"))]
CLASSES = tuple("0123456789")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_takes_its_first_steps(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(toys.REPOSITORY)  # its paths are relative to the project
    params = load(path)
    size = (params.preprocess.height, params.preprocess.width, params.preprocess.channels)
    for seed, split in enumerate(("train", "val", "test")):
        images = np.random.default_rng(seed).integers(0, 256, (20, *size), np.uint8)
        write_split(tmp_path, split, images, [number % 10 for number in range(20)], images.shape)
    recipe = dict(zip(("height", "width", "channels"), size, strict=True)) | {"resize": params.preprocess.resize}
    write_description(tmp_path, name="toy", classes=CLASSES, test_digest="t" * 64, recipe=recipe)
    network = spec.load(Path(params.train.network), params.train.network_parameters)
    config = replace(TrainConfig.of(params.train.configuration()), epochs=1, batch_size=10, threads=1)
    start = Start.read(Path(params.train.weights), lambda name: pytest.fail(f"{name} is asked for"))
    with torch.compiler.set_stance("force_eager"):  # to compile takes a minute
        fitted = fit(network, open_shards(tmp_path), config, start=start)
    assert np.isfinite(fitted.history[0].train_loss)
