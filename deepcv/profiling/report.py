"""Everything that is known of what a network costs."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import fx

from deepcv.profiling import memory, timing
from deepcv.profiling.cross_check import Opinion, flagged, opinions
from deepcv.profiling.observe import NodeProfile, Shape, input_shapes, macs_of, observe, peak_bytes_of
from deepcv.profiling.timing import Timing


@dataclass(frozen=True)
class Profile:
    """The figures of a network for one image of `shapes` (those of its inputs, without the batch)."""

    name: str
    shapes: tuple[Shape, ...]
    nodes: tuple[NodeProfile, ...]
    parameters: int
    weight_bytes: int  # parameters and buffers
    macs: int
    peak_bytes: int  # most bytes of values alive at once, without gradients
    training_bytes: int  # that one more image of a training batch keeps for the backward pass
    opinions: tuple[Opinion, ...] = ()
    timings: tuple[Timing, ...] = ()

    @property
    def disagreements(self) -> list[str]:
        """Where another counter is more than 2 % away, with the reason where it is known."""
        return flagged(self.opinions, self.parameters, self.macs)


def profile(
    network: fx.GraphModule, *shapes: Shape, name: str = "network", devices: Sequence[str] = ("cpu",), batch: int = 1,
    repeats: int = 20, threads: int = 1,
) -> Profile:  # fmt: skip
    """Count, ask the other counters, and time on each device; no device: no times.

    `shapes` as in `observe`. Raises ValueError where they are unknown.
    """
    shapes = shapes or input_shapes(network)
    nodes = observe(network, *shapes)
    return Profile(
        name=name,
        shapes=shapes,
        nodes=nodes,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        weight_bytes=memory.weight_bytes(network),
        macs=macs_of(nodes),
        peak_bytes=peak_bytes_of(nodes),
        training_bytes=memory.training_bytes(network, shapes),
        opinions=opinions(network, *shapes),
        timings=tuple(
            timing.measure(network, *shapes, device=device, batch=batch, repeats=repeats, threads=threads)
            for device in devices
        ),
    )


def as_json(found: Profile) -> str:
    """All of it as JSON; a receptive field is the text that the table shows."""
    values: dict[str, Any] = asdict(found)
    for node, row in zip(found.nodes, values["nodes"], strict=True):
        row["field"] = None if node.field is None else str(node.field)
    for time, row in zip(found.timings, values["timings"], strict=True):
        row["images_per_s"] = time.images_per_s
    for one, row in zip(found.opinions, values["opinions"], strict=True):
        row["disagrees"] = one.disagrees(found.parameters, found.macs)
    return json.dumps({**values, "disagreements": found.disagreements}, indent=1)
