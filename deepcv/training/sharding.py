"""Weights, gradients and optimizer state spread over the processes: torch's FSDP2 (Zhao et al. 2023, arXiv 2304.11277).

A layer's weights are gathered for its forward pass and again for its backward pass, after which each process has the mean of the
gradients of its share; in between it holds its share alone. Everything here is to be called by all processes.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from deepcv.errors import DeepcvError
from deepcv.nn.classifier import Classifier
from deepcv.training.config import TrainConfig

# Weights of a layer. Smaller ones are gathered together, for there the calls cost more than the bytes.
GATHERED_ALONE = 2**18
# Of torch.optim: a weight's step follows from its own gradients alone, so that the steps of the shares are that of the whole.
_ELEMENTWISE = ("Adadelta", "Adagrad", "Adam", "Adamax", "AdamW", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")


def check(config: TrainConfig, processes: int) -> None:
    """Raise DeepcvError where a training cannot be sharded."""
    if not config.fsdp:
        return
    if processes == 1:
        raise DeepcvError(
            "train.fsdp spreads a network over processes, but there is one; set train.processes to 2 or more, or train.fsdp to false"
        )
    if config.compile:
        raise DeepcvError(
            "train.compile takes layers in one, train.fsdp gathers them one by one; set one of the two to false"
        )
    if config.optimizer not in ("adamw", "sgd", *(f"torch/{name}" for name in _ELEMENTWISE)):
        raise DeepcvError(
            f"train.optimizer: {config.optimizer} may look at whole tensors, of which train.fsdp leaves each process a share; take "
            f"adamw, sgd or torch/… with one of {', '.join(_ELEMENTWISE)}, or set train.fsdp to false"
        )


def shard(classifier: Classifier, device: str, processes: int) -> None:
    """Leave each process its share of every parameter, in place: before the optimizer is made, and after the last deepcopy.

    Raises DeepcvError for a parameter that has no rows to share out.
    """
    for name, parameter in classifier.named_parameters():
        if not parameter.ndim:
            raise DeepcvError(f"{name} is a single number, which train.fsdp cannot share out; set train.fsdp to false")
        parameter.data = parameter.data.contiguous()  # FSDP takes no channels_last; activations keep it
    mesh = init_device_mesh(device, (processes,))
    assert isinstance(classifier.network, fx.GraphModule)  # noqa: S101  # for mypy
    for layer in dict.fromkeys(_layers(classifier.network)):
        if sum(parameter.numel() for parameter in layer.parameters()) >= GATHERED_ALONE:
            fully_shard(layer, mesh=mesh)
    # All that is left. By default it would stay whole after an evaluation, where a running mean is to find its share.
    fully_shard(classifier, mesh=mesh, reshard_after_forward=True)


def _layers(graph: fx.GraphModule) -> Iterator[nn.Module]:
    """What the graph calls, and what the subgraphs call that some of these run: the places where weights can be gathered."""
    for node in graph.graph.find_nodes(op="call_module"):
        layer = graph.get_submodule(str(node.target))
        yield layer
        for subgraph in getattr(layer, "subgraphs", ()):
            yield from _layers(subgraph)


def whole(tensor: Tensor) -> Tensor:
    """What all processes have of a tensor together; a tensor that is not spread, itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class WholeModel:
    """A model whose state is that of all processes, on the CPU where it is spread: what a checkpoint needs, sharded or not."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def state_dict(self) -> dict[str, Any]:
        """The model's own, of whole tensors."""
        state = self._model.state_dict()
        for name, value in state.items():
            state[name] = _stored(value)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave, here or in any other number of processes."""
        own = self._model.state_dict()
        self._model.load_state_dict({name: _share(value, own.get(name)) for name, value in state.items()})


class WholeOptimizer:
    """An optimizer whose state is that of all processes, in the same way."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's own, of whole tensors."""
        state = self._optimizer.state_dict()
        return {**state, "state": {at: {k: _stored(v) for k, v in kept.items()} for at, kept in state["state"].items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        parameters = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        shares = {at: {k: _share(v, parameters[at]) for k, v in kept.items()} for at, kept in state["state"].items()}
        self._optimizer.load_state_dict({**state, "state": shares})


def _stored(value: Any) -> Any:
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def _share(value: Any, like: Tensor | None) -> Any:
    """This process's share of a whole tensor, cut as another one is; what has another shape, as it is. No process waits here."""
    if isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape:
        return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
    return value
