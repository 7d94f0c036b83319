"""Early exits: easy images leave a network at the first output that is sure of them."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, fx

from deepcv.nn.subgraphs import split_at

Sureness = Literal["probability", "margin"]


class Exited(NamedTuple):
    """Logits (n, classes) and, for each image, the place of the exit that it left by, int64 (n,)."""

    logits: Tensor
    exits: Tensor


class EarlyExit:
    """Runs a network piece by piece (Teerapittayanon 2016, arXiv 1709.01686).

    `exits` are outputs of class logits from early to late. An image leaves at the first that is as sure as
    its entry of `thresholds` asks (`sureness`, by `measure`); the last exit takes the rest and has none. What has left is not computed
    further. The pieces are the network's own layers: it is put in eval mode and stays there.
    """

    def __init__(
        self,
        network: fx.GraphModule,
        exits: Sequence[str],
        thresholds: Sequence[float],
        measure: Sureness = "probability",
    ) -> None:
        if len(thresholds) != len(exits) - 1:
            raise ValueError(f"{len(exits)} exits need {len(exits) - 1} thresholds, got {len(thresholds)}")
        self.pieces = split_at(network.eval(), exits)
        self.inputs = tuple(str(node.target) for node in network.graph.nodes if node.op == "placeholder")
        self.thresholds = tuple(thresholds)
        self.measure: Sureness = measure

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Exited:
        """Classify a batch (n, C, H, W) of each of the network's inputs."""
        values = dict(zip(self.inputs, inputs, strict=True))
        left = torch.arange(len(inputs[0]), device=inputs[0].device)
        exits = torch.zeros_like(left)
        logits = torch.empty(0)
        for place, piece in enumerate(self.pieces):
            made = piece.module(*(values[name] for name in piece.inputs))
            values |= zip(piece.outputs, [made] if isinstance(made, Tensor) else made, strict=True)
            answer = values[piece.outputs[0]]
            if place == 0:
                logits = answer.new_empty(len(left), answer.shape[1])
            goes_on = torch.zeros_like(left, dtype=torch.bool)
            if place < len(self.thresholds):
                goes_on = sureness(answer, self.measure) < self.thresholds[place]
            logits[left[~goes_on]] = answer[~goes_on]
            exits[left[~goes_on]] = place
            left = left[goes_on]
            if not len(left):
                break
            needed = {name for later in self.pieces[place + 1 :] for name in later.inputs}
            values = {name: value[goes_on] for name, value in values.items() if name in needed}
        return Exited(logits, exits)


def sureness(logits: Tensor, measure: Sureness = "probability") -> Tensor:
    """How sure logits (..., classes) are, 0 to 1: the largest softmax probability, or its margin to the second (Park 2015)."""
    first, second = logits.softmax(-1).topk(2, -1).values.unbind(-1)
    return first if measure == "probability" else first - second
