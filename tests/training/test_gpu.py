"""What a GPU must not change; run where there is one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from toys import same

from deepcv.data.augmentation import Augmentation
from deepcv.data.loaders import TrainLoader
from deepcv.data.shards import Dataset, Split
from deepcv.nn.spec import NetworkSpec
from deepcv.training.checkpoints import InterruptedTrainingError
from deepcv.training.fit import fit
from deepcv.training.history import EpochRecord

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

CONV = """\
nodes:
  - {id: stem, op: conv, channels: 64}
  - {id: body, op: conv, channels: 64, stride: 2}
  - {id: drop, op: dropout, p: 0.3}
  - {id: pool, op: global_avg_pool}
  - {id: head, op: linear, features: $classes}
outputs: {logits: head}
"""


def random_images(count: int) -> Split:
    random = np.random.default_rng(0)
    return Split(random.integers(0, 256, (count, 32, 32, 3), np.uint8), random.integers(0, 10, count))


def test_batches_are_those_of_the_cpu() -> None:
    """The order and every pixel of flip, shift and cutout, in epochs of either side."""
    split = random_images(300)
    loaders = [
        TrainLoader(
            split, batch_size=64, augmentation=Augmentation(flip=True, shift=3, cutout=8), seed=7,
            device=torch.device(device),
        )
        for device in ("cpu", "cuda")
    ]  # fmt: skip
    for epoch in (0, 1, 6):
        for loader in loaders:
            loader.epoch = epoch
        for here, there in zip(*loaders, strict=True):
            assert there.images_nchw.is_cuda
            assert torch.equal(here.images_nchw, there.images_nchw.cpu())
            assert torch.equal(here.targets, there.targets.cpu())


@pytest.mark.parametrize("changes", [
    {}, {"precision": "bf16", "optimizer": "muon"}, {"precision": "fp16", "optimizer": "sgd", "clip_norm": 1.0, "ema": 0.9},
    {"accumulate": 3, "precision": "fp32", "channels_last": False},
])  # fmt: skip
def test_a_killed_training_goes_on_bit_for_bit(changes: dict[str, Any], shards: Dataset, tmp_path: Path) -> None:
    network, config = toys.network(tmp_path, CONV), toys.config(device="cuda", **changes)
    whole = fit(network, shards, config)
    assert whole.hardware.device == "cuda"
    calls = 0

    def interrupted() -> bool:
        nonlocal calls
        calls += 1
        return calls > 4

    with pytest.raises(InterruptedTrainingError):
        fit(network, shards, config, checkpoints=tmp_path / "checkpoints", interrupted=interrupted)
    torch.rand(5, device="cuda")
    assert same(fit(network, shards, config, checkpoints=tmp_path / "checkpoints"), whole)


def test_it_learns_what_the_cpu_learns(network: NetworkSpec, shards: Dataset) -> None:
    here, there = (
        fit(network, shards, toys.config(device=device, precision="fp32", epochs=1)) for device in ("cpu", "cuda")
    )
    assert there.history[0].train_loss == pytest.approx(here.history[0].train_loss, rel=0.2)  # dropout draws otherwise


@pytest.mark.parametrize("kind", [True, "max-autotune"])
def test_a_compiled_network_trains(kind: Any, shards: Dataset, tmp_path: Path) -> None:
    network = toys.network(tmp_path, CONV.replace("  - {id: drop, op: dropout, p: 0.3}\n", ""))
    compiled, plain = (
        fit(network, shards, toys.config(device="cuda", precision="fp32", compile=on)) for on in (kind, False)
    )
    losses = [[record.train_loss for record in one.history] for one in (compiled, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_a_batch_without_memory_goes_through_in_pieces(
    shards: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    channels, height, width = shards.input_shape
    many = random_images(8192)
    train = Split(many.images_nhwc[:, :height, :width, :channels].copy(), many.labels % 2)
    network = toys.network(tmp_path, CONV.replace("channels: 64}", "channels: 512}"))
    config = toys.config(device="cuda", batch_size=8192, epochs=2, precision="fp32")
    maps_bytes = 8192 * 512 * height * width * 4
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (3 * maps_bytes + 2**29) / total))
    records: list[EpochRecord] = []
    try:
        fit(network, replace(shards, train=train), config, on_epoch=records.append)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "images at a time go through the network" in capsys.readouterr().err
    assert len(records) == 2
