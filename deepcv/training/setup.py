"""What a training is made of before its first step: network, loader and optimizer, from a spec, shards and settings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from ignite.handlers import EMAHandler
from numpy.typing import NDArray
from torch import fx, nn

from deepcv.data.augmentation import Augmentation, permutation
from deepcv.data.loaders import Crops, TrainLoader
from deepcv.data.packed import PackedImages
from deepcv.data.shards import Dataset, Split
from deepcv.errors import DeepcvError
from deepcv.nn import parts
from deepcv.nn.classifier import Classifier, ModelInfo, create
from deepcv.nn.layers.whitening import WhiteningConv2d
from deepcv.nn.spec import NetworkSpec
from deepcv.task import Task
from deepcv.training import distributed, sharding
from deepcv.training.config import TrainConfig
from deepcv.training.distributed import ALONE, World
from deepcv.training.engine import Objective
from deepcv.training.hardware import Hardware, keep_freed_memory, resolve
from deepcv.training.hyperparameters import Settings
from deepcv.training.objective import Images, class_counts, create_objective, further_outputs
from deepcv.training.optimizers import create_optimizer
from deepcv.training.start import Start

_WHITENING_IMAGES = 5_000
_WHITENING_CROPS = 500  # which are larger, and each must be decoded


@dataclass(frozen=True)
class Setup:
    """A training before its first step."""

    hardware: Hardware
    info: ModelInfo
    classifier: Classifier
    loader: TrainLoader
    optimizer: torch.optim.Optimizer
    ema: EMAHandler | None


def set_up(
    spec: NetworkSpec, shards: Dataset, config: TrainConfig, *, start: Start | None = None, world: World = ALONE
) -> Setup:
    """Build network, loader and optimizer, the network's weights drawn from `config.seed` or those of `start`."""
    if config.balance and shards.task.kind != "classification":
        raise DeepcvError(f"train.balance is for classes, and preprocess.target is {shards.task.of}; set it to 0")
    hardware = resolve(config.device, config.precision, config.channels_last, config.threads, config.processes)
    device = hardware.torch_device
    torch.set_num_threads(hardware.threads)
    keep_freed_memory()
    torch.manual_seed(config.seed)
    # A GPU that picks its kernels by timing them computes other last bits in another run.
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = config.deterministic, not config.deterministic
    mean, std = start.normalisation(shards) if start else (shards.mean, shards.std)
    info = ModelInfo(
        shards.name, shards.classes, shards.recipe, mean, std, config.test_time_views, shards.task,
        further_outputs(config, shards.further),
    )  # fmt: skip
    classifier = create(spec.canonical(), info)
    if start:
        start.load_into(classifier.network)
    freeze(classifier.network, config.freeze)
    parts.unfreeze(
        classifier.network, *config.unfreeze
    )  # the optimizer must know them; `thaw` holds them until their epoch
    classifier = classifier.to(device).to(memory_format=hardware.memory_format)
    loader = TrainLoader(
        training_images(shards, config), batch_size=config.batch_size,
        augmentation=Augmentation(config.flip, config.shift, config.cutout), seed=config.seed, device=device,
        recipe=config.augmentation, classes=len(shards.classes), views=config.views, balance=config.balance,
        rank=world.rank, ranks=world.count,
    )  # fmt: skip
    if not start and any(isinstance(module, WhiteningConv2d) for module in classifier.network.modules()):
        count = _WHITENING_IMAGES if isinstance(shards.train, Split) else _WHITENING_CROPS
        classifier.fit_whitening(loader.plain(permutation(config.seed, 0, len(loader.targets), device)[:count]))
    if loader.batch_size == 1:
        check_norms(classifier.network)
    distributed.prepare(classifier, world, hardware.device)
    ema = EMAHandler(classifier, momentum=1 - config.ema) if config.ema else None
    if config.fsdp and world.count > 1:
        for model in [classifier, *([ema.ema_model] if ema else [])]:
            sharding.shard(model, hardware.device, world.count)
    optimizer = create_optimizer(classifier, config)
    return Setup(hardware, info, classifier, loader, optimizer, ema)


def objective_of(setup: Setup, config: TrainConfig, settings: Settings) -> Objective:
    """What a training minimises. Raises DeepcvError where its losses do not fit the network or the task."""
    size, counts = len(setup.info.classes), None
    if setup.info.task.kind == "classification":
        counts = class_counts(setup.loader.targets_of(setup.loader.order()), size)
    images = Images(setup.info.input_shape, setup.classifier.normalise)
    outputs = output_shapes(setup.classifier.network)
    further = {name: targets.shape[1] for name, targets in setup.loader.further.items()}
    return create_objective(config, settings, outputs, setup.info.task, size, counts, images, further)


def output_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """The outputs of a network and their shapes for one image."""
    assert isinstance(network, fx.GraphModule)  # noqa: S101  # for mypy
    outputs: Any = network.graph.output_node().args[0]
    return {name: tuple(node.meta["shape"]) for name, node in outputs.items()}


def training_images(shards: Dataset, config: TrainConfig) -> Split | Crops:
    """Return what the loader takes: the prepared images, or random crops of the encoded ones; numbers with mean 0 and deviation 1."""
    found: Split | Crops
    if isinstance(shards.train, PackedImages):
        from deepcv.data.crops import random_crops  # needs OpenCV; a GPU machine may have torch and ignite alone

        found = random_crops(shards.train, shards.recipe, seed=config.seed, least_area=config.least_crop)
    else:
        found = shards.train
    further = {target.of: _scaled(found.further[target.of], target.task) for target in shards.further}
    return replace(found, labels=_scaled(found.labels, shards.task), further=further)


def _scaled(targets: NDArray[Any], task: Task) -> NDArray[Any]:
    """Numbers (n, k) with mean 0 and deviation 1 over the train images; others as they are."""
    if task.kind != "regression":
        return targets
    scaled: NDArray[Any] = (targets - np.array(task.mean)) / np.array(task.std)
    return scaled.astype(np.float32)


def freeze(network: nn.Module, names: Sequence[str]) -> None:
    """Let the named parts learn nothing. Raises PartError where there is no such part, or nothing is left that learns."""
    parts.freeze(network, *names)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise parts.PartError(f"train.freeze {list(names)}: no parameter is left that learns")


def thaw(classifier: Classifier, config: TrainConfig, epoch: int) -> None:
    """Let those parts of `unfreeze` learn whose epoch has come, and those whose epoch has not, not."""
    for part, first in config.unfreeze.items():
        (parts.unfreeze if epoch >= first else parts.freeze)(classifier.network, part)


def check_norms(network: nn.Module) -> None:
    """Raise DeepcvError where a batch of one image gives a batch norm one value per channel: it has no variance."""
    assert isinstance(network, fx.GraphModule)  # noqa: S101  # for mypy
    for node in network.graph.find_nodes(op="call_module"):
        norm = isinstance(network.get_submodule(node.target), nn.BatchNorm1d | nn.BatchNorm2d)
        if norm and math.prod(node.meta["shape"][1:]) == 1:
            raise DeepcvError(
                f"node {node.target!r}: a batch norm of one value per channel needs batches of two or more images; "
                "raise train.batch_size (a batch has no more than the train split)"
            )
