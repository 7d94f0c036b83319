"""The training step and its ignite Engine."""

import logging
from collections.abc import Callable

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from deepcv.data.loaders import Batch


class RunningMetrics:
    """Loss and accuracy of the current epoch, summed on the device; read once per epoch."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64, device=device)

    def reset(self) -> None:
        """Start a new epoch."""
        self._sums.zero_()

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Count one batch: its mean loss () and logits (b, classes) against targets (b,).

        Of soft targets (b, classes) the likeliest class counts.
        """
        numbers = targets if targets.ndim == 1 else targets.argmax(1)
        correct = (logits.argmax(1) == numbers).sum()
        self._sums += torch.stack(
            [loss.double() * len(targets), correct.double(), correct.new_tensor(len(targets)).double()]
        )

    def read(self) -> tuple[float, float]:
        """Return mean loss and accuracy so far."""
        loss, correct, count = self._sums.tolist()
        return loss / max(1.0, count), correct / max(1.0, count)


def create_trainer(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    metrics: RunningMetrics,
    *,
    autocast: torch.autocast,
) -> Engine:
    """Return an Engine that takes `Batch`es, steps optimizer and scheduler each iteration and feeds `metrics`."""

    def step(_engine: Engine, batch: Batch) -> None:
        with autocast:
            logits = model(batch.images_nchw)["logits"]
            loss = loss_fn(logits, batch.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        metrics.add(loss.detach(), logits.detach(), batch.targets)

    trainer = Engine(step)
    trainer.logger.setLevel(logging.CRITICAL)  # it prints every error that it also raises, twice

    def start_epoch() -> None:
        model.train()
        metrics.reset()

    trainer.add_event_handler(Events.EPOCH_STARTED, start_epoch)
    return trainer
