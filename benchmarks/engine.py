"""What ignite's Engine costs: DeepCV's training loop against the same loop in bare PyTorch.

    python -m benchmarks.engine [--quick] [--path cifar10-jpeg.tar.gz]

On the default digits network and on a trivial one (one linear layer), and with `--path` ResNet-9 on CIFAR-10-JPEG. OneCycle,
running loss and accuracy, nan guard and progress bar on; with ResNet-9 also tracking and checkpoints, as the stage has them. One
thread, CPU seconds of the process. Units of the two loops alternate; a control compares the bare loop with itself in the same run.
"""

import argparse
import gc
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks.result import ROOT, emit
from benchmarks.trainings import config_of, prepared
from deepcv.data.augmentation import Augmentation
from deepcv.data.loaders import TrainLoader
from deepcv.data.shards import Split
from deepcv.nn import spec
from deepcv.nn.classifier import Classifier, ModelInfo
from deepcv.nn.spec.expand import ZOO
from deepcv.params.base import load_section
from deepcv.params.train import TrainParams
from deepcv.task import CLASSIFICATION
from deepcv.training import checkpoints
from deepcv.training.config import TrainConfig
from deepcv.training.engine import RunningMetrics, create_trainer
from deepcv.training.hardware import Hardware, resolve
from deepcv.training.history import EpochRecord, History
from deepcv.training.hyperparameters import Hyperparameters, Settings, scheduled
from deepcv.training.objective import class_counts, create_objective
from deepcv.training.optimizers import create_optimizer
from deepcv.training.progress import show_progress

_LONG = 1_000_000  # epochs of the schedule: it never ends here
_CHECKPOINT_S = 600.0
_OURS, _SAME_NET = 0.98, 35.0


class Trivial(nn.Module):
    """One linear layer: what is left is the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, images_nchw: Tensor) -> dict[str, Tensor]:
        """Logits (b, 10) of digits."""
        return {"logits": self.head(images_nchw.flatten(1).float() / 255)}


@dataclass(frozen=True)
class Setting:
    """What both loops train."""

    split: Split
    config: TrainConfig
    hardware: Hardware
    network: Callable[[], nn.Module]


class Loop:
    """One training: a network, optimizer and schedule of its own, the same data."""

    def __init__(self, setting: Setting, folder: Path | None = None) -> None:
        torch.manual_seed(0)
        self.config, self.hardware, self.folder = setting.config, setting.hardware, folder
        self.model = setting.network().to(memory_format=setting.hardware.memory_format)
        self.optimizer = create_optimizer(self.model, self.config)
        self.metrics = RunningMetrics(torch.device("cpu"))
        self.history = History([EpochRecord(0, 0.0, 0.0, 0.0, 0.0, 0.0)])  # the bar shows the last one
        augmentation = Augmentation(self.config.flip, self.config.shift, self.config.cutout)
        self.loader = TrainLoader(
            setting.split,
            batch_size=self.config.batch_size,
            augmentation=augmentation,
            seed=0,
            device=torch.device("cpu"),
        )
        # Made by whoever uses them: a scheduler of torch wraps the optimizer's step.
        self.scheduler: torch.optim.lr_scheduler.OneCycleLR | None = None

    def bare(self, epochs: int) -> None:
        """The loop as a script would write it."""
        steps = _LONG * len(self.loader)
        self.scheduler = self.scheduler or torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, self.config.lr, total_steps=steps, pct_start=self.config.warmup, cycle_momentum=False
        )
        loss_fn, autocast = nn.CrossEntropyLoss(label_smoothing=self.config.label_smoothing), self.hardware.autocast()
        for _ in range(epochs):
            self.model.train()
            self.metrics.reset()
            for batch in self.loader:
                with autocast:
                    logits = self.model(batch.images_nchw)["logits"]
                    loss = loss_fn(logits, batch.targets)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.scheduler.step()
                self.metrics.add(loss.detach(), logits.detach(), batch.targets)

    def engine(self, epochs: int) -> None:
        """DeepCV's, with its progress bar, and with its checkpoints where there is a folder."""
        if not hasattr(self, "trainer"):
            self._create()
        first = self.trainer.state.epoch or 0
        with redirect_stderr(io.StringIO()):
            self.trainer.run(self.loader, max_epochs=first + epochs, epoch_length=len(self.loader))

    def _create(self) -> None:
        config, settings = (
            self.config,
            Settings.of(self.config),
        )
        hyperparameters = Hyperparameters(
            scheduled(config, _LONG * len(self.loader)), config=config, settings=settings, model=self.model,
            optimizer=self.optimizer, loader=self.loader,
        )  # fmt: skip
        objective = create_objective(
            config, settings, {"logits": (10,)}, CLASSIFICATION, 10, class_counts(self.loader.targets, 10)
        )
        self.trainer = create_trainer(
            self.model, self.optimizer, objective, hyperparameters, settings, self.metrics,
            autocast=self.hardware.autocast(),
        )  # fmt: skip
        self.trainer.add_event_handler(Events.EPOCH_STARTED, self.metrics.reset)
        if self.folder:
            state: dict[str, Any] = {"trainer": self.trainer, "model": self.model, "optimizer": self.optimizer}
            checkpoints.attach(
                self.trainer, checkpoints.Saver(self.folder, state), every_s=_CHECKPOINT_S, check=lambda: None,
                interrupted=lambda: False,
            )  # fmt: skip
        with redirect_stderr(io.StringIO()):
            show_progress(self.trainer, self.history, _LONG, len(self.loader), 0, self.loader.batch_size)


