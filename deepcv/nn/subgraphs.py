"""Parts of a graph: some of its nodes, taken out into a graph module of their own that uses the same modules."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import getitem

from torch import fx, nn

from deepcv.nn.spec.errors import SpecError, closest
from deepcv.nn.spec.lowering import output_names

HOME = "_subgraphs"  # where the layers that run subgraphs lie; no id of a network file begins like this


@dataclass(frozen=True)
class Stretch:
    """What lies between two outputs of a network: `module` maps the values `inputs` to the values `outputs`, the output first."""

    module: fx.GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def split_at(network: fx.GraphModule, outputs: Sequence[str]) -> tuple[Stretch, ...]:
    """The network in pieces, one per output in this order, e.g. of early exits: each computes what no earlier one has.

    Pieces use the network's own modules. Inputs have the names of the network's, other values those of the graph's nodes.
    Raises SpecError for an output that the network does not have.
    """
    ends: dict[str, fx.Node] = network.graph.output_node().args[0]  # type: ignore[assignment]  # what build gives
    for name in output_names(outputs):
        if name not in ends:
            raise SpecError(f"outputs: no output {name!r}; {closest(name, ends)}")
    order = [node for node in network.graph.nodes if node.op not in ("placeholder", "output")]
    done: set[fx.Node] = set()
    pieces = []
    for name in outputs:
        needed = {ends[name]}
        for node in reversed(order):
            if node in needed:
                needed.update(node.all_input_nodes)
        pieces.append([node for node in order if node in needed and node not in done])
        done.update(pieces[-1])
    stretches = []
    for place, (name, nodes) in enumerate(zip(outputs, pieces, strict=True)):
        later = {source for piece in pieces[place + 1 :] for source in entries(piece)} | {
            ends[n] for n in outputs[place + 1 :]
        }
        inputs = entries(nodes) or [ends[name]]
        given = [ends[name], *(node for node in nodes if node in later and node is not ends[name])]
        module = copy_out(network, nodes, inputs, given)
        stretches.append(Stretch(module, tuple(map(_name, inputs)), tuple(map(_name, given))))
    return tuple(stretches)


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "placeholder" else node.name  # fx renames an argument called `input`


def inside(graph: fx.Graph, prefix: str) -> list[fx.Node]:
    """The nodes that a node of the network file, or those inside it, gave the graph."""
    return [
        node
        for node in graph.nodes
        if f"{node.meta.get('id', '')}.".startswith(f"{prefix}.") and node.op != "placeholder"
    ]


def entries(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """The values from outside that these nodes use, in the order in which they do."""
    within = set(nodes)
    return list(dict.fromkeys(source for node in nodes for source in node.all_input_nodes if source not in within))


def exits(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """Those of the nodes that others use."""
    within = set(nodes)
    return [node for node in nodes if any(user not in within for user in node.users)]


def copy_out(
    root: nn.Module, nodes: Sequence[fx.Node], inputs: Sequence[fx.Node], outputs: Sequence[fx.Node]
) -> fx.GraphModule:
    """A graph module of these nodes, from `inputs` to one output, or a tuple of several."""
    graph = fx.Graph()
    made = {node: graph.placeholder(node.name) for node in inputs}
    for node in made:
        made[node].meta = dict(node.meta)
    for node in nodes:
        made[node] = graph.node_copy(node, lambda source: made[source])
    results = tuple(made[node] for node in outputs)
    graph.output(results[0] if len(results) == 1 else results)
    return fx.GraphModule(root, graph, class_name="Part")


def replace(
    root: nn.Module, graph: fx.Graph, nodes: Sequence[fx.Node], name: str, layer: Callable[[fx.GraphModule], nn.Module]
) -> None:
    """Put a call of `layer(subgraph)` in the place of these nodes, which stand one behind the other."""
    inputs, outputs = entries(nodes), exits(nodes)
    path = add(root, name, layer(copy_out(root, nodes, inputs, outputs)))
    with graph.inserting_after(nodes[-1]):
        call = graph.call_module(path, tuple(inputs))
    if len(outputs) == 1:
        call.meta = dict(outputs[0].meta)
        outputs[0].replace_all_uses_with(call)
    else:
        call.meta = {"id": name}
        after = call
        for place, node in enumerate(outputs):
            with graph.inserting_after(after):
                after = graph.call_function(getitem, (call, place))
            after.meta = dict(node.meta)
            node.replace_all_uses_with(after)
    for node in reversed(nodes):
        graph.erase_node(node)


def add(root: nn.Module, name: str, layer: nn.Module) -> str:
    """Give the network a layer that runs subgraphs; the path for the graph to call."""
    if HOME not in root._modules:
        root.add_module(HOME, nn.Module())
    own = name.replace(".", "__")
    root.get_submodule(HOME).add_module(own, layer)
    return f"{HOME}.{own}"


def added(root: nn.Module) -> list[str]:
    """The paths of the layers that run subgraphs, those inside the subgraphs of others too."""
    return [f"{HOME}.{name}" for name, _ in root.get_submodule(HOME).named_children()] if HOME in root._modules else []
