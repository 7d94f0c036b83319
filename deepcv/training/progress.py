"""What a person who waits for a training sees: one bar, a row per epoch, and what limits the speed."""

import sys
import time
from collections.abc import Callable
from typing import Any

from ignite.engine import Engine, Events

from deepcv.training.history import EpochRecord, History

_REDRAW_S = 0.5  # least time between two drawings of the bar; a step of a small network takes less than one of them
_SKIPPED, _MEASURED, _MEASURED_S = 3, 100, 5.0
_ROW = "{:>6}  {:>10}  {:>9}  {:>8}  {:>8}  {:>9}  {:>7}"


def show_progress(
    trainer: Engine,
    history: History,
    epochs: int,
    epoch_length: int,
    done: int,
    batch_size: int,
    score: str = "accuracy",
) -> None:
    """Draw one bar over all iterations on stderr, with the time left; above it a row per epoch, and one line on the speed.

    `done` iterations were made by an earlier process; `score` is what the score of an epoch is called.
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
        if history.records:
            bar.set_postfix_str(f"val {score} {history.records[-1].val_accuracy:.4f}", refresh=False)
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
    trainer.add_event_handler(Events.COMPLETED, lambda _engine: bar.close())
    tell_speed(trainer, batch_size, write)


def row(record: EpochRecord, seconds: float) -> str:
    """One line of the table of epochs."""
    return _ROW.format(
        record.epoch, f"{record.train_loss:.4f}", f"{record.train_accuracy:.4f}", f"{record.val_loss:.4f}",
        f"{record.val_accuracy:.4f}", f"{record.lr:.3g}", f"{seconds:.1f}",
    )  # fmt: skip


def tell_speed(trainer: Engine, batch_size: int, say: Callable[[str], Any]) -> None:
    """After the first steps `say` how many images a second loader, network and both do, and which of them limits the training.

    The first three steps do not count. On a GPU the loader's time is that of the CPU's part of the work.
    """
    spent_s = {"loader": 0.0, "step": 0.0}
    marks = {"begin": 0.0, "batch": 0.0, "first": 0.0}
    count = 0

    def begin_batch() -> None:
        marks["begin"] = time.perf_counter()

    def end_batch() -> None:
        marks["batch"] = time.perf_counter()

    def end_step() -> None:
        nonlocal count
        now_s = time.perf_counter()
        count += 1
        if count <= _SKIPPED:
            marks["first"] = now_s
            return
        spent_s["loader"] += marks["batch"] - marks["begin"]
        spent_s["step"] += now_s - marks["batch"]
        if count < _SKIPPED + _MEASURED and now_s - marks["first"] < _MEASURED_S:
            return
        images = (count - _SKIPPED) * batch_size
        rates = {name: images / max(seconds, 1e-9) for name, seconds in spent_s.items()}
        limit = "the loader" if spent_s["loader"] > spent_s["step"] else "the network"
        say(
            f"images a second: {rates['loader']:,.0f} from the loader, {rates['step']:,.0f} through the network, "
            f"{images / sum(spent_s.values()):,.0f} together; {limit} limits the training"
        )
        for handle in handles:
            handle.remove()

    handles = [
        trainer.add_event_handler(event, handler)
        for event, handler in (
            (Events.GET_BATCH_STARTED, begin_batch), (Events.GET_BATCH_COMPLETED, end_batch), (Events.ITERATION_COMPLETED, end_step),
        )
    ]  # fmt: skip
