"""Bytes that the values of a network take, while it answers and while it is trained. Weights are counted apart."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Follows the storages that operations make, for as long as anything holds them.

    `peak` is the most bytes alive at once since the last `restart`. What a kernel takes for itself (workspaces) and what
    the allocator rounds up is not seen. `left_out` are modules whose parameters and buffers do not count.
    """

    def __init__(self, *left_out: nn.Module) -> None:
        super().__init__()
        self._left_out = {_storage(tensor)[0] for module in left_out for tensor in weights(module)}
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self._new: set[int] = set()
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.add(result)
        return result

    def add(self, values: Any) -> None:
        """Follow the storages of these tensors too."""
        self._drop_dead()
        for tensor in tree_leaves(values):
            if isinstance(tensor, Tensor):
                key, size = _storage(tensor)
                if key not in self._left_out and key not in self._alive:
                    # While a weak reference stands, no other storage gets this address: the key stays unique.
                    self._alive[key] = StorageWeakRef(tensor.untyped_storage()), size
                    self._new.add(key)
        self.peak = max(self.peak, self._total())

    def made(self, values: Any) -> int:
        """Bytes of those storages of these tensors that are new since the last `restart`."""
        storages = dict(_storage(tensor) for tensor in tree_leaves(values) if isinstance(tensor, Tensor))
        return sum(size for key, size in storages.items() if key in self._new)

    def restart(self) -> None:
        """Start a new peak at what is alive now."""
        self._drop_dead()
        self._new.clear()
        self.peak = self._total()

    def _drop_dead(self) -> None:
        for key in [key for key, (reference, _) in self._alive.items() if reference.expired()]:
            del self._alive[key]
            self._new.discard(key)

    def _total(self) -> int:
        return sum(size for _, size in self._alive.values())


def weights(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers, each once."""
    return [*module.parameters(), *module.buffers()]


def weight_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers; shared storages once."""
    return sum(dict(_storage(tensor) for tensor in weights(module)).values())


def training_bytes(network: nn.Module, shapes: Sequence[tuple[int, ...]]) -> int:
    """Bytes that one more image in the batch keeps alive between forward and backward pass, its input included.

    These are the tensors that autograd saves, seen in training mode; the difference of batches of 3 and 2, so that what
    is saved once per batch (statistics of norms) drops out. Parameters, gradients and optimizer state come on top.
    """
    twin = copy.deepcopy(network).train()  # batch norms move their statistics
    device = next((tensor.device for tensor in weights(twin)), torch.device("cpu"))
    with torch.random.fork_rng(devices=[]):
        few, more = (_saved(twin, [torch.randn(n, *shape, device=device) for shape in shapes]) for n in (2, 3))
    return more - few


def _saved(network: nn.Module, inputs: list[Tensor]) -> int:
    own = {_storage(tensor)[0] for tensor in weights(network)}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        key, size = _storage(tensor)
        if key not in own:
            saved[key] = size
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = network(*inputs)  # holds the graph, so that no address comes twice
    del outputs
    return sum(saved.values())


def _storage(tensor: Tensor) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    return storage._cdata, storage.nbytes()
