"""What a person who waits for a training sees: one bar, a row per epoch, and what limits the speed."""

import sys
import time
from collections.abc import Callable, Mapping

import torch
from ignite.engine import Engine, Events

from deepcv.training.history import EpochRecord, History
from deepcv.training.speed import tell_speed

_REDRAW_S = 0.5  # least time between two drawings of the bar; a step of a small network takes less than one of them
_CPU = torch.device("cpu")
_ROW = "{:>6}  {:>10}  {:>9}  {:>8}  {:>8}  {:>9}  {:>7}"


def show_progress(
    trainer: Engine,
    history: History,
    epochs: int,
    epoch_length: int,
    done: int,
    batch_size: int,
    score: str = "accuracy",
    *,
    device: torch.device = _CPU,
    on_speed: Callable[[Mapping[str, float]], None] = lambda _rates: None,
) -> None:
    """Draw one bar over all iterations on stderr, with the time left; above it a row per epoch, and one line on the speed.

    `done` iterations were made by an earlier process; `score` is what the score of an epoch is called. `on_speed` gets the
    numbers of the line on the speed.
    """
    from tqdm import tqdm  # a GPU machine may have torch and ignite alone

    bar = tqdm(total=epochs * epoch_length, initial=done, unit="step", mininterval=0.0, miniters=1, dynamic_ncols=True)
    began_s = drawn_s = time.monotonic()

    def write(text: str) -> None:
        bar.clear()
        bar.write(text, file=sys.stderr)  # also where TQDM_DISABLE takes the bar away

    def advance(engine: Engine) -> None:
        nonlocal drawn_s
        if (now_s := time.monotonic()) - drawn_s >= _REDRAW_S:
            drawn_s = now_s
            draw(engine)

    def draw(engine: Engine) -> None:
        bar.set_description(f"epoch {engine.state.epoch}/{epochs}", refresh=False)
        known = [f"train loss {history.points[-1].train_loss:.4f}"] if history.points else []
        if history.records:
            known.append(f"val {score} {history.records[-1].val_accuracy:.4f}")
        bar.set_postfix_str(", ".join(known), refresh=False)
        bar.update(engine.state.iteration - bar.n)

    def end_epoch(engine: Engine) -> None:
        nonlocal began_s
        draw(engine)
        if engine.state.epoch == done // epoch_length + 1:  # the first that this process ends
            write(_ROW.format("epoch", "train loss", score, "val loss", score, "lr", "seconds"))
        now_s = time.monotonic()
        write(row(history.records[-1], now_s - began_s))
        began_s = now_s

    trainer.add_event_handler(Events.ITERATION_COMPLETED, advance)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, end_epoch)
    tell_speed(trainer, batch_size, device, write, on_speed)
    trainer.add_event_handler(Events.COMPLETED, lambda _engine: bar.close())


def row(record: EpochRecord, seconds: float) -> str:
    """One line of the table of epochs."""
    return _ROW.format(
        record.epoch, f"{record.train_loss:.4f}", f"{record.train_accuracy:.4f}", f"{record.val_loss:.4f}",
        f"{record.val_accuracy:.4f}", f"{record.lr:.3g}", f"{seconds:.1f}",
    )  # fmt: skip
