"""A network file as it stands: its sections, checked one by one, before anything is expanded."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepcv.nn.ops import OPS
from deepcv.nn.spec import options
from deepcv.nn.spec.errors import Where, closest
from deepcv.nn.spec.formula import CLASSES, Value
from deepcv.nn.spec.model import INPUT, NODE_KEYS, TAKEN, Size, check_name
from deepcv.nn.spec.source import Block, Items, read, shown

FILE_KEYS = ("parameters", "defaults", "templates", "inputs", "nodes", "outputs")
TEMPLATE_KEYS = ("parameters", "defaults", "inputs", "nodes", "output", "outputs")
USE_KEYS = ("id", "template", "from", "repeat", "checkpoint")
INDEX = "index"  # inside `repeat`: $index counts from 0
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


@dataclass(frozen=True)
class Template:
    """Nodes with parameters and inputs of their own, used like an op. A parameter without a default is None."""

    name: str
    parameters: Mapping[str, Value]
    defaults: Mapping[str, object]
    inputs: tuple[str, ...]
    nodes: Items
    outputs: tuple[str, ...]  # empty: the last node
    body: Block

    @property
    def required(self) -> list[str]:
        """The parameters that a use must give."""
        return [name for name, default in self.parameters.items() if default is None]


@dataclass(frozen=True)
class Document:
    """One network file, its `$parameters` filled in."""

    body: Block
    values: Mapping[str, Value]
    defaults: Mapping[str, object]
    templates: Mapping[str, Template]
    inputs: tuple[str, ...]
    sizes: tuple[tuple[str, Size], ...]
    nodes: Items


def open_document(path: Path, overrides: Mapping[str, object], said_by: str = "network_parameters") -> Document:
    """Read and check the sections of a file; `said_by` says in errors who gave the overrides."""
    body = read(path)
    _known_keys(body, FILE_KEYS)
    values = CLASSES | _parameters(body, overrides, said_by)
    inputs = _inputs(body)
    nodes = typed(body, "nodes", Items)
    return Document(body, values, _defaults(body), _templates(body), inputs, _sizes(body), nodes)


def typed(block: Block, key: str, kind: type[Block] | type[Items], prefix: str = "") -> Any:
    """The list or the mapping under a key, which must be there and not empty."""
    if key not in block:
        raise block.where.error(f"{prefix}the key {key!r} is missing")
    if not isinstance(block[key], kind):
        raise block.at(key).error(
            f"{prefix}{key} must be {'a list' if kind is Items else 'a mapping'}, got {shown(block[key])}"
        )
    if not block[key]:
        raise block.at(key).error(f"{prefix}{key} is empty")
    return block[key]


def _section(block: Block, key: str, prefix: str = "") -> Block:
    """The mapping under a key that may be absent."""
    found: Block = typed(block, key, Block, prefix) if key in block else Block(block.where)
    return found


def _known_keys(block: Block, known: tuple[str, ...], prefix: str = "") -> None:
    for key in block:
        if key not in known:
            raise block.at(key).error(f"{prefix}unknown key {key!r}; {closest(key, known)}")


def _parameters(body: Block, overrides: Mapping[str, object], said_by: str) -> dict[str, Value]:
    block = _section(body, "parameters")
    values: dict[str, Value] = {}
    for name, value in block.items():
        check_name(name, "a parameter", block.at(name), taken=(*CLASSES, INDEX))
        if value is None:
            raise block.at(name).error(f"parameter {name!r} must be a number, a text, true or false, got None")
        values[name] = _default(name, value, block.at(name), "")
    for name, value in overrides.items():
        if name not in values:
            raise block.where.error(f"{said_by}: unknown parameter {name!r}; {closest(name, values)}")
        values[name] = _override(name, value, values[name], block.at(name), said_by)
    return values


def _default(name: str, value: object, where: Where, prefix: str) -> Value:
    if isinstance(value, bool | int | float | None) or (isinstance(value, str) and "$" not in value):
        return value
    raise where.error(f"{prefix}parameter {name!r} must be a number, a text, true or false, got {shown(value)}")


def _override(name: str, value: object, default: Value, where: Where, said_by: str) -> Value:
    if isinstance(default, float) and isinstance(value, int | str) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            value = float(value)  # PyYAML, which reads params.yaml, takes 1e-4 for a text
    if type(value) is not type(default) or (isinstance(value, str) and "$" in value):
        raise where.error(
            f"{said_by}: {name} must be {_KINDS[type(default)]} like its default {default!r}, got {value!r}"
        )
    return value


def _defaults(body: Block, prefix: str = "") -> dict[str, object]:
    """What `defaults` says; each op takes what it inherits, and a text with `$` is filled in where it is used."""
    block = _section(body, "defaults", prefix)
    known = sorted({name for op in OPS.values() for name in op.inherits.values()})
    for key, value in block.items():
        if key not in known:
            raise block.at(key).error(f"{prefix}defaults: unknown key {key!r}; {closest(key, known)}")
        _check_default(key, value, block.at(key), f"{prefix}defaults: ")
    return dict(block)


def _check_default(key: str, value: object, where: Where, prefix: str) -> None:
    """Refuse a default that no op takes, at the line where it stands."""
    if isinstance(value, str) and "$" in value:
        return
    problem = None
    for kind in OPS.values():
        for field, name in kind.inherits.items():
            if name != key:
                continue
            try:
                options.coerce(key, value, options.fields(kind)[field][0])  # type: ignore[arg-type]
                return
            except options.OptionError as error:
                problem = problem or error
    raise where.error(f"{prefix}{problem}")


def _inputs(body: Block, prefix: str = "") -> tuple[str, ...]:
    """The names of the inputs: a list or, but for a template, a mapping to their sizes."""
    if "inputs" not in body:
        return (INPUT,)
    is_sized = not prefix and isinstance(body["inputs"], Block)
    given: Block | Items = typed(body, "inputs", Block if is_sized else Items, prefix)
    names, places = list(given), list(given.places.values()) if isinstance(given, Block) else given.places
    taken = TAKEN - {INPUT}
    for name, where in zip(names, places, strict=True):
        check_name(name, f"{prefix}an input", where, taken=tuple(taken))
        if names.count(name) > 1:
            raise where.error(f"{prefix}the input {name!r} stands twice")
    return tuple(names)


def _sizes(body: Block) -> tuple[tuple[str, Size], ...]:
    """The inputs that have a size of their own, (height, width)."""
    given = body.get("inputs")
    if not isinstance(given, Block):
        return ()
    for name, size in given.items():
        if size is not None and (
            not isinstance(size, list) or len(size) != 2 or any(type(side) is not int or side < 1 for side in size)
        ):
            what = size if isinstance(size, list) else shown(size)
            raise given.at(name).error(
                f"input {name!r}: expected its size [height, width] in pixels, or null for the size of the images, got {what}"
            )
    return tuple((name, (size[0], size[1])) for name, size in given.items() if size is not None)


def _templates(body: Block) -> dict[str, Template]:
    block = _section(body, "templates")
    templates = {}
    for name in block:
        where, prefix = block.at(name), f"template {name!r}: "
        check_name(name, "a template", where)
        inner: Block = typed(block, name, Block)
        _known_keys(inner, TEMPLATE_KEYS, prefix)
        nodes: Items = typed(inner, "nodes", Items, prefix)
        outputs = _template_outputs(inner, prefix)
        parameters, inputs = _template_parameters(inner, prefix), _inputs(inner, prefix)
        templates[name] = Template(name, parameters, _defaults(inner, prefix), inputs, nodes, outputs, inner)
    return templates


def _template_parameters(body: Block, prefix: str) -> dict[str, Value]:
    given = body.get("parameters", [])
    if not isinstance(given, Block | list):
        raise body.at("parameters").error(
            f"{prefix}parameters must be a list of names, or a mapping of names to defaults, got {shown(given)}"
        )
    taken = (*USE_KEYS, *NODE_KEYS, *CLASSES, INDEX)
    for name in given:
        check_name(name, f"{prefix}a parameter", body.at("parameters"), taken=taken)
    if isinstance(given, Block):
        return {name: _default(name, value, given.at(name), prefix) for name, value in given.items()}
    if len(set(given)) != len(given):
        raise body.at("parameters").error(f"{prefix}a parameter stands twice")
    return dict.fromkeys(given)


def _template_outputs(body: Block, prefix: str) -> tuple[str, ...]:
    if "output" in body and "outputs" in body:
        raise body.at("outputs").error(f"{prefix}give either output or outputs")
    if "outputs" in body:
        names: Items = typed(body, "outputs", Items, prefix)
        return tuple(name if isinstance(name, str) else shown(name) for name in names)
    output = body.get("output")
    if output is None:
        return ()
    return (output if isinstance(output, str) else shown(output),)
