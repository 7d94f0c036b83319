"""Train a network: from a spec and shards to a classifier with its learning curve."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from numpy.typing import NDArray
from torch import nn

from deepcv.data.augmentation import DROPOUT, hash32
from deepcv.data.loaders import TrainLoader
from deepcv.data.shards import Dataset
from deepcv.errors import DeepcvError
from deepcv.evaluation import metrics
from deepcv.evaluation.inference import Pieces, outputs_of
from deepcv.nn.classifier import Classifier, ModelInfo, answering, build_network, create, save
from deepcv.nn.spec import NetworkSpec
from deepcv.training import checkpoints as checkpointing
from deepcv.training import distributed, sharding
from deepcv.training.compilation import compiled
from deepcv.training.config import TrainConfig
from deepcv.training.distributed import World
from deepcv.training.engine import DivergedError, RunningMetrics, check_weights, create_trainer
from deepcv.training.hardware import Hardware, resolve
from deepcv.training.history import Best, EpochRecord, History, Point
from deepcv.training.hyperparameters import Hyperparameters, Settings, scheduled
from deepcv.training.objective import divisible, trained_outputs
from deepcv.training.progress import show_progress
from deepcv.training.setup import objective_of, output_shapes, set_up, thaw
from deepcv.training.sharding import WholeModel, WholeOptimizer
from deepcv.training.start import Start

_EVALUATION_BATCH = 500


@dataclass(frozen=True)
class Fitted:
    """A trained classifier, its learning curve, the settings that `auto` became and in how many pieces a batch was taken."""

    classifier: Classifier
    info: ModelInfo
    history: tuple[EpochRecord, ...]
    points: tuple[Point, ...]
    hardware: Hardware
    pieces: int


def fit(
    spec: NetworkSpec,
    shards: Dataset,
    config: TrainConfig,
    *,
    start: Start | None = None,
    checkpoints: Path | None = None,
    on_start: Callable[[TrainLoader], None] = lambda _loader: None,
    on_point: Callable[[Point], None] = lambda _point: None,
    on_epoch: Callable[[EpochRecord], None] = lambda _record: None,
    on_note: Callable[[Mapping[str, float]], None] = lambda _note: None,
    interrupted: Callable[[], bool] = lambda: False,
    progress: bool = False,
) -> Fitted:
    """Train on `shards.train`, judging each epoch on `shards.val`; `start` has weights for the network, instead of random ones.

    Images are normalised as those weights expect, where that is known, else by the statistics of the train split.
    The result depends on the arguments and the hardware settings alone: with `checkpoints`, a killed training that is called
    again goes on after its last checkpoint and ends with the same bits. `on_start` is called with the loader before the first
    step of a training that does not go on, `on_point` at every point within an epoch and `on_epoch` after every epoch, restored
    ones first, and `on_note` with what is worth keeping of how it went: `pieces` where memory did not suffice, with `progress`
    the `images_per_s`. When `interrupted` says so, the state is saved after the step and InterruptedTrainingError raised. With
    `config.processes` this is called by each process that `torchrun` started: all return the same, the first one alone makes
    these calls and writes.
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
    running, best = RunningMetrics(device, world, shards.task), Best()
    history = History(every=config.log_every)
    if world.leads:
        history.on_point = on_point
    pieces = Pieces(fixed=world.count > 1, tell=lambda count: on_note({"pieces": count}))
    judged_pieces = Pieces(fixed=config.fsdp)
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
        history=history,
    )  # fmt: skip
    if ema:
        after_step = Events.ITERATION_COMPLETED(event_filter=lambda engine, _: bool(engine.state.output))
        trainer.state_dict_user_keys.append("mean_steps")
        trainer.state.mean_steps = 0
        trainer.add_event_handler(after_step, warm_up_mean, config.ema)
        ema.attach(trainer, event=after_step)

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
            memory_format=hardware.memory_format, autocast=hardware.autocast(), pieces=judged_pieces,
        )  # fmt: skip
        return np.concatenate(outputs, axis=1) if answers else outputs[0]

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
        check_weights(classifier, epoch)  # which may be some that no val loss depends on
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
            "judged_pieces": judged_pieces,
        }  # fmt: skip
        if ema:
            state["ema"] = weights
        with idist.one_rank_first():  # which sets damaged ones aside
            checkpointing.restore_latest(checkpoints, state)
        world.check_place(trainer.state.iteration)
        if world.leads:
            for point in history.points:
                on_point(point)
            for restored in history.records:
                on_epoch(restored)
        if trainer.state.iteration == len(loader) * (len(history.records) + 1):  # it was saved before it was judged
            end_epoch(trainer)
        checkpointing.attach(
            trainer, checkpointing.Saver(checkpoints, state), every_s=60 * config.checkpoint_minutes,
            check=lambda: check_weights(classifier, trainer.state.epoch), interrupted=interrupted, world=world,
        )  # fmt: skip
    if not trainer.state.iteration:
        hyperparameters.begin_epoch(0, [])
        loader.size = small if small_epochs else None
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
            device=device,
            on_speed=on_note,
        )
    if trainer.state.iteration < config.epochs * len(loader) and not (history.waited() >= config.patience > 0):
        trainer.run(loader, max_epochs=config.epochs, epoch_length=len(loader))
    if config.select == "best":
        best.put_into(weights)
    return Fitted(alone().cpu(), setup.info, tuple(history.records), tuple(history.points), hardware, pieces.count)


def warm_up_mean(trainer: Engine, share: float) -> None:
    """Let ignite's EMAHandler keep less than `share` of the mean at first, or a short training would end near its random weights.

    After t steps it is (1 + t) / (10 + t) at most, as in TensorFlow's ExponentialMovingAverage with `num_updates`.
    """
    trainer.state.mean_steps += 1
    trainer.state.ema_momentum = max(1 - share, 9 / (10 + trainer.state.mean_steps))


def joined(config: TrainConfig) -> World:
    """The processes that train together. Raises DeepcvError where there are more or less, or a loss compares images of them."""
    hardware = resolve(config.device, config.precision, config.channels_last, config.threads, config.processes)
    if hardware.processes > 1 and not divisible(config):
        raise DeepcvError(
            "train.losses compares the images of a batch, of which each process sees a share; set train.processes to 1"
        )
    sharding.check(config, hardware.processes)
    return distributed.join(hardware.processes, hardware.device)


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
