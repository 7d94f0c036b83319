"""Every recipe that is shipped trains: its own network, optimizer, schedules and augmentation, on a few images of its size."""

from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import toys
import yaml

from deepcv.data import packed
from deepcv.data.packed import PackedImages
from deepcv.data.shards import Dataset, channel_statistics, labels_file, open_shards, write_description
from deepcv.files import sha256
from deepcv.images import encode_png
from deepcv.nn import spec
from deepcv.nn.classifier import Classifier
from deepcv.params.whole import Params, load
from deepcv.task import FurtherTarget, Task
from deepcv.training import setup
from deepcv.training.config import TrainConfig
from deepcv.training.fit import fit
from deepcv.training.optimizers import create_optimizer
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


def shards_of(params: Params, folder: Path) -> Dataset:
    """Ten images per split, as `preprocess` would store them: prepared, or those to train on as files of other sizes."""
    size = (params.preprocess.height, params.preprocess.width, params.preprocess.channels)
    further = [
        FurtherTarget(Task(name), (name,)) for name in params.preprocess.further_targets
    ]  # of one label or number each
    splits = [np.random.default_rng(seed).integers(0, 256, (10, *size), np.uint8) for seed in range(3)]
    task = Task(params.preprocess.target)
    labels = list(range(10)) if task.kind == "classification" else np.eye(10, dtype=np.float32)
    for split, images in zip(("train", "val", "test"), splits, strict=True):
        if split != "train" or params.preprocess.store == "pixels":
            np.save(folder / f"{split}_images.npy", images)
            np.save(folder / f"{split}_labels.npy", labels)
        for place in range(1, 1 + len(further)):
            np.save(folder / labels_file(split, place), np.arange(10, dtype=np.float32)[:, None])
    if params.preprocess.store == "encoded":
        files = [np.concatenate([image, image[: 1 + number]]) for number, image in enumerate(splits[0])]
        given = [packed.EncodedImage(encode_png(file), n, *file.shape[:2]) for n, file in enumerate(files)]
        packed.write(folder / "train", given, CLASSES)
    recipe = dict(zip(("height", "width", "channels"), size, strict=True)) | {"resize": params.preprocess.resize}
    write_description(
        folder, name="toy", classes=CLASSES, test_digest="t" * 64, recipe=recipe,
        statistics=channel_statistics(splits[0]) if params.preprocess.store == "encoded" else None, task=task,
        further=further,
    )  # fmt: skip
    return open_shards(folder)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_takes_its_first_steps(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the epoch from which all parts learn that the recipe lets learn; what it freezes stays."""
    monkeypatch.chdir(toys.REPOSITORY)  # its paths are relative to the project
    params = load(path)
    shards = shards_of(params, tmp_path)
    assert isinstance(shards.train, PackedImages) == (path.stem == "finetune")
    network = spec.load(Path(params.train.network), params.train.network_parameters)
    epochs = max(params.train.unfreeze.values(), default=0) + 1  # the rate of the very last step moves nothing
    # Of the last epoch, for the best one may be one before all parts learn.
    changed = {"epochs": epochs, "batch_size": 10, "threads": 1, "select": "last"}
    config = replace(TrainConfig.of(params.train.configuration()), **changed)
    weights = without_download(Path(params.train.weights), tmp_path)
    start = Start.read(weights, lambda name: pytest.fail(f"{name} is asked for"))
    before: dict[str, torch.Tensor] = {}

    def watched(classifier: Classifier, config: TrainConfig) -> torch.optim.Optimizer:
        before.update({name: value.detach().clone() for name, value in classifier.network.named_parameters()})
        return create_optimizer(classifier, config)

    monkeypatch.setattr(setup, "create_optimizer", watched)
    with torch.compiler.set_stance("force_eager"):  # to compile takes a minute
        fitted = fit(network, shards, config, start=start)
    assert len(fitted.history) == epochs
    assert all(np.isfinite([record.train_loss, record.val_loss]).all() for record in fitted.history)
    after = dict(fitted.classifier.network.named_parameters())
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert any(name.startswith("head") for name in moved)
    thawed = {name for name in before if any(fnmatch(name, f"{part}.*") for part in config.unfreeze)}
    frozen = {name for name in before if any(name.startswith(f"{part}.") for part in config.freeze)} - thawed
    assert not moved & frozen
    assert len(moved & thawed) >= len(thawed) / 2
    assert len(moved) >= len(before.keys() - frozen) / 2
