"""What a second process brings: the same training in one and in two processes over gloo, same batches, one thread each.

    python -m benchmarks.distributed [--quick]

The default digits network on images of 32×32. Steps per second, without the start; how far the gradients of the first step are
apart, as a share of the largest, in double and in single precision (which itself is 1e-4 from double here); and what one agreement
on `interrupted` costs, which every step has. It needs two idle cores: the line has the load.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from benchmarks.result import ROOT, emit
from deepcv.data.shards import open_shards, write_description, write_split
from deepcv.nn import spec
from deepcv.params.base import load_section
from deepcv.params.train import TrainParams
from deepcv.training import distributed
from deepcv.training.config import TrainConfig
from deepcv.training.fit import fit

_SIDE, _CLASSES, _BATCH, _VAL = 32, 10, 128, 128
_BOUND = 1e-10
_NETWORK = ROOT / "networks/digits.yaml"


def write(folder: Path, images: int) -> None:
    """Noise in ten classes."""
    folder.mkdir()
    drawn = np.random.default_rng(0)
    for split, count in {"train": images, "val": _VAL, "test": _VAL}.items():
        pixels = drawn.integers(0, 256, (count, _SIDE, _SIDE, 3), np.uint8)
        write_split(folder, split, pixels, [n % _CLASSES for n in range(count)], pixels.shape)
    recipe = {"height": _SIDE, "width": _SIDE, "channels": 3, "resize": "stretch"}
    names = tuple(str(n) for n in range(_CLASSES))
    write_description(folder, name="noise", classes=names, test_digest="t" * 64, recipe=recipe)


def configured(**changes: Any) -> TrainConfig:
    """The training of params.yaml in the processes that there are."""
    config = TrainConfig.of(load_section(TrainParams, path=ROOT / "params.yaml").configuration())
    processes = distributed.launched() or 1
    return replace(config, batch_size=_BATCH, device="cpu", precision="fp32", threads=1, processes=processes, **changes)


def first_gradients(folder: Path, dtype: torch.dtype) -> list[torch.Tensor]:
    """The gradients of a training's first step."""
    gradients: list[torch.Tensor] = []

    def look(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        gradients.extend(p.grad.clone() for group in optimizer.param_groups for p in group["params"])

    handle = register_optimizer_step_pre_hook(look)
    torch.set_default_dtype(dtype)
    fit(spec.load(_NETWORK, {}), open_shards(folder / "batch"), configured(epochs=1))
    torch.set_default_dtype(torch.float32)
    handle.remove()
    return gradients


def measured(folder: Path, epochs: int) -> dict[str, Any]:
    """Train as one of the processes that there are."""
    ends: list[float] = []
    config = configured(epochs=epochs + 1)
    shards = open_shards(folder / "all")
    fit(
        spec.load(_NETWORK, {}), shards, config, checkpoints=folder / f"checkpoints{config.processes}",
        on_epoch=lambda _record: ends.append(time.perf_counter()),
    )  # fmt: skip
    double, single = first_gradients(folder, torch.float64), first_gradients(folder, torch.float32)
    world = distributed.join(distributed.launched() or 1, "cpu")
    start, rounds = time.perf_counter(), 500
    for _ in range(rounds):
        world.any(False, False)
    agreement_s = (time.perf_counter() - start) / rounds
    distributed.leave()
    steps = epochs * (len(shards.train.labels) // _BATCH)
    step_s = (ends[-1] - ends[0]) / steps if ends else 0.0  # the first epoch warms up
    return {"step_s": step_s, "agreement_s": agreement_s, "double": double, "single": single}


def run(folder: Path, epochs: int, processes: int) -> dict[str, Any]:
    """Start the processes and return what the first one measured."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "benchmarks.distributed", "--worker", str(folder), "--epochs", str(epochs)]
    started = [
        subprocess.Popen(command, cwd=ROOT, env=os.environ | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(processes)
    ]
    statuses = [process.wait() for process in started]
    if any(statuses):
        raise SystemExit("a process failed")
    return dict(torch.load(folder / "measured.pt", weights_only=True))


def main() -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--worker", type=Path)
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args()
    if arguments.worker:
        found = measured(arguments.worker, arguments.epochs)
        if not distributed.rank():
            torch.save(found, arguments.worker / "measured.pt")
        return
    images, epochs = (512, 1) if arguments.quick else (4_096, 4)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write(folder / "all", images)
        write(folder / "batch", _BATCH)
        one, two = (run(folder, epochs, processes) for processes in (1, 2))
    double, single = (apart(one[kind], two[kind]) for kind in ("double", "single"))
    emit(
        "distributed", value=1 / two["step_s"], baseline=1 / one["step_s"],
        target=f"gradients in double precision within {_BOUND} of the largest", holds=double <= _BOUND, n=epochs,
        double=double, single=single, agreement_us=round(two["agreement_s"] * 1e6, 1),
        agreement_alone_us=round(one["agreement_s"] * 1e6, 2), batch=_BATCH, load=os.getloadavg()[0],
    )  # fmt: skip


def apart(one: list[torch.Tensor], two: list[torch.Tensor]) -> float:
    """Largest difference, as a share of the largest value."""
    differences = max(float((a - b).abs().max()) for a, b in zip(one, two, strict=True))
    return differences / max(float(gradient.abs().max()) for gradient in one)


if __name__ == "__main__":
    main()
