"""YAML text as a tree of plain values that know their lines and their place in the text.

The scalars follow YAML 1.2 as DVC reads it (ruamel: `1e-4` is a number, `yes` is text). Tags, aliases and merge keys
are refused rather than resolved: nothing is executed, nothing multiplies, and `dvc exp run -S` rewrites them badly.
Control characters in a text are refused as well: YAML 1.1 and 1.2 disagree on which of them break a line.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.reader import ReaderError

from deepcv.errors import DeepcvError

_DEEPEST = 20  # params.yaml needs four levels


class ParamsError(DeepcvError):
    """The parameters are not usable; the message lists every problem, one per line, and is written for a person."""


@dataclass(frozen=True)
class Node:
    """A value of the document: `content` is a scalar, a list of nodes, or a dict of nodes by key.

    `line` is the line (from 1) to name in a message: for a value, that of its key. `start` and `end` are the value's
    place in the text. `key_end` is where its key ends, -1 without a key.
    """

    content: Any
    line: int
    start: int
    end: int
    column: int = 0
    flow: bool = False
    key_end: int = -1

    def plain(self) -> Any:
        """Return the value without its places: scalars, lists and dicts."""
        if isinstance(self.content, dict):
            return {key: node.plain() for key, node in self.content.items()}
        if isinstance(self.content, list):
            return [node.plain() for node in self.content]
        return self.content

    def find(self, path: Sequence[str | int]) -> "Node":
        """Return the node at `path`, or the last one on the way to it."""
        node = self
        for step in path:
            try:
                node = node.content[step]
            except (IndexError, KeyError, TypeError):
                break
        return node


def read(path: Path) -> str:
    """Return the file's text with its line ends as they are; ParamsError if it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise ParamsError(f"{path}: there is no such file; run this in a DeepCV project's folder") from error
    except OSError as error:
        raise ParamsError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ParamsError(f"{path}:{line}: not UTF-8 text (byte 0x{error.object[error.start]:02x})") from error


def parse(text: str, origin: str) -> Node:
    """Parse a YAML text whose top level is a mapping; ParamsError (naming `origin` as the file) if it is not one."""
    yaml = YAML(typ="safe", pure=True)
    try:
        events = list(yaml.parse(text))
    except MarkedYAMLError as error:
        # A missing colon or closing quote is noticed lines below: the context is where the text that lacks it begins.
        scanning = (error.context or "").startswith(("while scanning a simple key", "while scanning a quoted scalar"))
        mark = (error.context_mark if scanning else None) or error.problem_mark or error.context_mark
        at = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise ParamsError(f"{origin}{at}: not YAML: {_explained(error.problem or error.context or '')}") from error
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ParamsError(f"{origin}:{line}: not YAML: the character {error.character:#x} stands here") from error
    documents = [event for event in events if isinstance(event, DocumentStartEvent)]
    if len(documents) > 1:
        raise ParamsError(f"{origin}:{documents[1].start_mark.line + 1}: a second YAML document; there must be one")
    if not documents:
        raise ParamsError(f"{origin}:1: the file is empty; it must hold the sections of params.yaml")
    if documents[0].version is not None:
        raise ParamsError(f"{origin}:1: a %YAML directive changes what values mean; take it out")
    builder = _Builder(yaml, iter(events[2:]), origin)
    root = builder.value(next(builder.events), 0)
    if not isinstance(root.content, dict):
        builder.problems.insert(0, (root.line, "", f"the top level must be sections (keys), got {show(root.plain())}"))
    if builder.problems:
        raise ParamsError(report(builder.problems, origin))
    return root


def _explained(problem: str) -> str:
    if "\\t" in problem:
        return "a tab stands here; indent with spaces"
    if "<block end>" in problem or "<document start>" in problem:
        return "the indentation does not fit the lines around it"
    return problem


def report(problems: Sequence[tuple[int, str, str]], origin: str) -> str:
    """One line per problem (line, dotted key, text), in the file's order."""
    ordered = sorted(dict.fromkeys(problems), key=lambda problem: problem[0])
    return "\n".join(f"{origin}:{line}: {key}{': ' if key else ''}{text}" for line, key, text in ordered)


