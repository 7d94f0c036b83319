"""One run of a network, node by node: what each needs and gives."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from deepcv.nn.layers.subgraphs import Checkpointed, MixedChoice, OpenChoice, SampledChoice
from deepcv.profiling.memory import LiveBytes, weights
from deepcv.profiling.receptive_field import Field, Fields

Shape = tuple[int, ...]


@dataclass(frozen=True)
class NodeProfile:
    """One node of the graph, for one image.

    A MAC is one multiply-add of a convolution, a matrix product or attention; biases, norms, activations and additions
    are not counted. Parameters of a module that several nodes call are the first one's, which the others name in `shares`.
    `field` is None where the value does not depend on an image by way of operations that are known to `receptive_field`.
    The candidates of an open choice come before it; those that it does not run are idle: their MACs are what they would cost.
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
    shares: str = ""  # the id of the node whose parameters this one uses too
    outputs: tuple[str, ...] = ()  # names of the network's outputs that this value is
    is_idle: bool = False


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
        notes = _Notes(counter, fields, live)
        _Observer(network, notes, outputs=outputs_by_node(network)).run(*images)
    return tuple(notes.found)


def macs_of(nodes: Sequence[NodeProfile]) -> int:
    """Multiply-adds of one image through the network: idle candidates cost nothing."""
    return sum(node.macs for node in nodes if not node.is_idle)


def peak_bytes_of(nodes: Sequence[NodeProfile]) -> int:
    """The most bytes of values alive at once."""
    return max((node.live_bytes for node in nodes if not node.is_idle), default=0)


def outputs_by_node(network: fx.GraphModule) -> dict[str, tuple[str, ...]]:
    """The names of the outputs by the node whose value they are; `output` where the network gives one that has no name."""
    (given,) = network.graph.output_node().args
    if not isinstance(given, Mapping):
        values = given if isinstance(given, list | tuple) else [given]
        given = {f"output {place}" if len(values) > 1 else "output": value for place, value in enumerate(values)}
    found: dict[str, tuple[str, ...]] = defaultdict(tuple)
    for name, value in given.items():
        if isinstance(value, fx.Node):
            found[value.name] += (str(name),)
    return found


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


@dataclass
class _Notes:
    """What the observers of a network and of the candidates in it share."""

    counter: FlopCounterMode
    fields: Fields
    live: LiveBytes
    found: list[NodeProfile] = field(default_factory=list)
    owners: dict[int, str] = field(
        default_factory=dict
    )  # of parameters, by identity: the id of the first node to use it


class _Observer(fx.Interpreter):
    """Observes a network; or a candidate, whose arguments are `given`: the names outside of its own placeholders."""

    def __init__(
        self, network: fx.GraphModule, notes: _Notes, *, outputs: Mapping[str, tuple[str, ...]] | None = None,
        given: Mapping[str, str] | None = None, is_idle: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(network)
        self.notes, self.outputs, self.given, self.is_idle = notes, outputs or {}, given or {}, is_idle

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and note what it took."""
        if n.op == "output" or n.name in self.given:
            return super().run_node(n)
        layer = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        candidates = self._candidates(n, layer) if isinstance(layer, OpenChoice) else ()
        counter, live = self.notes.counter, self.notes.live
        live.restart()
        flops = counter.get_total_flops()
        result = super().run_node(n)
        sources = candidates or [self.given.get(source.name, source.name) for source in n.all_input_nodes]
        parameters, shares = self._parameters(n)
        self._note(
            n.name, node_id(n), self._kind(n), sources, result,
            parameters=parameters,
            macs=0 if candidates else (counter.get_total_flops() - flops) // 2,
            shares="" if candidates else shares,
            outputs=self.outputs.get(n.name, ()),
        )  # fmt: skip
        return result

    def _note(self, name: str, own_id: str, kind: str, inputs: Sequence[str], result: Any, **figures: Any) -> None:
        first = next((leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)), None)
        live = self.notes.live
        self.notes.found.append(
            NodeProfile(
                name=name,
                id=own_id,
                kind=kind,
                inputs=tuple(dict.fromkeys(inputs)),
                shape=None if first is None else tuple(first.shape[1:]),
                field=self.notes.fields.of(first),
                made_bytes=live.made(result),
                live_bytes=live.peak,
                is_idle=self.is_idle,
                **figures,
            )
        )

    def _candidates(self, choice: fx.Node, layer: OpenChoice) -> list[str]:
        """Observe each candidate by itself; the names of what they give."""
        values, _ = self.fetch_args_kwargs_from_env(choice)
        outside = [self.given.get(source.name, source.name) for source in choice.all_input_nodes]
        ends = []
        for place, (name, candidate) in enumerate(zip(layer.names, layer.subgraphs, strict=True)):
            entries = [node.name for node in candidate.graph.nodes if node.op == "placeholder"]
            given = dict(zip(entries, outside, strict=True))
            is_idle = self.is_idle or (isinstance(layer, SampledChoice) and place not in layer.active)
            inner = _Observer(candidate, self.notes, given=given, is_idle=is_idle)
            result = inner.run(*values)
            (end,) = candidate.graph.output_node().all_input_nodes
            ends.append(end.name)
            if end.name in given:  # the candidate is what it is given: it has no node that could be drawn
                ends[-1] = f"{choice.name}_{name}"
                self.notes.live.restart()
                inner._note(
                    ends[-1], f"{node_id(choice)}.{name}", "identity", [given[end.name]], result, parameters=0, macs=0
                )
        return ends

    def _parameters(self, node: fx.Node) -> tuple[int, str]:
        """Parameters that this node is the first to use, its module's and those that the graph gives it; where all of its
        parameters are another's, the id of that one."""
        used = _parameters_of(self.fetch_attr(str(node.target))) if node.op == "call_module" else []
        given = [self.fetch_attr(str(source.target)) for source in node.all_input_nodes if source.op == "get_attr"]
        used += [value for value in given if isinstance(value, nn.Parameter)]
        owners, own_id = self.notes.owners, node_id(node)
        new = {id(parameter): parameter.numel() for parameter in used if id(parameter) not in owners}
        shares = owners[id(used[0])] if used and not new else ""
        owners |= dict.fromkeys(new, own_id)
        return sum(new.values()), "" if shares == own_id else shares

    def _kind(self, node: fx.Node) -> str:
        if node.op == "call_module":
            layer = self.fetch_attr(str(node.target))
            if isinstance(layer, OpenChoice):
                what = "mix" if isinstance(layer, MixedChoice) else "one" if layer.picks == 1 else str(layer.picks)
                return f"{what} of {', '.join(layer.names)}"
            return type(layer).__name__
        if node.op in ("placeholder", "get_attr"):
            return "input" if node.op == "placeholder" else "constant"
        return str(getattr(node.target, "__name__", node.target)).strip("_")


def _parameters_of(module: nn.Module) -> list[nn.Parameter]:
    """Those of a module and of the subgraphs that its layers hold where torch does not look."""
    found = list(module.parameters())
    for layer in module.modules():
        if isinstance(layer, Checkpointed | OpenChoice):
            found += [parameter for subgraph in layer.subgraphs for parameter in _parameters_of(subgraph)]
    return found


def node_id(node: fx.Node) -> str:
    """The id in the network file; elsewhere the path of the module, or of the module around a function."""
    if "id" in node.meta:
        return str(node.meta["id"])
    if node.op == "call_module":
        return str(node.target)
    around = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values() if path]
    return f"{around[-1]}.{node.name.removeprefix(around[-1].replace('.', '_') + '_')}" if around else node.name
