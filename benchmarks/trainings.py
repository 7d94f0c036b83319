"""What the benchmarks that train share: prepared images, the configuration of an example, accuracy on the test images.

Every `--path` is the tar of CIFAR-10-JPEG, or a folder of shards that an earlier run of the pipeline prepared: these benchmarks
run where there is torch and no DVC, on a GPU machine for example.
"""

import multiprocessing
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import yaml

from benchmarks.checkouts import checkout, environment
from benchmarks.result import ROOT
from deepcv.data.shards import Dataset, Split, open_shards
from deepcv.evaluation import metrics
from deepcv.evaluation.inference import logits_of
from deepcv.lifetime import die_with_parent
from deepcv.nn.spec import NetworkSpec, load
from deepcv.nn.spec.expand import ZOO
from deepcv.params.edit import set_values
from deepcv.params.train import TrainParams
from deepcv.training.config import TrainConfig
from deepcv.training.fit import Fitted

Job = TypeVar("Job")
Found = TypeVar("Found")


def prepared(path: Path, folder: Path, example: str = "cifar10-jpeg") -> Dataset:
    """The shards in `path`, or those that the pipeline makes of a tar with the params of an example, in `folder`."""
    return open_shards(prepared_folder(path, folder, example))


def prepared_folder(path: Path, folder: Path, example: str = "cifar10-jpeg") -> Path:
    """Where the shards of `prepared` lie, for processes that open them themselves."""
    if (path / "dataset.json").exists():
        return path
    project = folder / "project"
    project.mkdir()
    checkout(project)
    (project / "params.yaml").write_text((project / f"examples/{example}.yaml").read_text())
    set_values(project / "params.yaml", {"ingest.path": str(path.resolve())})
    for stage in ("ingest", "validate", "preprocess"):
        command = [sys.executable, "-m", f"deepcv.stages.{stage}"]
        subprocess.run(command, cwd=project, env=environment(project), check=True, stdout=sys.stderr)
    return project / "data/shards"


def params_of(example: str) -> TrainParams:
    """The section `train` of a file of examples/."""
    return TrainParams(**yaml.safe_load((ROOT / f"examples/{example}.yaml").read_text())["train"])


def config_of(example: str) -> TrainConfig:
    """How an example trains."""
    return TrainConfig.of(params_of(example).configuration())


def network_of(text: str) -> NetworkSpec:
    """A network of the command line: a file or a name of the zoo, its parameters behind a colon, `resnet-9:width=24,depth=2`."""
    name, _, given = text.partition(":")
    parameters = {
        key: yaml.safe_load(value) for key, _, value in (one.partition("=") for one in given.split(",") if one)
    }
    return load(ROOT / name if name.endswith(".yaml") else ZOO / f"{name}.yaml", parameters)


def in_parallel(work: Callable[[Job], Found], jobs: Sequence[Job], processes: int) -> list[Found]:
    """What `work`, a function of a module, finds for each job, in order; so many at a time, each in a process of its own.

    These end with this one, however it ends.
    """
    if processes == 1:
        return [work(job) for job in jobs]
    spawn = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    with ProcessPoolExecutor(min(processes, len(jobs)), spawn, die_with_parent, (signal.SIGKILL,)) as pool:
        return list(pool.map(work, jobs))


def some(split: Split, images: int) -> Split:
    """So many images of a split, drawn with seed 0, in the split's order."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(split.labels))[:images])
    return Split(split.images_nhwc[chosen], split.labels[chosen])


def with_train_images(shards: Dataset, images: int) -> Dataset:
    """The dataset with so many of its train images."""
    assert isinstance(shards.train, Split)  # noqa: S101  # examples store decoded images
    return replace(shards, train=some(shards.train, images))


def test_accuracy(fitted: Fitted, shards: Dataset) -> float:
    """Share of the test images that a trained classifier names rightly."""
    return accuracy(fitted, shards.test)


def accuracy(fitted: Fitted, split: Split) -> float:
    """Share of a split's images that a trained classifier names rightly, on the hardware that it was trained on."""
    hardware = fitted.hardware
    classifier = fitted.classifier.to(hardware.torch_device)
    logits = logits_of(
        classifier, split.images_nhwc, batch_size=1000, device=hardware.torch_device,
        memory_format=hardware.memory_format, autocast=hardware.autocast(),
    )  # fmt: skip
    return metrics.accuracy(logits, np.array(split.labels))
