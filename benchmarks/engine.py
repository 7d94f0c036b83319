"""What ignite's Engine costs: DeepCV's training against the same loop in bare PyTorch.

    python -m benchmarks.engine [--quick] [--path cifar10-jpeg.tar.gz]

On a trivial net (one linear layer), on the default digits network, and with `--path` ResNet-9 on CIFAR-10-JPEG. One thread, CPU
seconds of the whole process, its other threads included. Both sides train the same epochs of the same network, data and schedule
and judge each on the same val images; after every epoch of DeepCV's the bare loop makes its own, and so does a control, the bare
loop again. The first epoch warms up: all that is done once per training falls into it (`resnet9_once_cpu_s` says what it costs).

DeepCV's side is `fit` with the progress bar. With ResNet-9 it has also what stage `train` gives it: the thread that writes the
MLflow run (SQLite; an epoch's time ends when all of it is there), TensorBoard's file, the pictures of the beginning, checkpoints of
the whole state after every epoch, and Ctrl-C held back. An epoch there has a fifth of the example's steps, so that what is done once
per epoch weighs five times as much as in the example. MLflow's samples of the machine, 9 ms every 10 s, fall on all sides.

The bare side has torch's OneCycle, running loss and accuracy on the device (the same code as DeepCV's), every 50 steps a look
whether the loss is a number and a line of a CSV file with it, and after each epoch val loss and accuracy: no engine, no bar, no
other file.
"""

import argparse
import gc
import io
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, redirect_stderr
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.result import ROOT, emit
from benchmarks.tracking_outage import digits
from benchmarks.trainings import config_of, prepared, some
from deepcv import tracking
from deepcv.data.loaders import TrainLoader
from deepcv.data.shards import Dataset, Split
from deepcv.lifetime import Grace
from deepcv.nn import spec
from deepcv.nn.spec import NetworkSpec
from deepcv.nn.spec.expand import ZOO
from deepcv.params.base import load_section
from deepcv.params.train import TrainParams
from deepcv.stages.tensorboard import TensorBoard
from deepcv.stages.train import draw_preview
from deepcv.stages.training_log import TrainingLog
from deepcv.training.config import TrainConfig
from deepcv.training.engine import RunningMetrics
from deepcv.training.fit import fit
from deepcv.training.history import EpochRecord, Point
from deepcv.training.setup import set_up

TRIVIAL = """\
nodes:
  - {id: flat, op: flatten}
  - {id: head, op: linear, features: $classes}
outputs: {logits: head}
"""
_DEEPCV = "fit: ignite's Engine, schedule, nan guard, running and val metrics, progress bar"
_STAGE = f"{_DEEPCV}; MLflow run from a thread, TensorBoard, preview, checkpoints, signals held back"
_BARE = "the loop by hand: OneCycle, running and val metrics, nan guard and a line of CSV every 50 steps"
_LOG_STEPS = 50
_EVALUATION_BATCH = 500
_OURS, _SAME_NET = 0.98, 35.0


@dataclass(frozen=True)
class Training:
    """What both sides train."""

    network: NetworkSpec
    shards: Dataset
    config: TrainConfig


