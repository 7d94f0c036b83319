"""YAML that is data and nothing else, with the line of every key.

No tags, anchors, aliases or duplicate keys. Scalars follow YAML 1.2, so that 1e-4 is a number and `on` is a text.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from deepcv.nn.spec.errors import Where

MAX_BYTES = 1_000_000
MAX_DEPTH = 20


class Block(dict[str, Any]):
    """A YAML mapping that knows where it and its keys stand."""

    def __init__(self, where: Where) -> None:
        super().__init__()
        self.where = where
        self.places: dict[str, Where] = {}

    def at(self, key: str) -> Where:
        """Where the value of a key stands; the mapping itself where the key is absent."""
        return self.places.get(key, self.where)


class Items(list[Any]):
    """A YAML sequence that knows where it and its items stand."""

    def __init__(self, where: Where) -> None:
        super().__init__()
        self.where = where
        self.places: list[Where] = []


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  PyYAML's own class attribute, emptied here
    file = ""
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse what is more than data before a node of it exists."""
        event = self.peek_event()
        where = Where(self.file, event.start_mark.line + 1)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise where.error("anchors and aliases (&name, *name) are not allowed; use templates")
        if getattr(event, "tag", None) is not None:
            raise where.error(f"tags are not allowed, got {event.tag!r}")
        if self.depth == MAX_DEPTH:
            raise where.error(f"more than {MAX_DEPTH} levels of nesting")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_Loader.add_implicit_resolver("null", re.compile(r"^(null|~|)$"), ["n", "~", ""])
_Loader.add_implicit_resolver("bool", re.compile(r"^(true|false)$"), ["t", "f"])
_Loader.add_implicit_resolver("int", re.compile(r"^[-+]?[0-9]{1,18}$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "float",
    re.compile(r"^[-+]?(\.[0-9]{1,30}|[0-9]{1,30}(\.[0-9]{0,30})?)([eE][-+]?[0-9]{1,3})?$"),
    list("-+.0123456789"),
)


def read(path: Path) -> Block:
    """The file as plain data; SpecError with file and line where it is not a plain YAML mapping."""
    nowhere = Where(str(path))
    try:
        content = path.read_bytes()
    except OSError as error:
        raise nowhere.error(f"cannot read the network file: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise nowhere.error(f"{len(content)} bytes; a network file has at most {MAX_BYTES}")
    try:
        loader = _Loader(content.decode("utf-8"))
        loader.file = str(path)
        node = loader.get_single_node()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Where(str(path), line).error(f"not a UTF-8 text: {error.reason} at byte {error.start}") from None
    except yaml.reader.ReaderError as error:
        line = content.decode("utf-8").count("\n", 0, error.position) + 1
        raise Where(str(path), line).error(f"not a text: a character {chr(error.character)!r}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise Where(str(path), line).error(f"not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise nowhere.error(f"not valid YAML: {error}") from None
    if not isinstance(node, yaml.MappingNode):
        raise Where(str(path), 1).error("the file must hold the keys nodes and outputs")
    block = _plain(node, str(path))
    assert isinstance(block, Block)  # noqa: S101  for mypy: a mapping node gives a Block
    return block


def _plain(node: yaml.Node, file: str) -> Any:
    where = Where(file, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        block = Block(where)
        for key_node, value_node in node.value:
            place = Where(file, key_node.start_mark.line + 1)
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                raise place.error("a key must be a name")
            if key in block:
                raise place.error(f"the key {key!r} stands twice, first in line {block.places[key].line}")
            block[key] = _plain(value_node, file)
            block.places[key] = place
        return block
    if isinstance(node, yaml.SequenceNode):
        items = Items(where)
        for child in node.value:
            items.append(_plain(child, file))
            items.places.append(Where(file, child.start_mark.line + 1))
        return items
    match node.tag:
        case "null":
            return None
        case "bool":
            return node.value == "true"
        case "int":
            return int(node.value)
        case "float":
            return float(node.value)
    return node.value


def shown(value: object) -> str:
    """A value as messages print it."""
    return "a mapping" if isinstance(value, Block) else "a list" if isinstance(value, Items) else repr(value)
