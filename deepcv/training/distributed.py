"""Training on several processes, each with its share of every batch: torch's launcher starts them, ignite.distributed joins them.

One process is the case that changes nothing: no process group, no wrapper, no call that waits.
"""

import logging
import os
import signal
import sys
import tempfile
import uuid
import warnings
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from deepcv.errors import DeepcvError
from deepcv.training.sharding import whole
from deepcv.training.shared_norms import share_norms

_Array = NDArray[np.generic]


@dataclass(frozen=True)
class World:
    """The processes that train together: this one is `rank` of `count`. Every method is to be called by all of them."""

    rank: int = 0
    count: int = 1
    host: distributed.ProcessGroup | None = None  # for what lies in main memory; None: the group of all

    @property
    def leads(self) -> bool:
        """Whether this process speaks for all: it logs and writes."""
        return self.rank == 0

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Whether each flag is set in one process at least."""
        if self.count == 1:
            return flags
        votes = torch.tensor(flags, dtype=torch.int32)
        distributed.all_reduce(votes, distributed.ReduceOp.MAX, self.host)
        return tuple(bool(vote) for vote in votes.tolist())

    def total(self, values: Tensor) -> Tensor:
        """The sum of a tensor over the processes, the same bits in all of them."""
        if self.count == 1:
            return values
        summed = values.clone()
        distributed.all_reduce(summed)
        return summed

    def gather(self, values: Tensor) -> Tensor:
        """A tensor (…) of main memory from each process, (count, …); with one process the tensor itself."""
        if self.count == 1:
            return values
        found = [torch.empty_like(values) for _ in range(self.count)]
        distributed.all_gather(found, values, self.host)
        return torch.stack(found)

    def own(self, gathered: Tensor) -> Tensor:
        """What this process gave to `gather`."""
        return gathered if self.count == 1 else gathered[self.rank].clone()  # a view would crash torch.set_rng_state

    def by_rows(self, work: Callable[[_Array], NDArray[np.float32]], rows: _Array) -> NDArray[np.float32]:
        """`work(rows)`, one result per row, each process doing its part.

        The parts are equally long, so that the last ones may overlap.
        """
        if self.count == 1:
            return work(rows)
        length = -(-len(rows) // self.count)
        starts = [min(rank * length, len(rows) - length) for rank in range(self.count)]
        made = self.gather(torch.from_numpy(work(rows[starts[self.rank] :][:length])))
        joined = made.new_empty(len(rows), *made.shape[2:])
        for start, part in zip(starts, made, strict=True):
            joined[start : start + length] = part
        return joined.numpy()

    def check_place(self, iteration: int) -> None:
        """Raise DeepcvError where not all processes are at this iteration."""
        places = self.gather(torch.tensor(iteration)).unique().tolist()
        if len(places) > 1:
            raise DeepcvError(
                f"the processes found different checkpoints, of the steps {', '.join(map(str, places))}; all need one common folder"
            )

    def check_equal(self, model: nn.Module) -> None:
        """Raise DeepcvError where the model is not the same in all processes."""
        if self.count == 1:
            return
        sums = [whole(tensor.detach().double().sum()) for tensor in [*model.parameters(), *model.buffers()]]
        digests = self.gather(torch.stack(sums).cpu())
        if not torch.equal(digests, digests[:1].expand_as(digests)) and bool(digests.isfinite().all()):
            names = [name for name, _ in [*model.named_parameters(), *model.named_buffers()]]
            other = (digests != digests[0]).any(0).nonzero()[0].item()
            raise DeepcvError(
                f"{names[int(other)]} has become another in each process: its layer learns from what a process sees alone; "
                "set train.processes to 1"
            )


ALONE = World()


def launched() -> int:
    """How many processes `torchrun` or `launch` started together with this one; 0 where they did not start it."""
    return int(os.environ["WORLD_SIZE"]) if {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys() else 0


def rank() -> int:
    """The number of this process, 0 for the one that speaks for all; known before `join`."""
    return int(os.environ["RANK"]) if launched() else 0


def launch(processes: int, module: str) -> None:
    """Run `python -m module` in so many processes of this machine, as `torchrun` does, and wait for them; they get our signals.

    Ends this process where one of them fails, with its exit status; what failed it has said itself. Raises DeepcvError where
    one was killed.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable()  # from here on this process only waits, and the launcher prints a page on what is said already
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else gloo looks up the machine's name, which may lead nowhere
    with tempfile.TemporaryDirectory(prefix="deepcv-") as folder:
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=uuid.uuid4().hex, max_restarts=0,
            rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", local_addr="127.0.0.1",
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )  # fmt: skip
        try:
            elastic_launch(config, sys.executable)("-m", module)
        except SignalException as error:
            sys.exit(128 + error.sigval)
        except ChildFailedError as error:
            codes = {number: failure.exitcode for number, failure in error.failures.items()}
            for number, code in codes.items():
                if code < 0 and -code != signal.SIGTERM:  # which the launcher sends to the rest
                    raise DeepcvError(
                        f"process {number} of {processes} was ended by signal {-code}; where memory is short, lower "
                        "train.processes or train.batch_size"
                    ) from error
            sys.exit(next((code for code in codes.values() if code > 0), 1))


