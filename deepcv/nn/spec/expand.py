"""From a network file to a `NetworkSpec`: parameters, templates, names."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deepcv.nn.spec.errors import Where, closest
from deepcv.nn.spec.formula import CLASSES, Value
from deepcv.nn.spec.model import (
    INPUT,
    MAX_NODES,
    NODE_KEYS,
    NetworkSpec,
    NodeSpec,
    check_name,
    make_node,
)
from deepcv.nn.spec.scope import Scope
from deepcv.nn.spec.source import Block, Items, read, shown

FILE_KEYS = ("parameters", "templates", "nodes", "outputs")
TEMPLATE_KEYS = ("parameters", "nodes", "output")
USE_KEYS = ("id", "template", "from")
MAX_TEMPLATE_DEPTH = 16


@dataclass(frozen=True)
class Template:
    """Nodes with parameters of their own, used like an op; `input` inside means what the using node takes."""

    name: str
    parameters: tuple[str, ...]
    nodes: Items
    output: str | None
    where: Where


def load(path: str | Path, parameters: Mapping[str, object] | None = None) -> NetworkSpec:
    """Read a network file. `parameters` override those of the file and must exist there.

    Shapes are checked by `build`. Raises SpecError with file and line.
    """
    document = read(Path(path))
    _known_keys(document, FILE_KEYS)
    values = CLASSES | _parameters(document, parameters or {})
    expander = _Expander(_templates(document), values, [])
    nodes = _typed(document, "nodes", Items)
    names = expander.expand(nodes, values, "", INPUT, ())
    outputs = _outputs(document, names)
    _all_used(expander.nodes, outputs)
    return NetworkSpec(tuple(expander.nodes), outputs)


def _known_keys(block: Block, known: tuple[str, ...], prefix: str = "") -> None:
    for key in block:
        if key not in known:
            raise block.at(key).error(f"{prefix}unknown key {key!r}; {closest(key, known)}")


def _typed(block: Block, key: str, kind: type[Block] | type[Items], prefix: str = "") -> Any:
    if key not in block:
        raise block.where.error(f"{prefix}the key {key!r} is missing")
    if not isinstance(block[key], kind):
        raise block.at(key).error(
            f"{prefix}{key} must be {'a list' if kind is Items else 'a mapping'}, got {shown(block[key])}"
        )
    if not block[key]:
        raise block.at(key).error(f"{prefix}{key} is empty")
    return block[key]


def _parameters(document: Block, overrides: Mapping[str, object]) -> dict[str, Value]:
    block: Block = _typed(document, "parameters", Block) if "parameters" in document else Block(document.where)
    values: dict[str, Value] = {}
    for name, value in block.items():
        check_name(name, "a parameter", block.at(name), taken=tuple(CLASSES))
        if isinstance(value, dict | list | None) or (isinstance(value, str) and "$" in value):
            raise block.at(name).error(
                f"parameter {name!r} must be a number, a text, true or false, got {shown(value)}"
            )
        values[name] = value
    for name, value in overrides.items():
        if name not in values:
            raise block.where.error(f"network_parameters: unknown parameter {name!r}; {closest(name, values)}")
        values[name] = _override(name, value, values[name], block.at(name))
    return values


def _override(name: str, value: object, default: Value, where: Where) -> Value:
    if isinstance(default, float) and isinstance(value, int | str) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            value = float(value)  # PyYAML, which reads params.yaml, takes 1e-4 for a text
    if type(value) is not type(default) or (isinstance(value, str) and "$" in value):
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[type(default)]
        raise where.error(f"network_parameters: {name} must be {words} like its default {default!r}, got {value!r}")
    return value


def _templates(document: Block) -> dict[str, Template]:
    block: Block = _typed(document, "templates", Block) if "templates" in document else Block(document.where)
    templates = {}
    for name in block:
        where, prefix = block.at(name), f"template {name!r}: "
        check_name(name, "a template", where)
        body: Block = _typed(block, name, Block)
        _known_keys(body, TEMPLATE_KEYS, prefix)
        parameters = body.get("parameters", [])
        if not isinstance(parameters, list):
            raise body.at("parameters").error(f"{prefix}parameters must be a list of names, got {shown(parameters)}")
        for parameter in parameters:
            check_name(
                parameter, f"{prefix}a parameter", body.at("parameters"), taken=(*USE_KEYS, *NODE_KEYS, *CLASSES)
            )
        if len(set(parameters)) != len(parameters):
            raise body.at("parameters").error(f"{prefix}a parameter stands twice")
        output = body.get("output")
        nodes: Items = _typed(body, "nodes", Items, prefix)
        templates[name] = Template(name, tuple(parameters), nodes, output, body.at("output"))
    return templates


def _outputs(document: Block, names: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    block: Block = _typed(document, "outputs", Block)
    outputs = []
    for name, source in block.items():
        check_name(name, "an output", block.at(name))
        if not isinstance(source, str) or source not in names:
            raise block.at(name).error(f"output {name!r}: no node {shown(source)}; {closest(source, names)}")
        outputs.append((name, names[source]))
    return tuple(outputs)


def _all_used(nodes: list[NodeSpec], outputs: tuple[tuple[str, str], ...]) -> None:
    used = {source for _, source in outputs}
    for node in reversed(nodes):
        if node.id not in used:
            raise node.error("nothing uses it: neither a later node nor an output")
        used.update(node.sources)


@dataclass
class _Expander:
    templates: Mapping[str, Template]
    file_values: Mapping[str, Value]
    nodes: list[NodeSpec]

    def expand(
        self,
        items: Items,
        values: Mapping[str, Value],
        prefix: str,
        source: str,
        stack: tuple[str, ...],
        note: str = "",
    ) -> dict[str, str]:
        """Append the nodes of a list; gives the names that an output may take, each with its full node id."""
        scope = Scope(items, note)
        known = {INPUT: source}
        previous = INPUT
        for name, block in scope.blocks.items():
            sources = tuple(known[local] for local in scope.sources(name, previous, known))
            if "template" in block:
                known[name] = self._template(name, block, values, prefix, sources, stack, scope)
            else:
                known[name] = self._op(name, block, values, prefix, sources, scope)
            previous = name
        return known

    def _op(
        self,
        name: str,
        block: Block,
        values: Mapping[str, Value],
        prefix: str,
        sources: tuple[str, ...],
        scope: Scope,
    ) -> str:
        given = {key: scope.value(name, key, values) for key in block if key not in NODE_KEYS}
        places = {key: replace(place, note=scope.note) for key, place in block.places.items()}
        if not isinstance(block["op"], str):
            raise scope.error(name, f"op must be a text, got {shown(block['op'])}", "op")
        node = make_node(prefix + name, block["op"], sources, given, scope.where(name), places)
        if len(self.nodes) == MAX_NODES:
            raise scope.error(name, f"more than {MAX_NODES} nodes once the templates are expanded")
        self.nodes.append(node)
        return node.id

    def _template(
        self,
        name: str,
        block: Block,
        values: Mapping[str, Value],
        prefix: str,
        sources: tuple[str, ...],
        stack: tuple[str, ...],
        scope: Scope,
    ) -> str:
        called = block["template"]
        if not isinstance(called, str) or called not in self.templates:
            message = f"unknown template {shown(called)}; {closest(called, self.templates)}"
            raise scope.error(name, message, "template")
        template = self.templates[called]
        if called in stack:
            raise scope.error(name, f"template {called!r} uses itself: {' -> '.join([*stack, called])}", "template")
        if len(stack) == MAX_TEMPLATE_DEPTH:
            raise scope.error(name, f"templates nest deeper than {MAX_TEMPLATE_DEPTH}", "template")
        if len(sources) != 1:
            raise scope.error(name, f"a template takes one input, got {len(sources)}", "from")
        for key in block:
            if key not in USE_KEYS and key not in template.parameters:
                known = [*template.parameters, *USE_KEYS]
                raise scope.error(name, f"unknown key {key!r} of template {called!r}; {closest(key, known)}", key)
        if missing := [key for key in template.parameters if key not in block]:
            raise scope.error(name, f"template {called!r} needs the key {missing[0]!r}")
        for key in template.parameters:
            if isinstance(block[key], list | dict):
                raise scope.error(name, f"{key} must be a single value, got {shown(block[key])}", key)
        inner = {key: scope.value(name, key, values) for key in template.parameters}
        note = f"in template {called!r}, used in line {block.where.line}"
        visible = {**self.file_values, **inner}
        names = self.expand(template.nodes, visible, f"{prefix}{name}.", sources[0], (*stack, called), note)
        if template.output is None:
            return list(names.values())[-1]
        if not isinstance(template.output, str) or template.output not in names:
            message = (
                f"template {called!r}: output: no node {shown(template.output)}; {closest(template.output, names)}"
            )
            raise template.where.error(message)
        return names[template.output]
