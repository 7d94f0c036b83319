"""The training step and its ignite Engine."""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from deepcv.data.loaders import Batch
from deepcv.errors import DeepcvError
from deepcv.evaluation.inference import Pieces, TooLargeError
from deepcv.task import CLASSIFICATION, Task
from deepcv.training.distributed import ALONE, World, synchronised
from deepcv.training.history import History, Point
from deepcv.training.hyperparameters import Hyperparameters, Settings
from deepcv.training.sharding import whole

Objective = Callable[[Mapping[str, Tensor], Batch], Tensor]
GUARD_STEPS = 50  # of the optimizer, at most, between looks at the loss, each of which waits for the device


class DivergedError(DeepcvError):
    """The loss is not a number any more."""

    def __init__(self, epoch: int, loss: float) -> None:
        super().__init__(f"training diverged in epoch {epoch} (loss {loss}); lower train.lr, or set train.clip_norm")


class RunningMetrics:
    """Loss and accuracy of the current epoch, summed on the device; read now and then, by all processes of `world`.

    Accuracy is what `evaluation.metrics.score` has for the task; of numbers against the variance over the training images, 1.
    """

    def __init__(self, device: torch.device, world: World = ALONE, task: Task = CLASSIFICATION) -> None:
        self._kind = task.kind
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)
        self._world = world
        self._before = (0.0, 0.0)  # sum of losses and images when `recent` was last asked

    def reset(self) -> None:
        """Start a new epoch."""
        self._sums.zero_()
        self._before = (0.0, 0.0)

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Count one batch: its mean loss () and logits (b, classes) against targets (b,).

        Of soft targets (b, classes) the likeliest class counts.
        """
        if self._kind == "classification":
            numbers = targets if targets.ndim == 1 else targets.argmax(1)
            correct = (logits.argmax(1) == numbers).sum()
        elif self._kind == "multi_label":
            correct = ((logits >= 0) == (targets >= 0.5)).double().mean(1).sum()
        else:
            correct = (1 - (logits.double() - targets).square()).mean(1).sum()
        # A number made on the device: one that is copied there would wait for all that a GPU has still to do.
        count = torch.full_like(loss, len(targets), dtype=torch.float64)
        self._sums += torch.stack([loss.double() * len(targets), correct.double(), count])

    def read(self) -> tuple[float, float]:
        """Return mean loss and accuracy so far."""
        loss, correct, count = self._world.total(self._sums).tolist()
        return loss / max(1.0, count), correct / max(1.0, count)

    def recent(self) -> float:
        """Return the mean loss since this was last asked, or since the epoch began."""
        loss, _, count = map(float, self._world.total(self._sums).tolist())
        (past_loss, past), self._before = self._before, (loss, count)
        return (loss - past_loss) / max(1.0, count - past)

    def state_dict(self) -> dict[str, Any]:
        """The sums, for a checkpoint in the middle of an epoch."""
        return {"sums": self._world.total(self._sums).cpu(), "before": self._before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._sums.copy_(state["sums"] if self._world.leads else torch.zeros(3))  # the sums of all stay sums of all
        self._before = tuple(state["before"])


def create_trainer(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    hyperparameters: Hyperparameters,
    settings: Settings,
    metrics: RunningMetrics,
    *,
    autocast: torch.autocast,
    scaler: torch.amp.GradScaler | None = None,
    pieces: Pieces | None = None,
    divisible: bool = True,
    history: History | None = None,
) -> Engine:
    """Return an Engine that takes `Batch`es: an optimizer step per `settings.accumulate` of them, and one for an epoch's rest.

    Its gradients are those of the mean loss over all their images. Batches that do not fit into memory are taken in twice as many
    pieces from then on, if the loss of a batch is the mean of those of its pieces (`divisible`). The Engine's output says whether
    a step was made. `history` gets the points that it says are due. Raises DivergedError within 50 steps of the optimizer after
    the loss became infinite or nan.
    """
    scaler = scaler or torch.amp.GradScaler(enabled=False)
    pieces = pieces or Pieces(fixed=idist.get_world_size() > 1)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    waiting: list[Batch] = []
    unread = 0  # steps since the loss was looked at

    def forward_backward() -> None:
        optimizer.zero_grad()
        parts = waiting if pieces.count == 1 else [part for batch in waiting for part in batch.split(pieces.count)]
        images, seen = sum(part.size for part in parts), []
        for number, part in enumerate(parts, start=1):
            with synchronised(model, last=number == len(parts)), autocast:
                outputs = model(part.images_nchw)
                loss = objective(outputs, part)
            scaler.scale(loss if part.size == images else loss * (part.size / images)).backward()
            seen.append((loss.detach(), part.first_view(outputs["logits"].detach()), part.targets))
        for one in seen:
            metrics.add(*one)

    def step(engine: Engine, batch: Batch) -> bool:
        nonlocal unread
        iteration, length = engine.state.iteration, engine.state.epoch_length
        hyperparameters.step(iteration - 1)
        waiting.append(batch)
        if len(waiting) < settings.accumulate and iteration % length:
            return False
        most = max(one.size for one in waiting) if divisible else 1
        while not _fits(forward_backward, pieces, most):
            pass
        waiting.clear()
        if settings.clip_norm:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(trained, settings.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        unread += 1
        due = history is not None and history.due(iteration, length)
        if due or unread == GUARD_STEPS:
            unread = 0
            look(engine, due)
        return True

    def look(engine: Engine, due: bool) -> None:
        loss = metrics.recent() if due else metrics.read()[0]
        if not math.isfinite(loss):
            raise DivergedError(engine.state.epoch, loss)
        if history is not None and due:
            iteration = engine.state.iteration
            history.add(Point(iteration, loss, hyperparameters.values(iteration - 1)))

    trainer = Engine(step)
    trainer.logger.setLevel(logging.CRITICAL)  # it prints every error that it also raises, twice
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda _engine: model.train())
    return trainer


def check_weights(model: nn.Module, epoch: int) -> None:
    """Raise DivergedError where a weight is infinite or nan."""
    total = torch.stack([whole(parameter.detach().double().sum()) for parameter in model.parameters()]).sum().item()
    if not math.isfinite(total):
        raise DivergedError(epoch, total)


def _fits(work: Callable[[], None], pieces: Pieces, images: int) -> bool:
    """What `pieces.fit` says. Raises DeepcvError where batches of `images` cannot be divided any more."""
    try:
        return pieces.fit(work, images)
    except TooLargeError as error:
        if idist.get_world_size() > 1:  # the others wait for this one's gradients already
            raise DeepcvError(
                f"process {idist.get_rank()} has no memory for its share of a batch; set train.batch_size lower and "
                "train.accumulate higher"
            ) from error
        raise DeepcvError(
            "no memory for a single image, or for a batch whose images a loss compares; use a smaller network, smaller "
            "images or, where train.losses compares images, a smaller train.batch_size"
        ) from error
