"""What limits the speed of a training: its loader or its network."""

import time
from collections.abc import Callable, Mapping

import torch
from ignite.engine import Engine, Events

_SKIPPED = 3  # steps that compile, fill caches and ask for memory
_ALONE, _ALONE_S = 10, 1.0
_TOGETHER, _TOGETHER_S = 90, 4.0


class _Clock:
    """Adds up seconds and batches: first of loader and network, each by itself, then of both as the training has them.

    Both begin and end with a step of the optimizer, for which several batches may wait (`train.accumulate`). A GPU does its work
    later than it is told to. Where a time is taken it is waited for: thrice a batch at first, so that each part is seen alone, and
    then only around all batches, or those of an epoch.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.loader_s = self.network_s = self.together_s = 0.0
        self.steps = self.alone = self.together = 0
        self._parts = False  # whether the two are timed alone
        self._began_s: float | None = None  # of the batch, or of several
        self._batch_s = 0.0

    @property
    def _skips(self) -> bool:
        return self.steps < _SKIPPED

    def _now_s(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def begin_batch(self) -> None:
        if self._began_s is None and not self._skips:
            self._began_s = self._now_s()

    def end_batch(self) -> None:
        if self._parts:
            self._batch_s = self._now_s()

    def end_step(self, stepped: bool, epoch_ends: bool) -> bool:
        """Whether all is measured; `stepped`: the optimizer made a step of the batches up to this one."""
        began_s = self._began_s
        if began_s is None:
            self.steps += stepped
            self._parts = not self._skips
            return False
        if self._parts:
            self.loader_s += self._batch_s - began_s
            self.network_s += self._now_s() - self._batch_s
            self.alone += 1
            self._began_s = None
            enough = self.alone >= _ALONE or self.loader_s + self.network_s >= _ALONE_S
            self._parts = not (stepped and enough)
            return False
        self.together += 1
        enough = self.together >= _TOGETHER or self.together_s + time.perf_counter() - began_s >= _TOGETHER_S
        over = stepped and enough
        if over or epoch_ends:  # what comes between epochs does not count
            self.together_s += self._now_s() - began_s
            self._began_s = None
        return over


def tell_speed(
    trainer: Engine,
    batch_size: int,
    device: torch.device,
    say: Callable[[str], None],
    on_speed: Callable[[Mapping[str, float]], None],
) -> None:
    """After the first steps `say` how many images a second loader, network and both do, and which of them limits the training.

    The first three steps do not count; of a shorter training nothing is said. `on_speed` gets the numbers.
    """
    clock = _Clock(device)

    def end_step(engine: Engine) -> None:
        if clock.end_step(bool(engine.state.output), engine.state.iteration % engine.state.epoch_length == 0):
            tell()

    def tell() -> None:
        for handle in handles:
            handle.remove()
        if not clock.alone:
            return
        loader_s, network_s = clock.loader_s / clock.alone, clock.network_s / clock.alone
        together_s = clock.together_s / clock.together if clock.together else loader_s + network_s
        rates = {
            name: batch_size / max(seconds, 1e-9)
            for name, seconds in (("loader", loader_s), ("network", network_s), ("together", together_s))
        }
        limit = "loader" if loader_s > network_s else "network"
        say(
            f"images a second: {rates['loader']:,.0f} from the loader, {rates['network']:,.0f} through the network, "
            f"{rates['together']:,.0f} together; the {limit} limits the training"
        )
        on_speed({f"images_per_s.{name}": rate for name, rate in rates.items()})

    handles = [
        trainer.add_event_handler(event, handler)
        for event, handler in (
            (Events.GET_BATCH_STARTED, clock.begin_batch), (Events.GET_BATCH_COMPLETED, clock.end_batch),
            (Events.ITERATION_COMPLETED, end_step), (Events.COMPLETED, tell),
        )
    ]  # fmt: skip
