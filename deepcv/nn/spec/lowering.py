"""From a spec to the spec that is built: choices decided, nodes that no wanted output needs left out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from deepcv.nn.emitter import FitError
from deepcv.nn.ops.choice import Choice, candidate_names
from deepcv.nn.spec.errors import SpecError, closest
from deepcv.nn.spec.model import NetworkSpec, NodeSpec


def output_names(outputs: Sequence[str]) -> tuple[str, ...]:
    """The names as a tuple. SpecError for one text, which is a sequence of its letters."""
    if isinstance(outputs, str):
        raise SpecError(f"outputs must be a list of names, such as [{outputs!r}], got the text {outputs!r}")
    return tuple(outputs)


def wanted(spec: NetworkSpec, outputs: Sequence[str]) -> NetworkSpec:
    """The network with these outputs alone, in the order of the file. SpecError for an unknown name, or for none."""
    names = [name for name, _ in spec.outputs]
    for name in output_names(outputs):
        if name not in names:
            raise SpecError(f"outputs: no output {name!r}; {closest(name, names)}")
    if not outputs:
        raise SpecError(f"outputs: give one or more of {', '.join(names)}")
    return replace(spec, outputs=tuple(output for output in spec.outputs if output[0] in outputs))


def decided(spec: NetworkSpec, choices: Mapping[str, str]) -> NetworkSpec:
    """The network with its choices made: `choices` maps a choice's node id to what it picks, before the file's own `pick`."""
    known = [node.id for node in spec.nodes if node.op == "choice"]
    for name in choices:
        if name not in known:
            raise SpecError(f"choices: no choice {name!r}; {closest(name, known)}")
    return replace(spec, nodes=tuple(_picked(node, choices.get(node.id)) for node in spec.nodes))


def _picked(node: NodeSpec, pick: str | None) -> NodeSpec:
    if node.op != "choice":
        return node
    choice = node.bind(1)
    assert isinstance(choice, Choice)  # noqa: S101  for mypy: OPS says so
    try:
        places = choice.picks(candidate_names(node.id, node.sources), pick)
    except FitError as error:
        raise node.error(f"choice {error}") from None
    if places is None:
        return node
    sources = tuple(node.sources[place] for place in places)
    options = (("n", len(sources)), ("pick", ", ".join(candidate_names(node.id, node.sources)[p] for p in places)))
    return replace(node, sources=sources, options=tuple(sorted(options)))


def pruned(spec: NetworkSpec) -> NetworkSpec:
    """The network without the nodes that no output needs."""
    used, kept = {source for _, source in spec.outputs}, []
    for node in reversed(spec.nodes):
        if node.id in used:
            used.update(node.sources)
            kept.append(node)
    return replace(spec, nodes=tuple(reversed(kept)))


def open_choices(spec: NetworkSpec) -> dict[str, tuple[str, ...]]:
    """The ids of the choices that the file leaves open, with the names of their candidates."""
    nodes = [node for node in spec.nodes if node.op == "choice" and dict(node.options)["pick"] is None]
    return {node.id: candidate_names(node.id, node.sources) for node in nodes}
