"""Train a network: from a spec and shards to a classifier with its learning curve."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import fx, nn

from deepcv.data.augmentation import DROPOUT, Augmentation, Recipe, hash32, permutation
from deepcv.data.loaders import Crops, TrainLoader
from deepcv.data.packed import PackedImages
from deepcv.data.shards import Dataset, Split
from deepcv.errors import DeepcvError
from deepcv.evaluation import metrics
from deepcv.evaluation.inference import logits_of
from deepcv.nn import parts
from deepcv.nn.classifier import Classifier, ModelInfo, build_network, create
from deepcv.nn.layers.whitening import WhiteningConv2d
from deepcv.nn.spec import NetworkSpec
from deepcv.training import checkpoints as checkpointing
from deepcv.training.engine import RunningMetrics, create_trainer
from deepcv.training.hardware import Hardware, keep_freed_memory, resolve
from deepcv.training.optimizers import Muon
from deepcv.training.start import Start

_EVALUATION_BATCH = 500
_WHITENING_IMAGES = 5_000
_WHITENING_CROPS = 500  # which are larger, and each must be decoded
_PROGRESS_STEPS = 100  # redraws of the progress bar per epoch, at most


@dataclass(frozen=True)
class ProgressiveResize:
    """Images of `scale` times the side in the first `until` (a share) of the epochs."""

    scale: float = 1.0
    until: float = 0.0

    def epochs(self, total: int) -> int:
        """How many of `total` epochs see smaller images."""
        return round(self.until * total) if self.scale < 1 else 0

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the smaller images."""
        return max(1, round(self.scale * height)), max(1, round(self.scale * width))


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Field names are those of the `train` section; `auto` is resolved once, at the start."""

    epochs: int
    batch_size: int
    optimizer: Literal["adamw", "sgd", "muon"]
    lr: float
    momentum: float
    weight_decay: float
    label_smoothing: float
    warmup: float
    flip: bool
    shift: int
    cutout: int
    seed: int
    threads: int | Literal["auto"]
    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["auto", "fp32", "bf16"]
    channels_last: Literal["auto"] | bool
    test_time_flip: bool = False
    least_crop: float = 0.08
    progressive_resize: ProgressiveResize = field(default_factory=ProgressiveResize)
    augmentation: Recipe = field(default_factory=Recipe)
    freeze: tuple[str, ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """Return the configuration of plain values, as params.yaml has them."""
        resize, augmentation = ProgressiveResize(**values["progressive_resize"]), Recipe.of(values["augmentation"])
        freeze = tuple(values["freeze"])
        return cls(**{**values, "progressive_resize": resize, "augmentation": augmentation, "freeze": freeze})


@dataclass(frozen=True)
class EpochRecord:
    """One point of the learning curve; losses in nats, accuracies 0–1, `lr` after the epoch's last step."""

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    lr: float


@dataclass
class History:
    """The learning curve so far; part of every checkpoint."""

    records: list[EpochRecord] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {"records": [asdict(record) for record in self.records]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.records = [EpochRecord(**record) for record in state["records"]]


@dataclass(frozen=True)
class Fitted:
    """A trained classifier, its learning curve and the settings that `auto` became."""

    classifier: Classifier
    info: ModelInfo
    history: tuple[EpochRecord, ...]
    hardware: Hardware


def fit(
    spec: NetworkSpec,
    shards: Dataset,
    config: TrainConfig,
    *,
    start: Start | None = None,
    checkpoints: Path | None = None,
    on_epoch: Callable[[EpochRecord], None] = lambda _record: None,
    progress: bool = False,
) -> Fitted:
    """Train on `shards.train`, judging each epoch on `shards.val`; `start` has weights for the network, instead of random ones.

    Images are normalised as those weights expect, where that is known, else by the statistics of the train split.
    The result depends on the arguments and the hardware settings alone: with `checkpoints`, a killed training that is
    called again goes on after its last whole epoch and ends with the same bits. `on_epoch` sees every epoch, restored ones
    first.
    """
    hardware = resolve(config.device, config.precision, config.channels_last, config.threads)
    device = hardware.torch_device
    torch.set_num_threads(hardware.threads)
    keep_freed_memory()
    torch.manual_seed(config.seed)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False  # else a GPU picks by timing
    mean, std = start.normalisation(shards) if start else (shards.mean, shards.std)
    info = ModelInfo(shards.name, shards.classes, shards.recipe, mean, std, config.test_time_flip)
    classifier = create(spec.canonical(), info)
    if start:
        start.load_into(classifier.network)
    freeze(classifier.network, config.freeze)
    classifier = classifier.to(device).to(memory_format=hardware.memory_format)
    augmentation = Augmentation(config.flip, config.shift, config.cutout)
    loader = TrainLoader(
        training_images(shards, config), batch_size=config.batch_size, augmentation=augmentation, seed=config.seed, device=device,
        recipe=config.augmentation, classes=len(shards.classes),
    )  # fmt: skip
    small_epochs = config.progressive_resize.epochs(config.epochs)
    small = config.progressive_resize.size(*shards.input_shape[1:])
    if small_epochs:
        check_size(classifier, spec, shards, small)
    if not start and any(isinstance(module, WhiteningConv2d) for module in classifier.network.modules()):
        count = _WHITENING_IMAGES if isinstance(shards.train, Split) else _WHITENING_CROPS
        classifier.fit_whitening(loader.plain(permutation(config.seed, 0, len(loader.targets), device)[:count]))
    if loader.batch_size == 1:
        check_norms(classifier.network)
    optimizer = create_optimizer(classifier, config)
    scheduler = create_scheduler(optimizer, config, config.epochs * len(loader))
    running = RunningMetrics(device)
    loss_fn = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    trainer = create_trainer(classifier, optimizer, loss_fn, scheduler, running, autocast=hardware.autocast())
    history = History()

    def seed_epoch(engine: Engine) -> None:
        loader.epoch = engine.state.epoch - 1
        loader.size = small if loader.epoch < small_epochs else None
        drawn = hash32(config.seed, loader.epoch, torch.zeros(1, dtype=torch.int64), DROPOUT)
        torch.manual_seed(int(drawn))  # dropout repeats after a resume without its generator being stored

    def record_epoch(engine: Engine) -> None:
        train_loss, train_accuracy = running.read()
        logits = logits_of(
            classifier, shards.val.images_nhwc, batch_size=_EVALUATION_BATCH, device=device,
            memory_format=hardware.memory_format, autocast=hardware.autocast(),
        )  # fmt: skip
        with np.errstate(invalid="ignore"):  # infinite logits; said below
            val_loss = metrics.cross_entropy(logits, shards.val.labels)
        if not math.isfinite(loss := train_loss + val_loss):  # train_loss does not know the epoch's last step
            raise DeepcvError(f"training diverged in epoch {engine.state.epoch} (loss {loss}); lower train.lr")
        record = EpochRecord(
            engine.state.epoch, train_loss, train_accuracy, val_loss,
            metrics.accuracy(logits, shards.val.labels), float(scheduler.get_last_lr()[0]),
        )  # fmt: skip
        history.records.append(record)
        on_epoch(record)

    trainer.add_event_handler(Events.EPOCH_STARTED, seed_epoch)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, record_epoch)
    done = 0
    if checkpoints is not None:
        state = {
            "trainer": trainer,
            "model": classifier,
            "optimizer": optimizer,
            "scheduler": scheduler,
            "history": history,
        }
        done = checkpointing.restore_latest(checkpoints, state)
        for restored in history.records:
            on_epoch(restored)
        checkpointing.save_every_epoch(trainer, checkpoints, state)
    if progress:
        show_progress(trainer, history, config.epochs, len(loader), done)
    if done < config.epochs:
        trainer.run(loader, max_epochs=config.epochs, epoch_length=len(loader))
    return Fitted(classifier.cpu(), info, tuple(history.records), hardware)


