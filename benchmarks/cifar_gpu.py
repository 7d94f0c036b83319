"""All GPU rows in one call: DeepCV's recipes against airbench's scripts on the same prepared images, zoo networks against their
peers, and the tests of what a GPU must not change.

    python -m benchmarks.cifar_gpu --path SHARDS --airbench94 airbench94_muon.py --airbench96 airbench96_faster.py [--runs 10]
        [--airbench-package FOLDER]     PyPI's older airbench too: `pip download --no-deps airbench`, its folder `airbench` unpacked
    python -m benchmarks.cifar_gpu --path SHARDS --quick     DeepCV's side in seconds, networks and trainings tiny, without a GPU too

SHARDS is a folder of shards (benchmarks.shards makes one of the tar); docs/results.md tells how to carry all of it to a machine that
has torch, OpenCV and no DVC. Each row is left out where it is not asked for. Both sides train on the train split and are judged on the
test split with the same six views; each compiles in a run that does not count, and in front of the clock; airbench96, of which the
accuracy alone counts, does not. While airbench94 compiles, which takes minutes, the rows of which no time counts are measured; when
the clock starts nothing else runs. airbench's clock holds its whitening, its steps and its last evaluation; DeepCV's holds these and
its judgement of every epoch on val, with every epoch going to MLflow (SQLite). Without checkpoints: a training of seconds needs none.
The package compiles nothing; its row, `fast_package`, is reported and not judged.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch

from benchmarks.result import ROOT, emit
from benchmarks.trainings import params_of, some, test_accuracy, with_train_images
from deepcv.data.loaders import TrainLoader
from deepcv.data.shards import Dataset, open_shards
from deepcv.nn.spec import NetworkSpec, load
from deepcv.stages.training_log import TrainingLog
from deepcv.training.config import TrainConfig
from deepcv.training.fit import fit
from deepcv.training.setup import set_up

TIMES, GOAL, POINTS, ACCURATE_S = 1.5, 1.15, -0.2, 240.0
_WHITENING_IMAGES = 5_000
_QUICK_IMAGES, _QUICK_BATCH, _QUICK_WIDTH = 256, 64, 4


def synchronise() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def whitening_s(network: NetworkSpec, shards: Dataset, config: TrainConfig) -> float:
    """What computing the whitening filters takes, the median of five."""
    setup = set_up(network, shards, config)
    count = min(_WHITENING_IMAGES, len(setup.loader.targets))
    images = setup.loader.plain(torch.arange(count, device=setup.hardware.torch_device))
    spent = []
    for _ in range(5):
        synchronise()
        began_s = time.perf_counter()
        setup.classifier.fit_whitening(images)
        synchronise()
        spent.append(time.perf_counter() - began_s)
    return statistics.median(spent)


def trained(network: NetworkSpec, shards: Dataset, config: TrainConfig, name: str) -> tuple[float, float]:
    """Test accuracy of one training, and the seconds from its first step to that accuracy, tracking on."""
    log = TrainingLog("cifar-gpu", name, {"params": {}, "hardware": {}, "data_digest": "", "network_sha256": ""})
    began_s = 0.0

    def begin(_loader: TrainLoader) -> None:
        nonlocal began_s
        synchronise()
        began_s = time.perf_counter()

    fitted = fit(network, shards, config, on_start=begin, on_epoch=log.epoch)
    fit_s = time.perf_counter() - began_s
    accuracy = test_accuracy(fitted, shards)
    spent_s = time.perf_counter() - began_s
    log.end("FINISHED")
    print(
        f"{name}: test {accuracy:.4f}, val {fitted.history[-1].val_accuracy:.4f} in {spent_s:.2f} s (training {fit_s:.2f})",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    return accuracy, spent_s


def ours(example: str, shards: Dataset, runs: int, *, timed: bool, quick: bool) -> dict[str, list[float]]:
    """Accuracies and seconds of an example's recipe, where it is `timed` after a training that does not count."""
    params = params_of(example)
    config = TrainConfig.of(params.configuration())
    if quick:
        config = replace(config, epochs=2, batch_size=min(config.batch_size, _QUICK_BATCH), compile=False)
    parameters = {**params.network_parameters, **({"width": _QUICK_WIDTH} if quick else {})}
    network = load(ROOT / params.network, parameters, params.network_choices)
    if timed:
        trained(network, shards, replace(config, seed=1000, epochs=2), f"{example} warm-up")
    extra_s = whitening_s(network, shards, config)
    print(f"{example}: whitening takes {extra_s:.3f} s", file=sys.stderr, flush=True)
    found = [trained(network, shards, replace(config, seed=seed), f"{example} {seed}") for seed in range(runs)]
    return {"accuracies": [one[0] for one in found], "seconds": [one[1] + extra_s for one in found]}


def little(shards: Dataset) -> Dataset:
    """The dataset with few images in each split."""
    val, test = (some(split, min(_QUICK_IMAGES, len(split.labels))) for split in (shards.val, shards.test))
    return replace(with_train_images(shards, min(_QUICK_IMAGES, len(shards.train.labels))), val=val, test=test)


