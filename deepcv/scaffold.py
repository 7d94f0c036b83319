"""`deepcv init`: look at a dataset and this machine, propose params."""

import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from torch import nn

from deepcv.data import exclusions
from deepcv.data.samples import DataError
from deepcv.data.sources import Source, open_source
from deepcv.images import DecodeError, decode, headers
from deepcv.nn import spec
from deepcv.params.document import read
from deepcv.params.edit import with_values
from deepcv.params.whole import Params
from deepcv.training.hardware import resolve

_LOOKED_AT = 300  # images decoded to learn size and colour
_BUDGET_S = {"cpu": 480.0, "cuda": 600.0}  # training time that the proposed epochs aim at
_MIN_EPOCHS, _MAX_EPOCHS = 3, 30
_SMALL_SIDE, _TINY_SIDE = 48, 12
_HEADER = "# deepcv init: "


@dataclass(frozen=True)
class Findings:
    """What a dataset looks like; `jpeg` where all images that were decoded are JPEGs."""

    images: int
    classes: tuple[str, ...]
    splits: dict[str, int]
    height: int
    width: int
    same_size: bool
    colour: bool
    jpeg: bool


@dataclass(frozen=True)
class Proposal:
    """Values for params.yaml by dotted key, and how long training should take with them here."""

    values: dict[str, Any]
    training_s: float


