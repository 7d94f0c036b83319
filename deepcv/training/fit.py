"""Train a network: from a spec and shards to a classifier with its learning curve."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from numpy.typing import NDArray
from torch import fx, nn

from deepcv.data.augmentation import DROPOUT, Augmentation, hash32, permutation
from deepcv.data.loaders import Crops, TrainLoader
from deepcv.data.packed import PackedImages
from deepcv.data.shards import Dataset, Split
from deepcv.errors import DeepcvError
from deepcv.evaluation import metrics
from deepcv.evaluation.inference import outputs_of
from deepcv.nn import parts
from deepcv.nn.classifier import Classifier, ModelInfo, answering, build_network, create, save
from deepcv.nn.layers.whitening import WhiteningConv2d
from deepcv.nn.spec import NetworkSpec
from deepcv.task import Task
from deepcv.training import checkpoints as checkpointing
from deepcv.training import distributed, sharding
from deepcv.training.compilation import compiled
from deepcv.training.config import TrainConfig
from deepcv.training.distributed import ALONE, World
from deepcv.training.engine import DivergedError, Objective, Pieces, RunningMetrics, check_weights, create_trainer
from deepcv.training.hardware import Hardware, keep_freed_memory, resolve
from deepcv.training.history import Best, EpochRecord, History
from deepcv.training.hyperparameters import Hyperparameters, Settings, scheduled
from deepcv.training.objective import (
    Images,
    class_counts,
    create_objective,
    divisible,
    further_outputs,
    trained_outputs,
)
from deepcv.training.optimizers import create_optimizer
from deepcv.training.progress import show_progress
from deepcv.training.sharding import WholeModel, WholeOptimizer
from deepcv.training.start import Start

_EVALUATION_BATCH = 500
_WHITENING_IMAGES = 5_000
_WHITENING_CROPS = 500  # which are larger, and each must be decoded


@dataclass(frozen=True)
class Fitted:
    """A trained classifier, its learning curve and the settings that `auto` became."""

    classifier: Classifier
    info: ModelInfo
    history: tuple[EpochRecord, ...]
    hardware: Hardware


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


def fit(
    spec: NetworkSpec,
    shards: Dataset,
    config: TrainConfig,
    *,
    start: Start | None = None,
    checkpoints: Path | None = None,
    on_start: Callable[[TrainLoader], None] = lambda _loader: None,
    on_epoch: Callable[[EpochRecord], None] = lambda _record: None,
    interrupted: Callable[[], bool] = lambda: False,
    progress: bool = False,
) -> Fitted:
    """Train on `shards.train`, judging each epoch on `shards.val`; `start` has weights for the network, instead of random ones.

    Images are normalised as those weights expect, where that is known, else by the statistics of the train split.
    The result depends on the arguments and the hardware settings alone: with `checkpoints`, a killed training that is called
    again goes on after its last checkpoint and ends with the same bits. `on_start` is called with the loader before the first
    step of a training that does not go on, `on_epoch` after every epoch, restored ones first. When `interrupted` says so, the
    state is saved after the step and InterruptedTrainingError raised. With `config.processes` this is called by each process
    that `torchrun` started: all return the same, the first one alone makes these calls and writes.
    """
    world = joined(config)
    setup = set_up(spec, shards, config, start=start, world=world)
    hardware, classifier, loader, optimizer = setup.hardware, setup.classifier, setup.loader, setup.optimizer
    device = hardware.torch_device
    small_epochs = config.progressive_resize.epochs(config.epochs)
    small = config.progressive_resize.size(*shards.input_shape[1:])
    if small_epochs:
        check_size(classifier, spec, shards, config, small)
    courses = scheduled(config, config.epochs * len(loader))
    settings = Settings.of(config)
    objective = objective_of(setup, config, settings)
    ema = setup.ema
    judged: Classifier = ema.ema_model if ema else classifier
    answers = answering(setup.info.further)
    weights = WholeModel(judged)
    hyperparameters = Hyperparameters(
        courses, config=config, settings=settings, model=classifier, optimizer=optimizer, loader=loader, mean=judged
    )
    running, pieces, history, best = RunningMetrics(device, world, shards.task), Pieces(), History(), Best()
    random, scaler = checkpointing.RandomState(device, world), hardware.scaler()
    model: nn.Module = classifier
    if config.compile:
        loader.size = small if small_epochs else None
        model = compiled(classifier, config.compile, next(iter(loader)), hardware)
    trainer = create_trainer(
        distributed.replicated(
            model, world, outputs=output_shapes(classifier.network), trained=trained_outputs(config),
            partly=bool(config.unfreeze),
        ),
        optimizer, objective, hyperparameters, settings, running,
        autocast=hardware.autocast(), scaler=scaler, pieces=pieces, divisible=divisible(config),
    )  # fmt: skip
    if ema:
        ema.attach(trainer, event=Events.ITERATION_COMPLETED(event_filter=lambda engine, _: bool(engine.state.output)))

    def alone() -> Classifier:
        """The judged classifier with whole weights, and without layers that wait for other processes; all must ask for it."""
        if world.count == 1:
            return judged
        made = create(spec.canonical(), setup.info)
        made.load_state_dict(weights.state_dict())
        return made.to(memory_format=hardware.memory_format)

    def judge(images_nhwc: NDArray[Any]) -> NDArray[np.float32]:
        """Logits and the outputs that answer further targets, side by side: processes exchange one array."""
        outputs = outputs_of(
            judged, images_nhwc, ["logits", *answers], batch_size=_EVALUATION_BATCH, device=device,
            memory_format=hardware.memory_format, autocast=hardware.autocast(),
        )  # fmt: skip
        return np.concatenate(outputs, axis=1)

    def begin_epoch(engine: Engine) -> None:
        loader.epoch = engine.state.epoch - 1
        loader.size = small if loader.epoch < small_epochs else None
        loader.first = engine.state.iteration % len(loader)  # not 0 where a checkpoint of within an epoch was restored
        thaw(classifier, config, engine.state.epoch)
        hyperparameters.begin_epoch(loader.epoch * len(loader), history.rows())
        if loader.first:
            random.apply()
            return
        running.reset()
        drawn = hash32(config.seed, loader.epoch, torch.tensor([world.rank]), DROPOUT)
        torch.manual_seed(int(drawn))  # dropout repeats after a resume without its generator being stored

    def end_epoch(engine: Engine) -> None:
        epoch = engine.state.epoch
        train_loss, train_accuracy = running.read()
        made = world.by_rows(judge, shards.val.images_nhwc)
        sizes = [len(target.names) for target in answers.values()]  # so wide is each output behind the logits
        logits, *others = np.split(made, made.shape[1] - np.cumsum(sizes[::-1])[::-1], axis=1)
        with np.errstate(invalid="ignore"):  # infinite logits; said below
            val_loss = float(metrics.losses(shards.task, logits, shards.val.labels).mean())
        if not math.isfinite(loss := train_loss + val_loss):  # train_loss does not know the epoch's last step
            raise DivergedError(epoch, loss)
        if ema:
            check_weights(classifier, epoch)
        world.check_equal(classifier)
        lr = hyperparameters.courses["lr"].at(epoch * len(loader), history.rows())
        accuracy = metrics.score(shards.task, logits, shards.val.labels)
        further = {
            f"{target.of}.{target.task.score_name}": metrics.score(target.task, output, shards.val.further[target.of])
            for target, output in zip(answers.values(), others, strict=True)
        }
        record = EpochRecord(epoch, train_loss, train_accuracy, val_loss, accuracy, lr, further)
        history.records.append(record)
        if config.select == "best":
            best.offer(record, weights)
        if config.keep_best and checkpoints:
            write = partial(save, classifier=alone(), canonical_spec=spec.canonical(), info=setup.info)
            if world.leads:
                checkpointing.keep_best(checkpoints, history.records, config.keep_best, write)
        if world.leads:
            on_epoch(record)
        if history.waited() >= config.patience > 0:
            engine.terminate()

    trainer.add_event_handler(Events.EPOCH_STARTED, begin_epoch)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, end_epoch)
    if checkpoints is not None:
        state: dict[str, Any] = {
            "trainer": trainer, "model": WholeModel(classifier), "optimizer": WholeOptimizer(optimizer), "scaler": scaler,
            "history": history, "running": running, "random": random, "pieces": pieces, "best": best,
        }  # fmt: skip
        if ema:
            state["ema"] = weights
        with idist.one_rank_first():  # which sets damaged ones aside
            checkpointing.restore_latest(checkpoints, state)
        world.check_place(trainer.state.iteration)
        for restored in history.records if world.leads else ():
            on_epoch(restored)
        checkpointing.attach(
            trainer, checkpointing.Saver(checkpoints, state), every_s=60 * config.checkpoint_minutes,
            check=lambda: check_weights(classifier, trainer.state.epoch), interrupted=interrupted, world=world,
        )  # fmt: skip
    if not trainer.state.iteration:
        hyperparameters.begin_epoch(0, [])
        if world.leads:
            on_start(loader)
    if progress and world.leads:
        show_progress(
            trainer,
            history,
            config.epochs,
            len(loader),
            trainer.state.iteration,
            loader.batch_size,
            shards.task.score_name,
        )
    if trainer.state.iteration < config.epochs * len(loader) and not (history.waited() >= config.patience > 0):
        trainer.run(loader, max_epochs=config.epochs, epoch_length=len(loader))
    if config.select == "best":
        best.put_into(weights)
    return Fitted(alone().cpu(), setup.info, tuple(history.records), hardware)


def joined(config: TrainConfig) -> World:
    """The processes that train together. Raises DeepcvError where there are more or less, or a loss compares images of them."""
    hardware = resolve(config.device, config.precision, config.channels_last, config.threads, config.processes)
    if hardware.processes > 1 and not divisible(config):
        raise DeepcvError(
            "train.losses compares the images of a batch, of which each process sees a share; set train.processes to 1"
        )
    sharding.check(config, hardware.processes)
    return distributed.join(hardware.processes, hardware.device)


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


def thaw(classifier: Classifier, config: TrainConfig, epoch: int) -> None:
    """Let those parts of `unfreeze` learn whose epoch has come, and those whose epoch has not, not."""
    for part, first in config.unfreeze.items():
        (parts.unfreeze if epoch >= first else parts.freeze)(classifier.network, part)


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


def check_size(
    classifier: Classifier, spec: NetworkSpec, shards: Dataset, config: TrainConfig, size: tuple[int, int]
) -> None:
    """Raise DeepcvError where the network would have other parameters for images of `size` (height, width)."""
    what = f"train.progressive_resize makes images of {size[0]}×{size[1]}, which the network does not take"
    hint = "one that ends in a global pool takes most sizes; or set train.progressive_resize.until to 0"
    images = (shards.input_shape[0], *size)
    try:
        network = build_network(spec, images, len(shards.classes))
    except DeepcvError as error:
        raise DeepcvError(f"{what}: {error}; {hint}") from error
    smaller, outputs = network.state_dict(), output_shapes(network)
    for term in config.losses:
        if term.target == "images" and (shape := outputs.get(term.output, images)) != images:
            raise DeepcvError(
                f"{what}: its output {term.output}, which learns them, would have the shape {shape}; {hint}"
            )
    for name, value in classifier.network.state_dict().items():
        if value.shape != smaller[name].shape:
            shapes = f"{tuple(smaller[name].shape)} instead of {tuple(value.shape)}"
            raise DeepcvError(f"{what}: {name} would be {shapes}; {hint}")


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