class Module:
    """A module that runs in a process of its own and prints a line of JSON; it ends with the block."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-W", "ignore", "-m", *arguments]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def printed(self) -> dict[str, Any]:
        """The line, after one went to its input."""
        text, _ = self._process.communicate("\n")
        if self._process.returncode:
            raise SystemExit(f"{self._process.args!r} failed with {self._process.returncode}")
        found: dict[str, Any] = json.loads(text.splitlines()[-1])
        print(found, file=sys.stderr, flush=True)
        return found


def airbench(script: Path, shards: Path, runs: int, timed: bool) -> Module:
    """A script of airbench; where it is `timed` it is compiled, and its runs wait until its line is asked for."""
    arguments = ["benchmarks.airbench_peer", str(script.resolve()), str(shards.resolve()), str(runs)]
    return Module(*arguments, "--wait" if timed else "--eager")


def tests() -> str:
    """What pytest says at the end of the tests that need a GPU, and of those of the draws."""
    files = ("tests/training/test_gpu.py", "tests/data/augmentation/test_draws.py")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.PIPE, text=True)
    print(done.stdout[-3000:], file=sys.stderr, flush=True)
    return f"exit {done.returncode}: {done.stdout.splitlines()[-1]}"


def compared(example: str, theirs: dict[str, Any] | None, own: dict[str, Any], timed: bool) -> dict[str, Any]:
    """Both sides of a row, or ours alone: means over the runs, and the ratio of the median times where both are `timed`."""
    sides = {"airbench": theirs, "deepcv": own} if theirs else {"deepcv": own}
    row: dict[str, Any] = {
        f"{side}_{key}": round(value, 4)
        for side, values in sides.items()
        for key, value in (
            ("accuracy", statistics.mean(values["accuracies"])),
            ("accuracy_std", statistics.stdev(values["accuracies"]) if len(values["accuracies"]) > 1 else 0.0),
            ("s", statistics.median(values["seconds"])), ("slowest_s", max(values["seconds"])),
        )
    }  # fmt: skip
    if theirs:
        row["points"] = round(100 * (row["deepcv_accuracy"] - row["airbench_accuracy"]), 2)
    if theirs and timed:
        row["times"] = round(row["deepcv_s"] / row["airbench_s"], 3)
    row["runs"] = len(own["accuracies"])
    print(f"{example}: {row}", file=sys.stderr, flush=True)
    return row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, required=True, help="a folder of shards")
    parser.add_argument("--airbench94", type=Path, help="airbench94_muon.py; without it the row is left out")
    parser.add_argument("--airbench96", type=Path, help="airbench96_faster.py; without it the row is left out")
    parser.add_argument("--airbench-package", type=Path, help="PyPI's package airbench, a folder; without it no row")
    parser.add_argument("--runs", type=int, default=10, help="of the fast recipe, each side")
    parser.add_argument("--tests", action="store_true", help="also run the tests that need a GPU")
    parser.add_argument("--networks", action="store_true", help="also run benchmarks.network_gpu")
    parser.add_argument("--accurate-runs", type=int, default=2, help="of the accurate recipe, each side")
    parser.add_argument("--quick", action="store_true", help="tiny networks and trainings of DeepCV alone")
    options = parser.parse_args()
    if options.quick and (options.airbench94 or options.airbench96 or options.airbench_package):
        parser.error("--quick runs DeepCV's side alone; leave the scripts of airbench out")
    if options.quick:
        options.runs = options.accurate_runs = 1
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as state, ExitStack() as processes:
        os.environ["DEEPCV_HOME"] = state
        shards, path, quick = open_shards(options.path), options.path, options.quick
        if quick:
            shards = little(shards)
        if quick or options.airbench94 or options.airbench_package:
            fast_ours = ours("cifar10-jpeg-gpu", shards, options.runs, timed=True, quick=quick)
        if options.airbench94:
            fast_theirs = processes.enter_context(airbench(options.airbench94, path, options.runs, timed=True))
        if quick or options.airbench96:
            runs, theirs = options.accurate_runs, None
            if options.airbench96:
                with airbench(options.airbench96, path, runs, timed=False) as peer:
                    theirs = peer.printed()
            accurate_ours = ours("cifar10-jpeg-accurate", shards, runs, timed=False, quick=quick)
            rows["accurate"] = compared("cifar10-jpeg-accurate", theirs, accurate_ours, timed=False)
        if options.tests:
            rows["tests"] = tests()
        if quick:
            rows["fast"] = compared("cifar10-jpeg-gpu", None, fast_ours, timed=True)
        if options.airbench94:
            rows["fast"] = compared("cifar10-jpeg-gpu", fast_theirs.printed(), fast_ours, timed=True)
        if options.airbench_package:  # beside nothing else, as it has a clock
            with airbench(options.airbench_package, path, options.runs, timed=True) as peer:
                rows["fast_package"] = compared("cifar10-jpeg-gpu", peer.printed(), fast_ours, timed=True)
        if options.networks:
            with Module("benchmarks.network_gpu", "--units", "6") as peer:
                rows["networks"] = peer.printed()
    fast, accurate = rows.get("fast"), rows.get("accurate")
    holds = (
        rows.get("tests", "exit 0").startswith("exit 0")
        and rows.get("networks", {"holds": True})["holds"]
        and (fast is None or options.quick or (fast["points"] >= 0 and fast["times"] <= TIMES))
        and (accurate is None or options.quick or accurate["points"] >= POINTS)
        and (accurate is None or accurate["deepcv_slowest_s"] <= ACCURATE_S)
    )
    emit(
        "cifar-gpu", value=fast["deepcv_s"] if fast else 0.0, baseline=fast.get("airbench_s") if fast else None,
        target=f"airbench94's mean accuracy in <= {TIMES} x its time (goal {GOAL}); airbench96's {POINTS} in <= {ACCURATE_S:g} s",
        holds=holds, n=options.runs, **rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()
