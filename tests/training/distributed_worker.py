"""What each process of test_distributed.py does: `python distributed_worker.py FOLDER`, in the environment that torchrun gives.

The same trainings run in one process there, which is why they stand here as a table.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import toys
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from deepcv.data.augmentation import Recipe
from deepcv.data.augmentation.recipe import Mix
from deepcv.data.loaders import Views
from deepcv.data.shards import Dataset, open_shards
from deepcv.errors import DeepcvError
from deepcv.nn.spec import NetworkSpec
from deepcv.training import distributed, sharding
from deepcv.training.checkpoints import InterruptedTrainingError
from deepcv.training.engine import check_weights
from deepcv.training.fit import Fitted, fit
from deepcv.training.losses import Term
from deepcv.training.optimizers import create_optimizer
from deepcv.training.schedules import Ramp
from deepcv.training.setup import set_up
from deepcv.training.sharding import whole

NORMED = toys.NETWORK.replace("  - {id: drop, op: dropout, p: 0.3}\n", "")
PLAIN = NORMED.replace("channels: 4", "channels: 4, norm: none")
HEADS = PLAIN.replace("outputs: {logits: head}", "  - {id: other, op: linear, features: $classes, from: pool}\n") + (
    "outputs: {logits: head, second: other}\n"
)
FLAT = NORMED.replace("  - {id: head", "  - {id: norm, op: batch_norm}\n  - {id: head")
# A layer that is used twice, one that is computed again, a parameter of one number, and a head that learns nothing.
SEVERAL = """\
nodes:
  - {id: stem, op: conv, channels: 4, norm: none}
  - {id: again, op: conv, channels: 4, norm: none, checkpoint: true}
  - {id: twice, share: again}
  - {id: pool, op: global_gem_pool}
  - {id: head, op: linear, features: $classes}
  - {id: other, op: linear, features: $classes, from: pool}
outputs: {logits: head, second: other}
"""
SGD = {"optimizer": "sgd", "flip": True, "cutout": 2}
SECOND_IDLE = {"losses": (Term("cross_entropy"), Term("none", "second"))}
EVERYTHING: dict[str, Any] = {
    "ema": 0.9, "accumulate": 2, "clip_norm": 1.0, "layer_decay": 0.8, "select": "best", "unfreeze": {"stem": 2},
    "optimizer": "muon", "batch_size": 4, "freeze": (), "schedules": {"lr": Ramp(warmup=0.1)},
}  # fmt: skip
WITH_FILES: dict[str, Any] = {
    "ema": 0.5, "select": "best", "keep_best": 2, "unfreeze": {"head": 2}, "clip_norm": 0.1, "optimizer": "adamw",
}  # fmt: skip
FURTHER = "further targets"  # which has shards of its own
# name: network, what differs from the toy training, dtype
TRAININGS: dict[str, tuple[str, dict[str, Any], torch.dtype]] = {
    "plain": (PLAIN, SGD, torch.float64),
    "batch norm": (FLAT, SGD, torch.float64),
    "a head that learns nothing": (
        HEADS, {**SGD, **SECOND_IDLE}, torch.float64,
    ),
    "two losses on two views": (
        HEADS,
        {**SGD, "losses": (Term("focal", "second", weight=0.5), Term("cross_entropy"), Term("jensen_shannon")), "views": Views(2)},
        torch.float64,
    ),
    "everything": (NORMED, EVERYTHING, torch.float64),
    "sharded": (SEVERAL, {**SGD, **SECOND_IDLE, "fsdp": True}, torch.float64),
    "sharded, everything": (NORMED, {**EVERYTHING, "optimizer": "adamw", "fsdp": True}, torch.float64),
    "sharded, single precision": (SEVERAL, {**SECOND_IDLE, "ema": 0.9, "fsdp": True}, torch.float32),
    FURTHER: (
        toys.THREE_HEADS,
        {
            **SGD, "lr": 0.005, "ema": 0.5,
            "losses": (
                Term("cross_entropy"), Term("mse", "size", toys.FURTHER[0].of), Term("bce", "bright", toys.FURTHER[1].of),
            ),
        },
        torch.float64,
    ),
    "frozen norm": (NORMED, {**SGD, "freeze": ("stem.norm",)}, torch.float64),
    "single precision": (
        NORMED, {"augmentation": Recipe(mixup=Mix(0.4, 0.5), cutmix=Mix(1.0, 0.4))}, torch.float32,
    ),
}  # fmt: skip


def network(folder: Path, text: str = toys.NETWORK) -> NetworkSpec:
    """A network from a file of this process's own."""
    own = folder / f"network{distributed.rank()}"
    own.mkdir(exist_ok=True)
    return toys.network(own, text)


