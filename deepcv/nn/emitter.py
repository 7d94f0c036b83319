"""What an op needs to put itself into the graph: one call per layer, with the shape that comes out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

Shape = tuple[int, ...]


class FitError(Exception):
    """An op does not fit the shapes that reach it; `build` adds the file, the line and the node."""


@dataclass(frozen=True)
class Value:
    """What a node gives to later ones: its place in the graph and the shape of one sample, (C, H, W) or (F,)."""

    source: str
    node: fx.Node
    shape: Shape

    def __str__(self) -> str:
        return f"{self.source!r} ({', '.join(map(str, self.shape))})"


class Emitter:
    """Writes one network into an fx graph.

    Modules are made on the meta device and stay there until `build` gives them storage, but nothing is run there: each op
    states its output shape. The first operation on meta tensors imports sympy and torch._dynamo, which costs every
    process 1 to 4 s, and an op's formula is one line.
    """

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.node_id = ""

    def input(self, name: str, shape: Shape) -> Value:
        """The graph's placeholder for a batch of samples of this shape."""
        return self.value(self.graph.placeholder(name), shape, name)

    def module(self, module: nn.Module, value: Value, shape: Shape, part: str = "") -> Value:
        """Call a module. Its path, hence its state_dict keys, is the node's id; `id.part` where a node has several."""
        path = f"{self.node_id}.{part}" if part else self.node_id
        parent = self.root
        *folders, leaf = path.split(".")
        for folder in folders:
            if folder not in parent._modules:
                parent.add_module(folder, nn.Module())
            parent = parent.get_submodule(folder)
        parent.add_module(leaf, module)
        return self.value(self.graph.call_module(path, (value.node,)), shape)

    def function(self, function: Callable[..., Any], arguments: tuple[Any, ...], shape: Shape) -> Value:
        """Call a function of torch. Arguments are constants, values and lists of values."""
        nodes = tuple([v.node for v in a] if isinstance(a, list) else _node(a) for a in arguments)
        return self.value(self.graph.call_function(function, nodes), shape)

    def value(self, node: fx.Node, shape: Shape, source: str = "") -> Value:
        """What the current node gives; the shape of one sample stays in the graph as `node.meta["shape"]`."""
        node.meta["shape"] = shape
        return Value(source or self.node_id, node, shape)


def _node(argument: Any) -> Any:
    return argument.node if isinstance(argument, Value) else argument