def join(processes: int, device: str) -> World:
    """Join the others, over gloo on CPUs and NCCL on GPUs; `processes` is how many are expected.

    Raises DeepcvError where there are more or less.
    """
    there = launched() or idist.get_world_size()
    if there != processes:
        raise DeepcvError(
            f"train.processes is {processes}, but {there} {'runs' if there == 1 else 'run'}; set train.processes to {there}, "
            f"or start the training with `torchrun --standalone --nproc-per-node {processes}`"
        )
    if processes == 1:
        return World()
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda" and local >= torch.cuda.device_count():
        raise DeepcvError(
            f"train.processes: process {local} of this machine has no GPU, there are {torch.cuda.device_count()}; "
            "each process needs one of its own"
        )
    if not distributed.is_initialized():
        idist.initialize("nccl" if device == "cuda" else "gloo")
    host: Any = distributed.new_group(backend="gloo") if device == "cuda" else None
    return World(idist.get_rank(), idist.get_world_size(), host)


def leave() -> None:
    """Leave the group that `join` made, where there is one."""
    if distributed.is_available() and distributed.is_initialized():
        idist.finalize()


def prepare(model: nn.Module, world: World, device: str) -> None:
    """Give a model rank 0's weights and let its batch norms see whole batches; before its optimizer is made.

    Raises DeepcvError for layers that cannot.
    """
    if world.count == 1:
        return
    for tensor in [*model.parameters(), *model.buffers()]:
        distributed.broadcast(tensor.detach(), 0)
    share_norms(model, device)


class _Trained(nn.Module):
    """A model whose other outputs are cut off from it: DDP would wait for their gradients."""

    def __init__(self, model: nn.Module, names: Collection[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, images_nchw: Tensor) -> dict[str, Tensor]:
        outputs = self.model(images_nchw)
        return {name: output if name in self.names else output.detach() for name, output in outputs.items()}


def replicated(
    model: nn.Module, world: World, *, outputs: Collection[str], trained: Collection[str], partly: bool
) -> nn.Module:
    """The model for the training step: its gradients are the mean over all processes.

    `trained` are those of its `outputs` that a loss is computed of; `partly` says whether some parameters do not learn in
    some steps.
    """
    if world.count == 1 or isinstance(model, FSDPModule):  # which sees to its gradients itself
        return model
    partly = partly or not set(outputs) <= set(trained)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # `broadcast_buffers` has another name in torch 2.15, not yet in 2.11
        return DistributedDataParallel(
            _Trained(model, trained),
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            find_unused_parameters=partly,
        )


def synchronised(model: nn.Module, last: bool) -> AbstractContextManager[None]:
    """For a forward pass: only behind the last one of a step gradients are exchanged."""
    return nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()