def trained(name: str, folder: Path, processes: int) -> dict[str, Any]:
    """Train, and return weights, history and the gradients of each step."""
    text, changes, dtype = TRAININGS[name]
    gradients: list[list[torch.Tensor]] = []
    torch.set_default_dtype(dtype)
    try:
        with _watched(gradients):
            fitted = fit(
                network(folder, text), open_shards(folder / "several" if name == FURTHER else folder),
                toys.config(**{**changes, "fsdp": processes > 1 and "fsdp" in changes}, processes=processes),
            )  # fmt: skip
    finally:
        torch.set_default_dtype(torch.float32)
    types = {type(module).__name__ for module in fitted.classifier.modules()}
    return {
        "weights": fitted.classifier.state_dict(), "history": [record.named(fitted.info.task) for record in fitted.history],
        "gradients": gradients, "own layers": "SharedBatchNorm" in types,
    }  # fmt: skip


@contextmanager
def _watched(gradients: list[list[torch.Tensor]]) -> Iterator[None]:
    running: list[
        torch.optim.Optimizer
    ] = []  # Muon's step calls AdamW's, which torch hooks too once there was an AdamW

    def look(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        if not running:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            gradients.append([torch.zeros(()) if p.grad is None else whole(p.grad).clone() for p in parameters])
        running.append(optimizer)

    handles = [
        register_optimizer_step_pre_hook(look),
        register_optimizer_step_post_hook(lambda *_: running.pop() and None),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def message(work: Callable[[], object]) -> str:
    """What the DeepcvError of some work says."""
    try:
        work()
    except DeepcvError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def steps_as_whole(name: str) -> bool:
    """Whether an optimizer's steps on shares are its steps on the whole, before and after its state was stored."""
    config = toys.config(optimizer=f"torch/{name}", momentum="auto")
    made: dict[bool, list[torch.Tensor]] = {}
    for sharded in (False, True):
        layer = nn.Linear(3, 5)
        nn.init.constant_(layer.weight, 0.5)
        nn.init.constant_(layer.bias, 0.5)
        if sharded:
            fully_shard(layer)
        optimizer = create_optimizer(layer, config)
        for step in range(4):
            for parameter in layer.parameters():
                gradient = torch.arange(parameter.numel()).view(parameter.shape).sub(4 + step).float()
                parameter.grad = sharding._share(gradient, parameter)
            optimizer.step()
            if step == 1:
                state = sharding.WholeOptimizer(optimizer).state_dict()
                optimizer = create_optimizer(layer, config)
                sharding.WholeOptimizer(optimizer).load_state_dict(state)
        made[sharded] = [whole(parameter.detach()) for parameter in layer.parameters()]
    return all(torch.equal(a, b) for a, b in zip(made[False], made[True], strict=True))


def spread(spec: NetworkSpec, shards: Dataset, world: distributed.World) -> dict[str, Any]:
    """How much of weights and optimizer state this process holds; whether all see what is infinite in one, and make no step."""
    setup = set_up(spec, shards, toys.config(fsdp=True, processes=2), world=world)
    parameters = list(setup.classifier.parameters())
    before = [whole(parameter.detach()).clone() for parameter in parameters]

    def step(gradient: float) -> bool:
        scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
        scaler.scale(torch.ones(()))  # which makes its scale
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, gradient)
        scaler.step(setup.optimizer)
        return not any(torch.equal(whole(p.detach()), was) for p, was in zip(parameters, before, strict=True))

    stepped = [step(float("inf") if world.leads else 1.0), step(1.0)]
    averages = [setup.optimizer.state[parameter]["exp_avg"] for parameter in parameters]
    held = [sum(value.to_local().numel() for value in values) for values in (parameters, averages)]
    if world.leads:
        with torch.no_grad():
            parameters[0].to_local().fill_(float("inf"))
    return {
        "stepped": stepped, "held": held, "whole": sum(parameter.numel() for parameter in parameters),
        "diverged": message(lambda: check_weights(setup.classifier, 1)),
    }  # fmt: skip


def main(folder: Path) -> dict[str, Any]:
    """Do all that the tests look at."""
    shards = open_shards(folder)
    sharding.GATHERED_ALONE = 20  # else all of a toy would be gathered at once
    found: dict[str, Any] = {name: trained(name, folder, 2) for name in TRAININGS}
    rank = distributed.rank()
    world = distributed.join(2, "cpu")

    dropout = network(folder)
    told: list[int] = []

    def run(spec: NetworkSpec = dropout, **changes: Any) -> Fitted:
        return fit(spec, shards, toys.config(**{"processes": 2, **changes}))

    def training(checkpoints: Path | None, asked: Callable[[], bool] = lambda: False, **changes: Any) -> Fitted:
        return fit(
            dropout, shards, toys.config(processes=2, **changes), checkpoints=checkpoints, interrupted=asked,
            on_epoch=lambda record: told.append(record.epoch),
        )  # fmt: skip

    def resumed(checkpoints: Path, **changes: Any) -> dict[str, Any]:
        told.clear()
        whole = training(None, **changes)
        found: dict[str, Any] = {"told": list(told)}
        calls = iter(range(100))
        try:  # the last process alone is asked, within the second epoch
            training(checkpoints, lambda: next(calls) >= 4 and rank == 1, **changes)
        except InterruptedTrainingError:
            world.any(False)  # both are here
            found["checkpoints"] = sorted(path.name for path in checkpoints.glob("*.pt"))
            world.any(False)
        again = training(checkpoints, **changes)
        found["same"] = all(torch.equal(a, b) for a, b in zip(
            whole.classifier.state_dict().values(), again.classifier.state_dict().values(), strict=True))  # fmt: skip
        found["history"] = again.history == whole.history
        found["type"] = type(again.classifier).__name__
        return found

    checkpoints = folder / "checkpoints"
    found["resumed"] = resumed(checkpoints)
    for name, fsdp in {"replicated": False, "sharded": True}.items():
        found[f"resumed, {name}"] = resumed(folder / name, **{**WITH_FILES, "fsdp": fsdp})
    own = folder / f"own{rank}"
    if rank == 0:
        (own / "checkpoint_9.pt").parent.mkdir()
        (own / "checkpoint_9.pt").write_bytes((checkpoints / "checkpoint_9.pt").read_bytes())

    found["errors"] = {
        "diverged": message(lambda: run(optimizer="sgd", lr=1e30, warmup=0.0, epochs=1)),
        "compares": message(lambda: run(losses=(Term("supcon"),))),
        "batch": message(lambda: run(batch_size=7)),
        "count": message(lambda: run(processes=3)),
        "layer": message(lambda: run(spec=network(folder, NORMED.replace(
            "{id: pool", "{id: mean, op: layer_mean_batch_norm}\n  - {id: pool")))),
        "folders": message(lambda: training(own)),
    }  # fmt: skip
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, float(rank))
    found["errors"]["model"] = message(lambda: world.check_equal(layer))
    nn.init.constant_(layer.weight, 1.0)
    found["errors"]["equal model"] = message(lambda: world.check_equal(layer))
    found["by_rows"] = [
        world.by_rows(lambda rows: rows * np.float32(2), np.arange(2 * n, dtype=np.float32).reshape(n, 2)).tolist()
        for n in (1, 2, 5)
    ]
    found["optimizers"] = {name: steps_as_whole(name) for name in sharding._ELEMENTWISE}
    found["spread"] = spread(dropout, shards, world)
    found["any"] = [world.any(False, rank == 1), world.any(False, False)]
    distributed.leave()
    return found


if __name__ == "__main__":
    torch.save(main(Path(sys.argv[1])), Path(sys.argv[1]) / f"rank{distributed.rank()}.pt")
