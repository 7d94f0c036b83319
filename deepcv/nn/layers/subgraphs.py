"""Layers that run a subgraph of their network: again in the backward pass, or one of several.

A subgraph is a graph module that uses the network's own modules under their own paths. It is kept in a tuple, where torch does not look
for modules: else every weight would have two keys in the state_dict.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

from deepcv.nn.layers.spectral import Spectral


class Checkpointed(nn.Module):
    """Keeps only what goes into a subgraph, and computes it again in the backward pass (Chen 2016, arXiv 1604.06174).

    The second computation draws the same dropout and begins with the buffers that the first began with, on copies: norms and
    spectral norms count a batch once, and values and gradients are those of the subgraph itself.
    """

    def __init__(self, subgraph: fx.GraphModule) -> None:
        super().__init__()
        self.subgraphs = (subgraph,)
        self.spectral = any(isinstance(layer, Spectral) for layer in _layers(subgraph))

    def forward(self, *values: Tensor) -> Tensor | tuple[Tensor, ...]:
        """What the subgraph gives."""
        if not (self.training and torch.is_grad_enabled()):
            result: Tensor | tuple[Tensor, ...] = self.subgraphs[0](*values)
            return result
        if not torch.compiler.is_compiling():
            return self._again(*values)
        if self.spectral:  # a compiled graph would begin anew with the vectors that it has changed; torch refuses that
            return torch.compiler.disable(self._again)(*values)  # type: ignore[no-any-return]
        again: Tensor | tuple[Tensor, ...] = checkpoint(self.subgraphs[0], *values, use_reentrant=False)
        return again  # a compiled graph computes values again, and never what is done to buffers

    def _again(self, *values: Tensor) -> Tensor | tuple[Tensor, ...]:
        subgraph = self.subgraphs[0]

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _Rewound(subgraph)

        again: Tensor | tuple[Tensor, ...] = checkpoint(subgraph, *values, use_reentrant=False, context_fn=contexts)
        return again


class _Rewound(AbstractContextManager[None]):
    """Within it, layers in train mode have copies of the buffers that they had when it was made."""

    def __init__(self, subgraph: nn.Module) -> None:
        self.before: list[tuple[nn.Module, str, Tensor]] = [
            (layer, name, buffer.clone())
            for layer in _layers(subgraph)
            if layer.training
            for name, buffer in layer._buffers.items()
            if buffer is not None and not buffer.requires_grad  # what learns is no statistic: its gradient must arrive
        ]

    def __enter__(self) -> None:
        self.present = [layer._buffers[name] for layer, name, _ in self.before]
        for layer, name, buffer in self.before:
            layer._buffers[name] = buffer.clone()  # a graph that is retained may be computed once more

    def __exit__(self, *_error: object) -> None:
        for (layer, name, _), present in zip(self.before, self.present, strict=True):
            layer._buffers[name] = present


def _layers(subgraph: nn.Module) -> Iterator[nn.Module]:
    """The layers of a subgraph, those of the candidates of its choices too."""
    for layer in subgraph.modules():
        yield layer
        if isinstance(layer, OpenChoice):
            for candidate in layer.subgraphs:
                yield from _layers(candidate)


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

    mixing: Tensor

    def __init__(self, names: tuple[str, ...], picks: int) -> None:
        super().__init__(names, picks)
        mixing = torch.full((len(names),), picks / len(names), device="cpu")
        self.register_buffer("mixing", mixing, persistent=False)  # so that it moves with the network, and is no key

    def forward(self, *values: Tensor) -> Tensor:
        """The weighed sum of all candidates."""
        mixing = self.mixing.to(values[0])
        total: Tensor = self.subgraphs[0](*values) * mixing[0]
        for place, subgraph in enumerate(self.subgraphs[1:], start=1):
            total = total + subgraph(*values) * mixing[place]
        return total