def training_images(shards: Dataset, config: TrainConfig) -> Split | Crops:
    """Return what the loader takes: the prepared images, or random crops of the encoded ones."""
    if not isinstance(shards.train, PackedImages):
        return shards.train
    from deepcv.data.crops import random_crops  # needs OpenCV; a GPU machine may have torch and ignite alone

    return random_crops(shards.train, shards.recipe, seed=config.seed, least_area=config.least_crop)


def freeze(network: nn.Module, names: Sequence[str]) -> None:
    """Let the named parts learn nothing. Raises PartError where there is no such part, or nothing is left that learns."""
    parts.freeze(network, *names)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise parts.PartError(f"train.freeze {list(names)}: no parameter is left that learns")


def check_size(classifier: Classifier, spec: NetworkSpec, shards: Dataset, size: tuple[int, int]) -> None:
    """Raise DeepcvError where the network would have other parameters for images of `size` (height, width)."""
    what = f"train.progressive_resize makes images of {size[0]}×{size[1]}, which the network does not take"
    hint = "one that ends in a global pool takes most sizes; or set train.progressive_resize.until to 0"
    try:
        smaller = build_network(spec, (shards.input_shape[0], *size), len(shards.classes)).state_dict()
    except DeepcvError as error:
        raise DeepcvError(f"{what}: {error}; {hint}") from error
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


def create_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW or Muon (`momentum` is the first beta) or SGD with Nesterov momentum; norms and biases are not decayed."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)
    kind = Muon if config.optimizer == "muon" else torch.optim.AdamW
    return kind(groups, lr=config.lr, betas=(config.momentum, 0.99))


def create_scheduler(
    optimizer: torch.optim.Optimizer, config: TrainConfig, steps: int
) -> torch.optim.lr_scheduler.OneCycleLR:
    """OneCycle over `steps` steps, of which the share `warmup` rises (Smith and Topin 2017, arXiv 1708.07120)."""
    warmup = float(config.warmup)
    if warmup * steps == 1:
        warmup *= 1 + 1e-9  # torch divides by zero where the rise ends on the first step
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.lr, total_steps=steps, pct_start=warmup, cycle_momentum=False
    )


def show_progress(trainer: Engine, history: History, epochs: int, epoch_length: int, done: int) -> None:
    """Draw one bar over all iterations on stderr, with the time left and the last epoch's val accuracy."""
    from tqdm import tqdm  # a GPU machine may have torch and ignite alone

    every = max(1, epoch_length // _PROGRESS_STEPS)
    bar = tqdm(
        total=epochs * epoch_length, initial=done * epoch_length, unit="step", mininterval=0.5, dynamic_ncols=True
    )

    def advance(engine: Engine) -> None:
        bar.set_description(f"epoch {engine.state.epoch}/{epochs}", refresh=False)
        if history.records:
            bar.set_postfix_str(f"val accuracy {history.records[-1].val_accuracy:.4f}", refresh=False)
        bar.update(engine.state.iteration - bar.n)

    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=every), advance)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, advance)
    trainer.add_event_handler(Events.COMPLETED, lambda _engine: bar.close())
