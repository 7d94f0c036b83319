"""Every recipe that is shipped trains: its own network, optimizer, schedules and augmentation, on a few images of its size."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import toys
import yaml

from deepcv.data.shards import open_shards, write_description, write_split
from deepcv.files import sha256
from deepcv.nn import spec
from deepcv.params.whole import load
from deepcv.training.config import TrainConfig
from deepcv.training.fit import fit
from deepcv.training.start import Start

RECIPES = [toys.REPOSITORY / "params.yaml", *sorted((toys.REPOSITORY / "examples").glob("*.yaml"))]
CLASSES = tuple("0123456789")


def without_download(weights: Path, folder: Path) -> Path:
    """A file of `train.weights`; in place of one that names weights of timm, one of a file with the same keys and random numbers."""
    content = yaml.safe_load(weights.read_text())
    if content["source"] != "timm":
        return weights
    name = content.pop("name")
    torch.save(timm.create_model(name.partition(".")[0]).state_dict(), folder / "weights.pth")
    content |= {"source": "file", "path": "weights.pth", "sha256": sha256(folder / "weights.pth")}
    content["preprocessing"] = f"timm/{name}"
    (folder / "weights.yaml").write_text(yaml.safe_dump(content))
    return folder / "weights.yaml"


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
    weights = without_download(Path(params.train.weights), tmp_path)
    start = Start.read(weights, lambda name: pytest.fail(f"{name} is asked for"))
    with torch.compiler.set_stance("force_eager"):  # to compile takes a minute
        fitted = fit(network, open_shards(tmp_path), config, start=start)
    assert np.isfinite(fitted.history[0].train_loss)