class Bare:
    """The loop as a script would write it."""

    def __init__(self, training: Training) -> None:
        config, self.val = training.config, training.shards.val
        self.setup = set_up(training.network, training.shards, config)
        self.metrics = RunningMetrics(torch.device("cpu"))
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self.setup.optimizer, config.lr, total_steps=config.epochs * len(self.setup.loader),
            pct_start=config.warmup, cycle_momentum=False,
        )  # fmt: skip
        self.loss_fn = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
        self.log = tempfile.TemporaryFile("w")  # noqa: SIM115 - it lives as long as the loop
        self.steps = 0

    def epoch(self) -> None:
        """Train for one, and judge the network."""
        model, loader, optimizer = self.setup.classifier, self.setup.loader, self.setup.optimizer
        autocast = self.setup.hardware.autocast()
        model.train()
        self.metrics.reset()
        for batch in loader:
            with autocast:
                logits = model(batch.images_nchw)["logits"]
                loss = self.loss_fn(logits, batch.targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            self.scheduler.step()
            self.metrics.add(loss.detach(), logits.detach(), batch.targets)
            self.steps += 1
            if self.steps % _LOG_STEPS == 0:
                if not math.isfinite(mean := self.metrics.read()[0]):
                    raise SystemExit(f"diverged in step {self.steps}")
                print(f"{self.steps},{mean}", file=self.log, flush=True)
        loader.epoch += 1
        print(*self.metrics.read(), *self.judged(), sep=",", file=self.log, flush=True)

    @torch.inference_mode()
    def judged(self) -> tuple[float, float]:
        """Loss and accuracy on val."""
        model, hardware = self.setup.classifier.eval(), self.setup.hardware
        loss, right = 0.0, 0
        for start in range(0, len(self.val.labels), _EVALUATION_BATCH):
            part = slice(start, start + _EVALUATION_BATCH)
            images_nchw = torch.from_numpy(np.array(self.val.images_nhwc[part])).permute(0, 3, 1, 2)
            labels = torch.from_numpy(np.array(self.val.labels[part]))
            with hardware.autocast():
                logits = model(images_nchw.contiguous(memory_format=hardware.memory_format))["logits"]
            loss += nn.functional.cross_entropy(logits.float(), labels, reduction="sum").item()
            right += int((logits.argmax(1) == labels).sum())
        return loss / len(self.val.labels), right / len(self.val.labels)


@dataclass(frozen=True)
class Comparison:
    """Medians over epochs; ratios are CPU seconds over those of the bare loop."""

    ratio: float
    control: float
    control_p90: float
    overhead_us: float
    ms_per_iteration: float
    once_cpu_s: float
    same_weights: bool


def compare(training: Training, rounds: int, folder: Path | None = None) -> Comparison:
    """Train both sides in turns for `rounds` epochs after one that warms up; with a folder DeepCV's has all that the stage has."""
    training = replace(training, config=replace(training.config, epochs=rounds + 1))
    bare, control = Bare(training), Bare(training)
    spent_s: dict[str, list[float]] = {"deepcv": [], "bare": [], "control": []}
    with ExitStack() as stack, redirect_stderr(io.StringIO()):
        more, tell = as_the_stage(training, folder, stack) if folder else ({}, lambda _record: None)

        def on_epoch(record: EpochRecord) -> None:
            nonlocal began_s
            tell(record)
            spent_s["deepcv"].append(time.process_time() - began_s)
            loops = {"bare": bare.epoch, "control": control.epoch}
            for name in sorted(loops, reverse=bool(record.epoch % 2)):
                spent_s[name].append(cpu_of(loops[name]))
            gc.collect()
            began_s = time.process_time()

        began_s = time.process_time()
        fitted = fit(training.network, training.shards, training.config, on_epoch=on_epoch, progress=True, **more)
    (first, *ours), (_, *theirs), (_, *again) = spent_s.values()
    iterations = len(bare.setup.loader)
    controls = [one / other for one, other in zip(again, theirs, strict=True)]
    states = fitted.classifier.state_dict(), bare.setup.classifier.state_dict()
    return Comparison(
        ratio=statistics.median(one / other for one, other in zip(ours, theirs, strict=True)),
        control=statistics.median(controls),
        control_p90=statistics.quantiles(controls, n=10)[-1],
        overhead_us=statistics.median(a - b for a, b in zip(ours, theirs, strict=True)) / iterations * 1e6,
        ms_per_iteration=statistics.median(theirs) / iterations * 1e3,
        once_cpu_s=first - statistics.median(ours),
        same_weights=all(torch.equal(a, b) for a, b in zip(*(state.values() for state in states), strict=True)),
    )


def as_the_stage(
    training: Training, folder: Path, stack: ExitStack
) -> tuple[dict[str, Any], Callable[[EpochRecord], None]]:
    """What stage `train` gives `fit`, and what it does with an epoch, here until all of it is written."""
    config, shards = training.config, training.shards
    described = {
        "params": {},
        "hardware": {},
        "data_digest": shards.digest,
        "network_sha256": training.network.sha256(),
    }
    log = TrainingLog(tracking.experiment_of(shards.name), "engine", described, shards.task)
    stack.callback(log.end, "FINISHED")
    board = stack.enter_context(closing(TensorBoard(folder / "tensorboard", shards.task)))
    grace = stack.enter_context(Grace(5.0))

    def on_start(loader: TrainLoader) -> None:
        log.pictures(partial(draw_preview, loader, config, shards))

    def tell(record: EpochRecord) -> None:
        log.epoch(record)
        board.epoch(record)
        log.run_id()  # waits for the thread: its CPU seconds are DeepCV's

    def on_point(point: Point) -> None:
        log.point(point)
        board.point(point)

    more = {
        "checkpoints": folder / "checkpoints", "on_start": on_start, "on_point": on_point, "on_note": log.note,
        "interrupted": lambda: grace.asked is not None,
    }  # fmt: skip
    return more, tell


def cpu_of(work: Callable[[], None]) -> float:
    """CPU seconds of the process."""
    gc.collect()
    start = time.process_time()
    work()
    return time.process_time() - start


def digits_training(folder: Path, repeats: int, network: NetworkSpec | None = None) -> Training:
    """The default network, or another, on digits, of which an epoch sees each so many times."""
    params = load_section(TrainParams, ROOT / "params.yaml")
    folder.mkdir()
    shards = digits(folder)
    assert isinstance(shards.train, Split)  # noqa: S101  # for mypy
    train = Split(np.tile(shards.train.images_nhwc, (repeats, 1, 1, 1)), np.tile(shards.train.labels, repeats))
    config = replace(TrainConfig.of(params.configuration()), device="cpu", precision="fp32", threads=1)
    default = spec.load(ROOT / params.network, params.network_parameters, params.network_choices)
    return Training(network or default, replace(shards, train=train), config)


def resnet_training(path: Path, folder: Path, steps: int) -> Training:
    """ResNet-9 as examples/cifar10-jpeg.yaml trains, with SGD, on so many batches and their share of the val images."""
    shards = prepared(path, folder)
    assert isinstance(shards.train, Split)  # noqa: S101  # for mypy
    config = replace(config_of("cifar10-jpeg"), optimizer="sgd", device="cpu", threads=1)
    images = min(len(shards.train.labels), steps * config.batch_size)
    val = some(shards.val, len(shards.val.labels) * images // len(shards.train.labels))
    network = spec.load(ZOO / "resnet-9.yaml", {"width": 16})
    return Training(network, replace(shards, train=some(shards.train, images), val=val), config)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter epochs, within 60 s")
    parser.add_argument(
        "--rounds", type=int, default=30, help="epochs of each side; of ResNet-9 a quarter of them, at least 5"
    )
    parser.add_argument("--path", type=Path, help="CIFAR-10-JPEG, the tar or a folder of shards, for ResNet-9")
    options = parser.parse_args()
    rounds, repeats, steps = (5, 12, 5) if options.quick else (options.rounds, 60, 80)
    more: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "trivial.yaml").write_text(TRIVIAL)
        trivial = compare(digits_training(folder / "a", repeats, spec.load(folder / "trivial.yaml", {})), rounds)
        small = compare(digits_training(folder / "b", 1 if options.quick else 2), rounds)
        holds = small.same_weights and trivial.same_weights and trivial.overhead_us <= _SAME_NET
        if options.path:
            os.environ["DEEPCV_HOME"] = str(folder / "state")
            tracking.connect()  # as `make setup` does: a database is made once per project
            resnet = compare(resnet_training(options.path, folder, steps), max(5, rounds // 4), folder)
            rate = 1 / resnet.ratio
            holds = holds and resnet.same_weights and rate >= _OURS
            more = {
                "resnet9_rate": rate, "resnet9_control": resnet.control, "resnet9_control_p90": resnet.control_p90,
                "resnet9_ms_per_iteration": resnet.ms_per_iteration, "resnet9_same_weights": resnet.same_weights,
                "resnet9_n": max(5, rounds // 4), "resnet9_steps_per_epoch": steps,
                "resnet9_once_cpu_s": resnet.once_cpu_s, "resnet9_deepcv": _STAGE, "resnet9_bare": _BARE,
            }  # fmt: skip
    emit(
        "engine", value=small.ratio, baseline=1.0, n=rounds,
        target="trivial net <= 35 us over the bare loop, resnet9_rate >= 0.98, same weights", holds=holds,
        control_median=small.control, control_p90=small.control_p90, overhead_us_per_iteration=small.overhead_us,
        ms_per_iteration=small.ms_per_iteration, same_weights=small.same_weights and trivial.same_weights,
        trivial_overhead_us=trivial.overhead_us, trivial_us_per_iteration=trivial.ms_per_iteration * 1e3,
        trivial_ratio=trivial.ratio, trivial_control=trivial.control, deepcv=_DEEPCV, bare=_BARE, **more,
    )  # fmt: skip


if __name__ == "__main__":
    main()
