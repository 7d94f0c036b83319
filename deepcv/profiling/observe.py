"""One run of a network, node by node: what each needs and gives."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from deepcv.profiling.memory import LiveBytes, weights
from deepcv.profiling.receptive_field import Field, Fields

Shape = tuple[int, ...]


@dataclass(frozen=True)
class NodeProfile:
    """One node of the graph, for one image.

    A MAC is one multiply-add of a convolution, a matrix product or attention; biases, norms, activations and additions
    are not counted. Parameters of a module that several nodes call are the first one's. `field` is None where the value
    does not depend on an image by way of operations that are known to `receptive_field`.
    """

    name: str
    id: str
    kind: str
    inputs: tuple[str, ...]
    shape: Shape | None
    parameters: int
    macs: int
    field: Field | None
    made_bytes: int  # of storages that are new with this node's value: none for a view or an operation in place
    live_bytes: (
        int  # most bytes of values alive while it ran, the network's input and what the node holds for itself included
    )


def observe(network: fx.GraphModule, *shapes: Shape) -> tuple[NodeProfile, ...]:
    """Run the network once in eval mode on one random image and tell of each node.

    `shapes` are those of one sample for each input; by default those that `deepcv.nn.spec.build` left in the graph.
    Runs where the parameters are. Raises ValueError where the shapes are unknown.
    """
    images = [torch.randn(1, *shape, device=device_of(network)) for shape in shapes or input_shapes(network)]
    # The counter comes first, hence sees operations last: it takes some apart, such as resizing, into others.
    counter, fields, live = FlopCounterMode(display=False), Fields(*images), LiveBytes(network)
    with torch.no_grad(), as_it_answers(network), counter, fields, live:
        live.add(images)
        observer = _Observer(network, counter, fields, live)
        observer.run(*images)
    return tuple(observer.found)


def input_shapes(network: fx.GraphModule) -> tuple[Shape, ...]:
    """Shapes of one sample of each input. Raises ValueError where the graph does not hold them."""
    inputs = [node for node in network.graph.nodes if node.op == "placeholder"]
    if not all("shape" in node.meta for node in inputs):
        raise ValueError(
            "the graph does not know the shape of its input; give it, e.g. observe(network, (3, 224, 224))"
        )
    return tuple(tuple(node.meta["shape"]) for node in inputs)


def device_of(network: nn.Module) -> torch.device:
    """Where the parameters are; the CPU if there are none."""
    return next((tensor.device for tensor in weights(network)), torch.device("cpu"))


@contextmanager
def as_it_answers(network: nn.Module) -> Iterator[None]:
    """Eval mode, without torch's fused attention layer, whose insides no counter sees; both are put back."""
    modes = {module: module.training for module in network.modules()}
    fused = torch.backends.mha.get_fastpath_enabled()
    network.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, mode in modes.items():
            module.training = mode


class _Observer(fx.Interpreter):
    def __init__(self, network: fx.GraphModule, counter: FlopCounterMode, fields: Fields, live: LiveBytes) -> None:
        super().__init__(network)
        self.counter, self.fields, self.live = counter, fields, live
        self.found: list[NodeProfile] = []
        self._counted: set[int] = set()  # parameters by identity

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and note what it took."""
        self.live.restart()
        flops = self.counter.get_total_flops()
        result = super().run_node(n)
        if n.op == "output":
            return result
        first = next((leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)), None)
        self.found.append(
            NodeProfile(
                name=n.name,
                id=node_id(n),
                kind=self._kind(n),
                inputs=tuple(source.name for source in n.all_input_nodes),
                shape=None if first is None else tuple(first.shape[1:]),
                parameters=self._parameters(n),
                macs=(self.counter.get_total_flops() - flops) // 2,
                field=self.fields.of(first),
                made_bytes=self.live.made(result),
                live_bytes=self.live.peak,
            )
        )
        return result

    def _parameters(self, node: fx.Node) -> int:
        """Parameters that this node is the first to use: its module's, and those that the graph gives it."""
        used = list(self.fetch_attr(str(node.target)).parameters()) if node.op == "call_module" else []
        given = [self.fetch_attr(str(source.target)) for source in node.all_input_nodes if source.op == "get_attr"]
        used += [value for value in given if isinstance(value, nn.Parameter)]
        new = [parameter for parameter in used if id(parameter) not in self._counted]
        self._counted |= {id(parameter) for parameter in new}
        return sum(parameter.numel() for parameter in new)

    def _kind(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return type(self.fetch_attr(str(node.target))).__name__
        if node.op in ("placeholder", "get_attr"):
            return "input" if node.op == "placeholder" else "constant"
        return str(getattr(node.target, "__name__", node.target)).strip("_")


def node_id(node: fx.Node) -> str:
    """The id in the network file; elsewhere the path of the module, or of the module around a function."""
    if "id" in node.meta:
        return str(node.meta["id"])
    if node.op == "call_module":
        return str(node.target)
    around = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values() if path]
    return f"{around[-1]}.{node.name.removeprefix(around[-1].replace('.', '_') + '_')}" if around else node.name