def show(value: object) -> str:
    """Return a value as a message names it: what it is and, shortened, how it looks."""
    match value:
        case None:
            return "nothing"
        case bool():
            return f"the truth value {str(value).lower()}"
        case str():
            shown = "".join(
                c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in value
            )
            return f"the text '{shown if len(shown) <= 60 else shown[:57] + '...'}'"
        case int() if abs(value) >= 10**20:
            return "a number of more than 20 digits"
        case int() | float():
            return f"{value!r}"
        case list():
            return f"a list of {len(value)}"
        case dict():
            return f"a mapping with {len(value)} keys"
        case _:
            return f"a {type(value).__name__} ({value})"


def _is_control(character: str) -> bool:
    """Whether it is a control character, a line or paragraph separator, half a surrogate pair or a byte order mark."""
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character == "\ufeff"


class _Builder:
    """Turns the parser's events into nodes and collects what is wrong with them, so that one run names it all."""

    def __init__(self, yaml: YAML, events: Iterator[Any], origin: str) -> None:
        self.yaml = yaml
        self.events = events
        self.origin = origin
        self.problems: list[tuple[int, str, str]] = []

    def value(self, event: Any, depth: int, key: str = "", key_event: Any = None) -> Node:
        line = (key_event or event).start_mark.line + 1
        key_end = key_event.end_mark.index if key_event else -1
        start, column = event.start_mark.index, event.start_mark.column
        if depth > _DEEPEST:
            raise ParamsError(f"{self.origin}:{line}: {key.split('[')[0]}: nested more than {_DEEPEST} levels deep")
        if isinstance(event, AliasEvent):
            self.problems.append((line, key, f"the alias *{event.anchor} is not supported; write the value out"))
        elif event.ctag is not None and str(event.ctag) not in ("", "None"):
            self.problems.append((line, key, f"the tag {event.ctag} is not supported; write a plain value"))
        content: Any = None
        end = event.end_mark.index
        if isinstance(event, ScalarEvent):
            content = self._scalar(event, line, key)
        elif isinstance(event, SequenceStartEvent):
            content = []
            while not isinstance(item := next(self.events), SequenceEndEvent):
                content.append(self.value(item, depth + 1, f"{key}[{len(content)}]"))
            end = item.end_mark.index
        elif isinstance(event, MappingStartEvent):
            content, end = self._mapping(depth, key)
        return Node(content, line, start, end, column, bool(getattr(event, "flow_style", False)), key_end)

    def _mapping(self, depth: int, prefix: str) -> tuple[dict[str, Node], int]:
        content: dict[str, Node] = {}
        while not isinstance(event := next(self.events), MappingEndEvent):
            line = event.start_mark.line + 1
            key = self._scalar(event, line, prefix) if isinstance(event, ScalarEvent) else None
            if not isinstance(event, ScalarEvent):
                key = self.value(event, depth + 1, prefix).plain()
            dotted = f"{prefix}.{key}" if prefix else f"{key}"
            value = self.value(next(self.events), depth + 1, dotted, event)
            if not isinstance(key, str):
                self.problems.append((line, prefix, f"a key must be text, got {show(key)}"))
            elif key in content:
                self.problems.append((line, dotted, f"the key stands twice, first in line {content[key].line}"))
            else:
                content[key] = value
        return content, event.end_mark.index

    def _scalar(self, event: Any, line: int, key: str) -> Any:
        tag = self.yaml.resolver.resolve(ScalarNode, event.value, event.implicit)
        if str(tag) in ("tag:yaml.org,2002:merge", "tag:yaml.org,2002:value"):
            self.problems.append(
                (line, key, f"'{event.value}' is not supported; write the keys out, or put it in quotes")
            )
            return event.value
        if any(map(_is_control, event.value)):
            self.problems.append(
                (line, key, f"a text must be one line without control characters, got {show(event.value)}")
            )
            return event.value
        try:
            return self.yaml.constructor.construct_object(ScalarNode(tag, event.value))
        except (YAMLError, ValueError) as error:
            self.problems.append((line, key, f"not a value that YAML can hold: {str(error).split(':')[0]}"))
            return None
