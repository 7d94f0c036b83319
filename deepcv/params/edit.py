"""Change values of params.yaml and nothing else in it.

The text of a value is replaced in place, so that comments, order, quotes and line ends of the rest stay byte for byte
(a load and dump through ruamel would keep the comments but re-wrap and re-indent).
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from deepcv.files import atomic
from deepcv.params.base import FILE, ParamsError, closest
from deepcv.params.document import Node, parse, read
from deepcv.params.whole import SECTIONS, loads


def set_values(path: Path, values: Mapping[str, object]) -> None:
    """Set dotted keys of a params file, such as {"train.lr": 0.01}; an invalid result leaves the file as it was."""
    path = path.resolve()
    write(path, with_values(read(path), values, str(path)))


def write(path: Path, text: str) -> None:
    """Replace the text of a params file whole: through a symlink, not over it, and with the file's permissions."""
    path = path.resolve()
    with atomic(path) as aside:
        aside.write_text(text, encoding="utf-8", newline="")
        shutil.copymode(path, aside)


def with_values(text: str, values: Mapping[str, object], origin: str = str(FILE)) -> str:
    """Return a params text with dotted keys set to plain values; ParamsError if the result is not valid.

    A key has the form section.key, train.network_parameters.NAME (or of another mapping), train.losses.1.weight or
    search.space.KEY. A key that the sections know and the text lacks is added.
    """
    for key, value in values.items():
        text = _with_value(text, key, value, origin)
    loads(text, f"{origin} as edited")
    return text


def _with_value(text: str, key: str, value: object, origin: str) -> str:
    section, _, rest = key.partition(".")
    field, _, name = rest.partition(".")
    cls = SECTIONS.get(section)
    if cls is None or field not in cls.model_fields:
        known = [f"{owner}.{leaf}" for owner, other in SECTIONS.items() for leaf in other.model_fields]
        near = closest(f"{section}.{field}", known)
        raise ParamsError(f"{key}: no such key" + (f"; the closest is {' or '.join(near)}" if near else ""))
    inner = name.split(".", 1) if field == "losses" else [name]
    steps = [section, field, *(step for step in inner if step)]
    root = parse(text, origin)
    while len(steps) > 1:
        node, parent = _get(root, steps), _get(root, steps[:-1])
        if node is not None:
            return _replaced(text, node, value, key)
        if parent is not None and isinstance(parent.content, dict):
            return _added(text, parent, steps[-1], value)
        if parent is not None and isinstance(parent.content, list):
            there = f"has {len(parent.content)} entries; the first is 0" if parent.content else "is empty"
            raise ParamsError(f"{key}: {'.'.join(steps[:-1])} {there}")
        # What should hold the value is not there or holds nothing: set that to a mapping with this one value.
        value = {steps.pop(): value}
    raise ParamsError(f"{key}: {origin} has no section {section}")


def _get(root: Node, steps: list[str]) -> Node | None:
    node = root
    for step in steps:
        if isinstance(node.content, list) and step.isdecimal() and int(step) < len(node.content):
            node = node.content[int(step)]
        elif isinstance(node.content, dict) and step in node.content:
            node = node.content[step]
        else:
            return None
    return node


def _replaced(text: str, node: Node, value: object, key: str) -> str:
    old = text[node.start : node.end]
    if node.content is None and not old:
        colon = text.index(":", node.key_end) + 1
        return f"{text[:colon]} {_flow(value)}{text[colon:]}"
    if old[:1] in ("|", ">") or (isinstance(node.content, dict | list) and not node.flow):
        raise ParamsError(f"{key}: line {node.line}: the value stands in a block of lines; edit it by hand")
    if isinstance(value, str) and old[:1] == '"':
        new = _quoted(value)
    elif isinstance(value, str) and old[:1] == "'" and value.isprintable():
        new = "'" + value.replace("'", "''") + "'"
    else:
        new = _flow(value)
    rest = text[node.end :]
    gap = len(rest) - len(rest.lstrip(" "))
    if rest[gap : gap + 1] == "#":  # the comment behind the value stays in its column while there is room
        rest = " " * max(1, gap + len(old) - len(new)) + rest[gap:]
    return text[: node.start] + new + rest


def _added(text: str, parent: Node, name: str, value: object) -> str:
    entry = f"{_flow(name)}: {_flow(value)}"
    children = list(parent.content.values())
    if parent.flow:
        place = children[-1].end if children else parent.start + 1
        return f"{text[:place]}{', ' if children else ''}{entry}{text[place:]}"
    last = children[-1]
    while isinstance(last.content, dict | list) and not last.flow and last.content:
        last = list(last.content.values())[-1] if isinstance(last.content, dict) else last.content[-1]
    # The parser places an empty value at the next token, and the end of a block of lines behind its last line break.
    end = max(last.key_end, last.start + len(text[last.start : last.end].rstrip()) if last.content is not None else 0)
    newline = "\r\n" if "\r\n" in text else "\n"
    below = text.find("\n", end) + 1
    before = text[:below] if below else text + newline
    return f"{before}{' ' * parent.column}{entry}{newline}{text[below:] if below else ''}"


def _flow(value: object) -> str:
    """Return a plain value as YAML on one line that may stand inside brackets."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return value if _stands_plain(value) else _quoted(value)
        case int():
            return str(int(value))
        case float():
            text = repr(float(value))
            # YAML 1.1 readers, PyYAML among them, take 1e-05 for text.
            return text.replace("e", ".0e") if "e" in text and "." not in text else text.replace("inf", ".inf")
        case Mapping():
            return "{" + ", ".join(f"{_flow(str(key))}: {_flow(item)}" for key, item in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(_flow, value)) + "]"
    if hasattr(value, "item"):  # numpy's scalars
        return _flow(value.item())
    raise ParamsError(f"cannot be written to params.yaml: {value!r} ({type(value).__name__})")


def _stands_plain(text: str) -> bool:
    """Whether a text needs no quotes: harmless characters, and not read as a number, a truth value or a date."""
    if re.fullmatch(r"[A-Za-z0-9_./][A-Za-z0-9_./+-]*", text) is None:
        return False
    return bool(parse(f"_: {text}", "").content["_"].content == text)


def _quoted(text: str) -> str:
    special = {'"': '\\"', "\\": "\\\\"}
    return '"' + "".join(special.get(c, c if c.isprintable() else f"\\U{ord(c):08x}") for c in text) + '"'
