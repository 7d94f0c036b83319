"""What a network file declares and nothing in it uses: mostly a misspelt name."""

import re
from collections.abc import Iterable, Iterator

from deepcv.nn.spec.document import INDEX, Document, Template
from deepcv.nn.spec.errors import Where, closest
from deepcv.nn.spec.formula import CLASSES
from deepcv.nn.spec.source import Block

_NAME = re.compile(r"\$(\w+)")


def refuse(document: Document) -> None:
    """Raise SpecError for a parameter of the file or of a template, or a template, that nothing uses."""
    block = document.body.get("templates", Block(document.body.where))
    called = _called(document)
    for name in document.templates:
        if name not in called:
            raise block.at(name).error(
                f"template {name!r} is not used: no node says template: {name}{_instead(name, called)}"
            )
    used = _names([document.nodes, document.defaults])
    for template in document.templates.values():
        own = _names([template.nodes, template.defaults])
        used |= own - set(template.parameters)
        # A formula in `defaults` is computed where a node takes it, with the parameters that are known there.
        around = _names([document.defaults, *(other.defaults for other in document.templates.values())])
        for name in template.parameters:
            _check(name, own | around, _place(template, name), f"template {template.name!r}: ")
    if "parameters" in document.body:
        for name in document.body["parameters"]:
            _check(name, used, document.body["parameters"].at(name), "")


def _check(name: str, used: set[str], where: Where, prefix: str) -> None:
    if name not in used:
        others = [f"${other}" for other in sorted(used - {*CLASSES, INDEX})]
        raise where.error(f"{prefix}parameter {name!r} is not used: nothing says ${name}{_instead(f'${name}', others)}")


def _instead(name: str, used: Iterable[str]) -> str:
    """What the file uses in its place, if anything."""
    return f"; {closest(name, known)}" if (known := list(used)) else ""


def _place(template: Template, name: str) -> Where:
    given = template.body["parameters"]
    place: Where = given.at(name) if isinstance(given, Block) else given.places[given.index(name)]
    return place


def _names(values: Iterable[object]) -> set[str]:
    """The names behind a `$` in the texts within."""
    return {name for text in _texts(values) for name in _NAME.findall(text)}


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts(value.values())
    elif isinstance(value, Iterable):
        for one in value:
            yield from _texts(one)


def _called(document: Document) -> dict[str, None]:
    """The templates that nodes use, those within others too."""
    called: dict[str, None] = {}
    pending: list[object] = [document.nodes]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            name = value.get("template")
            if isinstance(name, str) and name in document.templates and name not in called:
                called[name] = None
                pending.append(document.templates[name].nodes)
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
    return called
