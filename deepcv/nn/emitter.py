"""What an op needs to put itself into the graph: one call per layer, with the shape that comes out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

Shape = tuple[Any, ...]  # of sizes; of a value that is several tensors, of their shapes
Start = Callable[[nn.Module], None]


class FitError(Exception):
    """An op does not fit the shapes that reach it; `build` adds the file, the line and the node."""


@dataclass(frozen=True)
class Value:
    """What a node gives to later ones: its place in the graph and the shape of one sample, e.g. (C, H, W) or (F,)."""

    source: str
    node: fx.Node
    shape: Shape

    def __str__(self) -> str:
        return f"{self.source!r} ({', '.join(map(str, self.shape))})"


class Emitter:
    """Writes one network into an fx graph.

    Modules are made on the meta device and stay there until `build` gives them storage, but nothing is run there: each op
    states its output shape. The first operation on meta tensors imports sympy and torch._dynamo, which costs every
    process 1 to 4 s, and an op's formula is one line. `run_on_meta` is for the few layers that have none.
    """

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.paths: list[str] = []  # of the modules, in the order of the file
        self.starts: dict[nn.Module, Start] = {}  # how a module starts, where that is not the default
        self.node_id = ""
        self.owner = ""  # the node whose modules this one uses; itself, but for `share`
        self.owners: set[str] = set()
        self.made = False  # whether another node has made them

    @contextmanager
    def node(self, node_id: str, owner: str = "") -> Iterator[None]:
        """Write under this node's id, with the modules of `owner`."""
        self.node_id, self.owner = node_id, owner or node_id
        self.made = self.owner in self.owners  # not so where the owner itself is left out of the network
        self.owners.add(self.owner)
        yield

    def input(self, name: str, shape: Shape) -> Value:
        """The graph's placeholder for a batch of samples of this shape."""
        return self.value(self.graph.placeholder(name), shape, name)

    def module(
        self,
        module: nn.Module,
        values: Value | Sequence[Value],
        shape: Shape,
        part: str = "",
        start: Start | Mapping[nn.Module, Start] | None = None,
    ) -> Value:
        """Call a module. Its path, hence its state_dict keys, is the node's id; `id.part` where a node has several.

        `start` sets its first weights once it has storage, or those of some of its parts; torch's or He's way is the default
        (`init.reset`).
        """
        path = f"{self.owner}.{part}" if part else self.owner
        if self.made:
            self._same(path, module)
        else:
            self._add(path, module, start)
        nodes = tuple(value.node for value in ([values] if isinstance(values, Value) else values))
        return self.value(self.graph.call_module(path, nodes), shape)

    def function(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], shape: Shape, **options: object
    ) -> Value:
        """Call a function of torch. Arguments are constants, values and lists of values; options are constants."""
        nodes = tuple([v.node for v in a] if isinstance(a, list) else _node(a) for a in arguments)
        return self.value(self.graph.call_function(function, nodes, options), shape)  # type: ignore[arg-type]

    def value(self, node: fx.Node, shape: Shape, source: str = "") -> Value:
        """What the current node gives; the shape of one sample stays in the graph as `node.meta["shape"]`."""
        node.meta["shape"] = shape
        node.meta.setdefault("id", source or self.node_id)
        return Value(source or self.node_id, node, shape)

    def _add(self, path: str, module: nn.Module, start: Start | Mapping[nn.Module, Start] | None) -> None:
        parent = self.root
        *folders, leaf = path.split(".")
        for folder in folders:
            if folder not in parent._modules:
                parent.add_module(folder, nn.Module())
            parent = parent.get_submodule(folder)
        parent.add_module(leaf, module)
        self.paths.append(path)
        if start is not None:
            self.starts |= start if isinstance(start, Mapping) else {module: start}

    def _same(self, path: str, module: nn.Module) -> None:
        """Refuse to share a module that another input would have made otherwise."""
        try:
            shared = self.root.get_submodule(path)
        except AttributeError:
            raise FitError(f"cannot share {self.owner!r}, which has no part {path!r}") from None
        if repr(shared) != repr(module):
            raise FitError(f"cannot share {self.owner!r}: there it is {shared!r}, here {module!r}")


def run_on_meta(module: nn.Module, *shapes: Shape) -> Shape:
    """The shape of one sample that a module gives for samples of these shapes, or several, found by running it without storage.

    Raises FitError with torch's own words where they do not fit.
    """
    try:
        with torch.no_grad():
            result = module(*(torch.empty(2, *shape, device="meta") for shape in shapes))
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        raise FitError(f"does not take {', '.join(map(str, shapes))}: {error}") from None
    if isinstance(result, list | tuple):
        return tuple(tuple(one.shape[1:]) for one in result)
    return tuple(result.shape[1:])


def _node(argument: Any) -> Any:
    return argument.node if isinstance(argument, Value) else argument