@dataclass(frozen=True)
class Comparison:
    """Medians over pairs; ratios are CPU seconds over those of the bare loop."""

    ratio: float
    control: float
    control_p90: float
    overhead_us: float
    ms_per_iteration: float
    same_weights: bool


def compare(setting: Setting, pairs: int, epochs: int, folder: Path | None = None) -> Comparison:
    """Interleave DeepCV's loop, the bare one and the bare one again."""
    ours, bare, control = Loop(setting, folder), Loop(setting), Loop(setting)
    for run in (ours.engine, bare.bare, control.bare):
        run(1)  # warm-up
    iterations = epochs * len(ours.loader)
    ratios, controls, differences_us, units = [], [], [], []
    for pair in range(pairs):
        runs = [("engine", ours.engine), ("bare", bare.bare), ("control", control.bare)]
        order = runs[pair % 3 :] + runs[: pair % 3]
        cpu = {name: cpu_of(run, epochs) for name, run in order}
        ratios.append(cpu["engine"] / cpu["bare"])
        controls.append(cpu["control"] / cpu["bare"])
        differences_us.append((cpu["engine"] - cpu["bare"]) / iterations * 1e6)
        units.append(cpu["bare"] / iterations * 1e3)
    same = all(
        torch.equal(a, b)
        for a, b in zip(ours.model.state_dict().values(), bare.model.state_dict().values(), strict=True)
    )
    p90 = statistics.quantiles(controls, n=10)[-1] if len(controls) > 1 else controls[0]
    return Comparison(
        statistics.median(ratios), statistics.median(controls), p90, statistics.median(differences_us),
        statistics.median(units), same,
    )  # fmt: skip


def cpu_of(run: Callable[[int], None], epochs: int) -> float:
    """CPU seconds of `epochs` epochs."""
    gc.collect()
    start = time.process_time()
    run(epochs)
    return time.process_time() - start


def digits_setting(params: TrainParams, network: Callable[[], nn.Module] | None = None) -> Setting:
    """The default network, or another, on digits."""
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, :, :, None]
    info = ModelInfo(
        "digits", tuple("0123456789"), {"channels": 1, "height": 8, "width": 8, "resize": "stretch"}, (0.3,), (0.4,)
    )

    def default() -> nn.Module:
        file = spec.load(ROOT / params.network, params.network_parameters, params.network_choices)
        return Classifier(spec.build(file, input_shape=(1, 8, 8), classes=10), info)

    config = TrainConfig.of(params.configuration())
    split = Split(images[:1259], digits.target[:1259].astype(np.int64))
    return Setting(split, config, resolve("cpu", "fp32", config.channels_last, 1), network or default)


def resnet_setting(tar: Path, folder: Path, images: int) -> Setting:
    """ResNet-9 on the first CIFAR images, as examples/cifar10-jpeg.yaml trains."""
    shards = prepared(tar, folder)
    config = replace(config_of("cifar10-jpeg"), batch_size=128, optimizer="sgd")
    info = ModelInfo(shards.name, shards.classes, shards.recipe, shards.mean, shards.std)

    def network() -> nn.Module:
        return Classifier(spec.build(spec.load(ZOO / "resnet-9.yaml", {"width": 16}), shards.input_shape, 10), info)

    split = Split(shards.train.images_nhwc[:images], shards.train.labels[:images])
    return Setting(split, config, resolve("cpu", "auto", config.channels_last, 1), network)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer pairs, within 60 s")
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--path", type=Path, help="CIFAR-10-JPEG, for ResNet-9")
    options = parser.parse_args()
    pairs = 12 if options.quick else options.pairs
    torch.set_num_threads(1)
    params = load_section(TrainParams, Path(ROOT / "params.yaml"))
    digits = compare(digits_setting(params), pairs, epochs=2)
    trivial = compare(digits_setting(params, Trivial), pairs, epochs=10)
    more: dict[str, Any] = {}
    holds = digits.same_weights and trivial.same_weights and trivial.overhead_us <= _SAME_NET
    if options.path:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            setting = resnet_setting(options.path, folder, 1280 if options.quick else 2560)
            resnet = compare(setting, max(5, pairs // 4), epochs=1, folder=folder / "checkpoints")
        rate = 1 / resnet.ratio
        holds = holds and resnet.same_weights and rate >= _OURS
        more = {
            "resnet9_rate": rate, "resnet9_control": resnet.control, "resnet9_control_p90": resnet.control_p90,
            "resnet9_ms_per_iteration": resnet.ms_per_iteration, "resnet9_same_weights": resnet.same_weights,
        }  # fmt: skip
    emit(
        "engine", value=digits.ratio, baseline=1.0, n=pairs,
        target="trivial net <= 35 us over the bare loop, resnet9_rate >= 0.98, same weights", holds=holds,
        control_median=digits.control, control_p90=digits.control_p90, overhead_us_per_iteration=digits.overhead_us,
        ms_per_iteration=digits.ms_per_iteration, same_weights=digits.same_weights and trivial.same_weights,
        trivial_overhead_us=trivial.overhead_us, trivial_us_per_iteration=trivial.ms_per_iteration * 1e3,
        trivial_ratio=trivial.ratio, trivial_control=trivial.control, **more,
    )  # fmt: skip


if __name__ == "__main__":
    main()
