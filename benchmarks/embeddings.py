"""What the benchmarks of embeddings share: a network with features, embedding and logits, and what it answers."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.trainings import config_of
from deepcv.data.shards import Dataset, Split
from deepcv.nn.spec import NetworkSpec, load
from deepcv.training.config import TrainConfig
from deepcv.training.fit import Fitted

# ResNet-9 of the zoo with SimCLR's projection head beside its own: losses see the embedding, probes the features. These are
# the last maps as they are: in images as alike in place and size as Fashion-MNIST's, where something is says much.
RESNET = """\
parameters: {width: 32, features: 64}
nodes:
  - {id: body, spec: resnet-9, parameters: {width: $width}}
  - {id: flat, op: flatten, from: body.res3}
  - {id: hidden, op: linear, features: $width*8, activation: relu}
  - {id: embedding, op: linear, features: $features}
outputs: {logits: body.logits, features: flat, embedding: embedding}
"""


def network(text: str, **parameters: int) -> NetworkSpec:
    """The network of a YAML text."""
    with TemporaryDirectory() as name:
        path = Path(name) / "network.yaml"
        path.write_text(text)
        return load(path, parameters)


def config(**settings: Any) -> TrainConfig:
    """AdamW with flip and little shift; one thread on a CPU."""
    base = replace(config_of("fashion-mnist"), optimizer="adamw", weight_decay=0.01, threads=1, flip=True, shift=2)
    return replace(base, **settings)


def of_split(split: Split, chosen: NDArray[np.int64]) -> Split:
    """The images of a split at these places, in memory."""
    return Split(np.array(split.images_nhwc[chosen]), np.array(split.labels[chosen]))


def little_val(shards: Dataset) -> Dataset:
    """With few val images for `fit` to look at after each epoch: these benchmarks judge by themselves, at the end."""
    return replace(shards, val=of_split(shards.val, np.arange(min(500, len(shards.val.labels)))))


@torch.inference_mode()
def answers(fitted: Fitted, images_nhwc: NDArray[np.uint8], output: str) -> NDArray[np.float32]:
    """An output (n, d) of a trained network for uint8 images (n, h, w, c), on the hardware that it was trained on."""
    hardware = fitted.hardware
    classifier = fitted.classifier.to(hardware.torch_device).eval()
    found = []
    for start in range(0, len(images_nhwc), 1000):
        batch = torch.from_numpy(np.array(images_nhwc[start : start + 1000])).to(hardware.torch_device)
        with hardware.autocast():
            outputs = classifier(batch.permute(0, 3, 1, 2).contiguous(memory_format=hardware.memory_format))
        found.append(outputs[output].float().cpu())
    return torch.cat(found).numpy()
