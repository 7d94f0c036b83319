"""Tiny data sets, networks and trainings for tests."""

import os
import tarfile
import zipfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deepcv.data import packed
from deepcv.data.shards import Dataset, channel_statistics, labels_file, open_shards, write_description, write_split
from deepcv.images import encode_png
from deepcv.nn.spec import NetworkSpec, load
from deepcv.params.train import NO_WEIGHTS
from deepcv.task import FurtherTarget, Task
from deepcv.training.config import TrainConfig

if TYPE_CHECKING:
    from deepcv.training.fit import Fitted

REPOSITORY = Path(__file__).parents[1]

NETWORK = """\
nodes:
  - {id: stem, op: conv, channels: 4}
  - {id: drop, op: dropout, p: 0.3}
  - {id: pool, op: global_avg_pool}
  - {id: head, op: linear, features: $classes}
outputs: {logits: head}
"""

CHOICES = """\
parameters: {width: 4}
nodes:
  - {id: mix, choice: {small: {op: conv, channels: $width, kernel: 1}, wide: {op: conv, channels: $width}}, repeat: 2}
  - {id: pool, op: global_avg_pool}
  - {id: head, op: linear, features: $classes}
outputs: {logits: head}
"""

RECIPE = {"height": 8, "width": 8, "channels": 1, "resize": "stretch"}

TWO_SCALES = """\
inputs: {fine: null, coarse: [4, 8]}
nodes:
  - {id: near, op: conv, channels: 4, from: fine}
  - {id: a, op: global_avg_pool}
  - {id: far, op: conv, channels: 4, from: coarse}
  - {id: b, op: global_avg_pool}
  - {id: both, op: concat, from: [a, b]}
  - {id: head, op: linear, features: $classes}
outputs: {logits: head}
"""

CONFIG = TrainConfig(
    epochs=3, batch_size=8, optimizer="adamw", lr=0.05, momentum=0.9, weight_decay=0.01, label_smoothing=0.1,
    warmup=0.25, flip=False, shift=1, cutout=0, seed=0, threads=1, device="cpu", precision="fp32", channels_last=True,
)  # fmt: skip


def picture(seed: int, height: int = 8, width: int = 8, channels: int = 1) -> NDArray[np.uint8]:
    """Noise of its own for each seed."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def no_weights(project: Path) -> Path:
    """Write the file that params name where a training starts from random weights."""
    path = project / NO_WEIGHTS
    path.parent.mkdir(parents=True)
    path.write_text("source: none\n")
    return path


def write_images(root: Path, names: Iterable[str], **kinds: int) -> Path:
    """Write a different PNG under each name below `root`."""
    for seed, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(picture(seed, **kinds)))
    return root


def write_tar(root: Path, tar: Path, mode: str = "w", prefix: str = "") -> Path:
    """Pack what lies below `root`."""
    with tarfile.open(tar, mode) as archive:
        for path in sorted(root.iterdir()):
            archive.add(path, prefix + path.name)
    return tar


def write_zip(root: Path, path: Path) -> Path:
    """Pack what lies below `root`, folders included."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(root.rglob("*")):
            archive.write(file, file.relative_to(root))
    return path


