"""Layers that run a subgraph of their network: again in the backward pass, or one of several.

A subgraph is a graph module that uses the network's own modules under their own paths. It is kept in a tuple, where torch does not look
for modules: else every weight would have two keys in the state_dict.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from deepcv.nn.layers.spectral import Spectral


class Checkpointed(nn.Module):
    """Keeps only what goes into a subgraph, and computes it again in the backward pass (Chen 2016, arXiv 1604.06174).

    The second computation draws the same dropout and leaves the statistics of norms and spectral norms alone, so values and
    gradients are those of the subgraph itself.
    """

    def __init__(self, subgraph: fx.GraphModule) -> None:
        super().__init__()
        self.subgraphs = (subgraph,)

    def forward(self, *values: Tensor) -> Tensor | tuple[Tensor, ...]:
        """What the subgraph gives."""
        subgraph = self.subgraphs[0]
        if not (self.training and torch.is_grad_enabled()):
            result: Tensor | tuple[Tensor, ...] = subgraph(*values)
            return result
        training = [module for module in subgraph.modules() if module.training]
        norms = [module for module in training if isinstance(module, _NormBase)]
        spectral = [module for module in training if isinstance(module, Spectral)]

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _without_statistics(norms, spectral)

        again: Tensor | tuple[Tensor, ...] = checkpoint(subgraph, *values, use_reentrant=False, context_fn=contexts)
        return again


@contextmanager
def _without_statistics(norms: list[_NormBase], spectral: list[Spectral]) -> Iterator[None]:
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # not track_running_stats: as many tensors must be saved as the first time
    for layer in spectral:
        layer.held = True
    try:
        yield
    finally:
        for layer in spectral:
            layer.held = False
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.sub_(1)


class OpenChoice(nn.Module):
    """A choice that a search decides: `names` are its candidates, all take the same values."""

    def __init__(self, names: tuple[str, ...], picks: int) -> None:
        super().__init__()
        self.names, self.picks = names, picks
        self.subgraphs: tuple[fx.GraphModule, ...] = ()


class SampledChoice(OpenChoice):
    """Runs the candidates of `active`, their places among `names`, and no other; the first ones to begin with."""

    def __init__(self, names: tuple[str, ...], picks: int) -> None:
        super().__init__(names, picks)
        self.active = tuple(range(picks))

    def forward(self, *values: Tensor) -> Tensor:
        """The sum of the active candidates."""
        first, *others = self.active
        total: Tensor = self.subgraphs[first](*values)
        for place in others:
            total = total + self.subgraphs[place](*values)
        return total


class MixedChoice(OpenChoice):
    """Runs every candidate and weighs it by `mixing` (candidates,), equal parts to begin with (DARTS, Liu 2018, arXiv 1806.09055).

    A search sets `mixing`, e.g. to a softmax of what it learns: it is no weight of the network, and the keys are those of the
    network without a search.
    """

    def __init__(self, names: tuple[str, ...], picks: int) -> None:
        super().__init__(names, picks)
        self.mixing = torch.full((len(names),), picks / len(names), device="cpu")

    def forward(self, *values: Tensor) -> Tensor:
        """The weighed sum of all candidates."""
        mixing = self.mixing.to(values[0])
        total: Tensor = self.subgraphs[0](*values) * mixing[0]
        for place, subgraph in enumerate(self.subgraphs[1:], start=1):
            total = total + subgraph(*values) * mixing[place]
        return total
