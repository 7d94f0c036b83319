"""What ignite's Engine costs: DeepCV's training loop against the same loop in bare PyTorch.

    python -m benchmarks.engine [--quick]

Default digits network and batch, OneCycle, running loss and accuracy, one thread, CPU seconds of the process. Units of
the two loops alternate; a control compares the bare loop with itself in the same run.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from benchmarks.result import ROOT, emit
from deepcv.data.augmentation import Augmentation
from deepcv.data.loaders import TrainLoader
from deepcv.data.shards import Split
from deepcv.nn import spec
from deepcv.nn.classifier import Classifier, ModelInfo
from deepcv.params.base import load_section
from deepcv.params.train import TrainParams
from deepcv.training.engine import RunningMetrics, create_trainer
from deepcv.training.fit import TrainConfig, create_optimizer

_LONG = 1_000_000  # steps of the schedule: it never ends here


class Loop:
    """One training: a network, optimizer and schedule of its own, the same data."""

    def __init__(self, split: Split, params: TrainParams) -> None:
        torch.manual_seed(0)
        config = TrainConfig.of(params.configuration())
        info = ModelInfo(
            "digits", tuple("0123456789"), {"channels": 1, "height": 8, "width": 8, "resize": "stretch"}, (0.3,), (0.4,)
        )
        network = spec.build(
            spec.load(ROOT / params.network, params.network_parameters), input_shape=(1, 8, 8), classes=10
        )
        self.model = Classifier(network, info).to(memory_format=torch.channels_last)
        self.optimizer = create_optimizer(self.model, config)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, config.lr, total_steps=_LONG, cycle_momentum=False
        )
        self.loss_fn = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
        self.metrics = RunningMetrics(torch.device("cpu"))
        self.autocast = torch.autocast("cpu", enabled=False)
        augmentation = Augmentation(config.flip, config.shift, config.cutout)
        self.loader = TrainLoader(
            split, batch_size=config.batch_size, augmentation=augmentation, seed=0, device=torch.device("cpu")
        )

    def bare(self, epochs: int) -> None:
        """The loop as a script would write it."""
        for _ in range(epochs):
            self.model.train()
            self.metrics.reset()
            for batch in self.loader:
                with self.autocast:
                    logits = self.model(batch.images_nchw)["logits"]
                    loss = self.loss_fn(logits, batch.targets)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.scheduler.step()
                self.metrics.add(loss.detach(), logits.detach(), batch.targets)

    def engine(self, epochs: int) -> None:
        """DeepCV's."""
        trainer = create_trainer(
            self.model, self.optimizer, self.loss_fn, self.scheduler, self.metrics, autocast=self.autocast
        )
        trainer.run(self.loader, max_epochs=epochs, epoch_length=len(self.loader))


def cpu_of(run: Callable[[int], None], epochs: int) -> float:
    """CPU seconds of `epochs` epochs."""
    start = time.process_time()
    run(epochs)
    return time.process_time() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer pairs, within 60 s")
    parser.add_argument("--pairs", type=int, default=60)
    pairs = 12 if (options := parser.parse_args()).quick else options.pairs
    torch.set_num_threads(1)
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, :, :, None]
    split = Split(images[:1259], digits.target[:1259].astype(np.int64))
    params = load_section(TrainParams, Path(ROOT / "params.yaml"))
    first, second, control = Loop(split, params), Loop(split, params), Loop(split, params)
    epochs = 2
    iterations = epochs * len(first.loader)
    for loop in (first, second, control):
        loop.bare(1)  # warm-up
    ratios, controls, differences_us = [], [], []
    for pair in range(pairs):
        runs = [("engine", first.engine), ("bare", second.bare), ("control", control.bare)]
        order = runs[pair % 3 :] + runs[: pair % 3]
        cpu = {name: cpu_of(run, epochs) for name, run in order}
        ratios.append(cpu["engine"] / cpu["bare"])
        controls.append(cpu["control"] / cpu["bare"])
        differences_us.append((cpu["engine"] - cpu["bare"]) / iterations * 1e6)
    ratio = statistics.median(ratios)
    same = all(
        torch.equal(a, b)
        for a, b in zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True)
    )
    emit(
        "engine", value=ratio, baseline=1.0, n=pairs,
        target="median CPU ratio <= 1.03, same weights", holds=ratio <= 1.03 and same,
        control_median=statistics.median(controls),
        control_p90=statistics.quantiles(controls, n=10)[-1],
        overhead_us_per_iteration=statistics.median(differences_us),
        ms_per_iteration=cpu["bare"] / iterations * 1e3,
        same_weights=same,
    )  # fmt: skip


if __name__ == "__main__":
    main()