def labelled(count: int, channels: int = 1, classes: int = 2, seed: int = 0) -> tuple[NDArray[np.uint8], list[int]]:
    """Images that get brighter with their class: learnable in a few steps."""
    labels = [number % classes for number in range(count)]
    noise = np.random.default_rng(seed).integers(0, 60, (count, 8, 8, channels))
    brightness = np.array(labels).reshape(-1, 1, 1, 1) * (195 // max(1, classes - 1))
    return (noise + brightness).astype(np.uint8), labels


def write_shards(folder: Path, train: int = 24, held_out: int = 8, channels: int = 1) -> Path:
    """Write shards of two classes, 8×8 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate({"train": train, "val": held_out, "test": held_out}.items()):
        images, labels = labelled(count, channels, seed=seed)
        write_split(folder, split, images, labels, images.shape)
    recipe = {"height": 8, "width": 8, "channels": channels, "resize": "stretch"}
    write_description(folder, name="toy", classes=("dark", "light"), test_digest="t" * 64, recipe=recipe)
    return folder


def write_encoded_shards(folder: Path, train: int = 24) -> Path:
    """Write the same shards with a train split of PNG files, 12 to 15 pixels high and 14 wide."""
    write_shards(folder, channels=3)
    images, labels = labelled(train, channels=3)
    statistics = channel_statistics(images)
    files = [np.resize(image.repeat(2, 0).repeat(2, 1), (12 + n % 4, 14, 3)) for n, image in enumerate(images)]
    packed.write(
        folder / "train",
        (packed.EncodedImage(encode_png(f), n, *f.shape[:2]) for f, n in zip(files, labels, strict=True)),
        ("dark", "light"),
    )
    for name in ("images", "labels"):
        (folder / f"train_{name}.npy").unlink()
    recipe = {"height": 8, "width": 8, "channels": 3, "resize": "stretch"}
    write_description(
        folder, name="toy", classes=("dark", "light"), test_digest="t" * 64, recipe=recipe, statistics=statistics
    )
    return folder


def write_task_shards(folder: Path, task: Task, train: int = 48, held_out: int = 16) -> Path:
    """Write shards of two labels, an image's left half and its right half being bright, or of the numbers of how bright they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate({"train": train, "val": held_out, "test": held_out}.items()):
        random = np.random.default_rng(seed)
        grey = (
            random.integers(0, 256, (count, 2))
            if task.kind == "regression"
            else random.integers(0, 2, (count, 2)) * 255
        )
        images = (grey.repeat(4, 1)[:, None, :, None] * np.ones((1, 8, 1, 1))).clip(0, 255).astype(np.uint8)
        np.save(folder / f"{split}_images.npy", images)
        np.save(
            folder / f"{split}_labels.npy",
            (1000 + 10 * grey if task.kind == "regression" else grey > 0).astype(np.float32),
        )
    recipe = {"height": 8, "width": 8, "channels": 1, "resize": "stretch"}
    write_description(folder, name="toy", classes=("left", "right"), test_digest="t" * 64, recipe=recipe, task=task)
    return folder


FURTHER = (FurtherTarget(Task("numbers.größe/2"), ("größe/2",)), FurtherTarget(Task("tags.bright"), ("left", "right")))
THREE_HEADS = """\
nodes:
  - {id: flat, op: flatten}
  - {id: hidden, op: linear, features: 24, activation: relu}
  - {id: head, op: linear, features: $classes}
  - {id: size, op: linear, features: 1, from: hidden}
  - {id: bright, op: linear, features: 2, from: hidden}
outputs: {logits: head, size: size, bright: bright}
"""


def write_several_shards(folder: Path, train: int = 48, held_out: int = 16, encoded: bool = False) -> Path:
    """Write shards of two classes, which half is brighter, and further of how bright the left one is and which are bright."""
    folder.mkdir(parents=True, exist_ok=True)
    statistics = None
    for seed, (split, count) in enumerate({"train": train, "val": held_out, "test": held_out}.items()):
        grey = np.random.default_rng(seed).integers(0, 256, (count, 2))
        images = (grey.repeat(4, 1)[:, None, :, None] * np.ones((1, 8, 1, 1))).astype(np.uint8)
        labels = (grey[:, 1] > grey[:, 0]).astype(np.int64)
        if encoded and split == "train":
            statistics = channel_statistics(images)
            files = [encode_png(image.repeat(2, 0).repeat(2, 1)) for image in images]
            packed.write(
                folder / "train",
                (packed.EncodedImage(file, int(n), 16, 16) for file, n in zip(files, labels, strict=True)),
                ("left", "right"),
            )
        else:
            np.save(folder / f"{split}_images.npy", images)
        np.save(folder / labels_file(split), labels)
        np.save(folder / labels_file(split, 1), (1000 + 10 * grey[:, :1]).astype(np.float32))
        np.save(folder / labels_file(split, 2), (grey > 127).astype(np.float32))
    write_description(
        folder, name="toy", classes=("left", "right"), test_digest="t" * 64, recipe=RECIPE, statistics=statistics,
        further=FURTHER,
    )  # fmt: skip
    return folder


def shards(folder: Path, **sizes: int) -> Dataset:
    """Shards of two classes, opened."""
    return open_shards(write_shards(folder, **sizes))


def network(folder: Path, text: str = NETWORK) -> NetworkSpec:
    """A small network, loaded from a file."""
    path = folder / "network.yaml"
    path.write_text(text)
    return load(path, {})


def config(**changes: Any) -> TrainConfig:
    """The toy training with some values changed."""
    return replace(CONFIG, **changes)


def bits(fitted: "Fitted") -> dict[str, bytes]:
    """The weights and statistics of a trained classifier, to the last bit."""
    return {key: value.numpy().tobytes() for key, value in fitted.classifier.state_dict().items()}


def same(one: "Fitted", two: "Fitted") -> bool:
    """Whether two trainings ended with the same bits."""
    return bits(one) == bits(two) and one.history == two.history and one.points == two.points


def recorded() -> None:
    """As DVC writes its lock: anew, also where it says the same."""
    lock = Path("dvc.lock")
    before_ns = lock.stat().st_mtime_ns if lock.exists() else 0
    lock.write_text("stages: {}\n")
    os.utime(lock, ns=(before_ns + 1000, before_ns + 1000))