def look(path: Path, downloads: Path) -> Findings:
    """Open a dataset and decode some of its images, without those that `ingest` would leave out. Raises DataError."""
    source = open_source(path, downloads)
    kept = exclusions.Kept(source.read(), exclusions.read(exclusions.FILE))
    every = max(1, source.count // _LOOKED_AT)
    splits: Counter[str] = Counter()
    shapes: list[tuple[int, int, int]] = []
    jpegs = 0
    problem = ""
    for number, sample in enumerate(source.check(kept)):
        splits[sample.split or "to be split"] += 1
        if number % every == 0:
            try:
                height, width, channels = decode(sample.encoded).shape
            except DecodeError as error:  # `validate` says what to do with it
                problem = problem or f"{path}: {sample.id}: {error}"
                continue
            shapes.append((height, width, channels))
            jpegs += bool((header := headers.read(sample.encoded)) and header.is_jpeg)
    if not shapes:
        raise DataError(problem or f"{path}: holds no image")
    return _summary(source, dict(splits), shapes, jpeg=jpegs == len(shapes))


def propose(path: str, findings: Findings) -> Proposal:
    """Choose image size, network, batch and epochs that fit the data and this machine; one training step is timed."""
    height, width = _size(findings)
    side = max(height, width)
    network = (
        "networks/digits.yaml"
        if side <= _TINY_SIDE
        else "networks/small.yaml"
        if side <= _SMALL_SIDE
        else "networks/medium.yaml"
    )
    train_images = findings.splits.get("train", findings.images)
    batch_size = 128 if train_images >= 5_000 else 64 if train_images >= 640 else 16
    channels = 3 if findings.colour else 1
    image_s = seconds_per_image(network, (channels, height, width), len(findings.classes), batch_size)
    device = resolve("auto", "auto", "auto", 1).device
    affordable = int(_BUDGET_S[device] / (image_s * train_images))
    epochs = min(_MAX_EPOCHS, max(_MIN_EPOCHS, affordable))
    values: dict[str, Any] = {
        "ingest.dataset": dataset_name(path),
        "ingest.path": path,
        "preprocess.height": height,
        "preprocess.width": width,
        "preprocess.channels": channels,
        "preprocess.resize": "stretch" if findings.same_size else "crop",
        "preprocess.reduced": findings.jpeg and findings.height >= 2 * height and findings.width >= 2 * width,
        "train.network": network,
        **_network_parameters(Path(network)),
        "train.epochs": epochs,
        "train.batch_size": batch_size,
        "train.flip": findings.colour,
        "train.threads": "auto",
        "train.shift": side // 16,
    }
    return Proposal(values, epochs * train_images * image_s)


def write(params_file: Path, findings: Findings, proposal: Proposal) -> str:
    """Return the text of params.yaml with the proposal in it, comments kept, and what was found as its first line."""
    # A byte order mark must not end up behind the new first line.
    text = with_values(read(params_file).removeprefix("\ufeff"), proposal.values)
    newline = "\r\n" if "\r\n" in text else "\n"
    kept = [line for line in text.splitlines(keepends=True) if not line.startswith(_HEADER)]
    found = "".join(c if c.isprintable() else " " for c in describe(findings))  # a class name may hold a line break
    return f"{_HEADER}{found}{newline}" + "".join(kept)


def left_over(params: Params) -> list[str]:
    """What params say of another dataset or network, and a proposal does not set: it may stand in a block, which edits refuse."""
    kept = {"preprocess.further_targets": params.preprocess.further_targets, "train.losses": params.train.losses}
    return [key for key, value in kept.items() if value]


def describe(findings: Findings) -> str:
    """One line for a person."""
    shown = ", ".join(findings.classes[:10]) + (", …" if len(findings.classes) > 10 else "")
    splits = ", ".join(f"{count} {split}" for split, count in findings.splits.items())
    size = f"{findings.height}×{findings.width}" + ("" if findings.same_size else " (median; sizes differ)")
    colour = "colour" if findings.colour else "grey"
    return f"{findings.images} images ({splits}) of {len(findings.classes)} classes ({shown}), {size}, {colour}"


def dataset_name(path: str) -> str:
    """Turn a path into a name for the registered model: lower case letters, digits, dots, dashes, 100 at most."""
    stem = re.sub(r"(\.tar)?(\.(gz|bz2|xz|tgz|tar|zip|yaml|yml))?$", "", Path(path).name.lower())
    return re.sub(r"[^a-z0-9._-]+", "-", stem).strip("-._")[:100] or "images"


def seconds_per_image(network: str, input_shape: tuple[int, int, int], classes: int, batch_size: int) -> float:
    """Time a training step of this network here, in seconds per image (best of three)."""
    hardware = resolve("auto", "auto", "auto", "auto")
    model = spec.build(spec.load(Path(network), {}), input_shape=input_shape, classes=classes)
    model = model.to(hardware.torch_device).to(memory_format=hardware.memory_format)
    images = torch.randn(batch_size, *input_shape, device=hardware.torch_device)
    images = images.contiguous(memory_format=hardware.memory_format)
    targets = torch.zeros(batch_size, dtype=torch.int64, device=hardware.torch_device)
    times_s = []
    for _ in range(4):
        start = time.perf_counter()
        with hardware.autocast():
            loss = nn.functional.cross_entropy(model(images)["logits"], targets)
        loss.backward()
        if hardware.device == "cuda":
            torch.cuda.synchronize()
        times_s.append(time.perf_counter() - start)
    return min(times_s[1:]) / batch_size


def _network_parameters(network: Path) -> dict[str, Any]:
    """The network file's own values: params.yaml may hold those of the network before."""
    defaults = yaml.safe_load(network.read_text(encoding="utf-8")).get("parameters", {})
    return {f"train.network_parameters.{name}": value for name, value in defaults.items()}


def _summary(source: Source, splits: dict[str, int], shapes: list[tuple[int, int, int]], *, jpeg: bool) -> Findings:
    sizes = {(height, width) for height, width, _ in shapes}
    return Findings(
        images=sum(splits.values()),
        classes=source.classes,
        splits=splits,
        height=int(median(height for height, _, _ in shapes)),
        width=int(median(width for _, width, _ in shapes)),
        same_size=len(sizes) == 1,
        colour=any(channels == 3 for _, _, channels in shapes),
        jpeg=jpeg,
    )


def _size(findings: Findings) -> tuple[int, int]:
    """Keep a small common size (made even); else a square of 64 or 128 pixels, no larger than most images."""
    height, width = findings.height, findings.width
    if findings.same_size and max(height, width) <= 64:
        return height + height % 2, width + width % 2
    side = 128 if min(height, width) >= 128 else 64 if min(height, width) >= 48 else 32
    return side, side
