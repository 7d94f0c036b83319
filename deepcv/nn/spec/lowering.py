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


def chosen(spec: NetworkSpec, choices: Mapping[str, str], said_by: str = "choices") -> NetworkSpec:
    """The network whose file says `pick` so: `choices` maps a choice's node id to what it picks, before the file's own `pick`.

    Raises SpecError for an unknown name; `said_by` is where the choices stand.
    """
    known = {node.id: candidate_names(node.id, node.sources) for node in spec.nodes if node.op == "choice"}
    for name, pick in choices.items():
        if name not in known:
            raise SpecError(f"{said_by}: no choice {name!r}; {closest(name, known)}")
        for one in (part.strip() for part in pick.split(",")):
            if one not in known[name]:
                raise SpecError(f"{said_by}: {name} has no candidate {one!r}; {closest(one, known[name])}")
    nodes = tuple(_told(node, choices[node.id]) if node.id in choices else node for node in spec.nodes)
    return replace(spec, nodes=nodes)


def _told(node: NodeSpec, pick: str) -> NodeSpec:
    told = replace(node, options=tuple((key, pick if key == "pick" else value) for key, value in node.options))
    _places(told)
    return told


def decided(spec: NetworkSpec, choices: Mapping[str, str]) -> NetworkSpec:
    """The network with its choices made, and without what they do not pick; `choices` as of `chosen`."""
    return replace(spec, nodes=tuple(_picked(node) for node in chosen(spec, choices).nodes))


def _picked(node: NodeSpec) -> NodeSpec:
    if node.op != "choice" or (places := _places(node)) is None:
        return node
    names = candidate_names(node.id, node.sources)
    options = (("n", len(places)), ("pick", ", ".join(names[place] for place in places)))
    return replace(node, sources=tuple(node.sources[place] for place in places), options=options)


def _places(node: NodeSpec) -> tuple[int, ...] | None:
    """Which of its sources a choice picks; None where it is open. SpecError where it cannot."""
    choice = node.bind(1)
    assert isinstance(choice, Choice)  # noqa: S101  for mypy: OPS says so
    try:
        return choice.picks(candidate_names(node.id, node.sources))
    except FitError as error:
        raise node.error(f"choice {error}") from None


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
