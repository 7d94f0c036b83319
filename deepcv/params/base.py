"""What a section of params.yaml is, how one is read, and how its errors read."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from deepcv.params.document import Node, ParamsError, parse, read, report, show

__all__ = [
    "Group",
    "MisfitError",
    "ParamsError",
    "Section",
    "closest",
    "load_section",
    "section_problems",
    "show",
    "value_problem",
]

FILE = Path("params.yaml")
Problem = tuple[int, str, str]
Place = tuple[str | int, ...]
Sections = Mapping[str, type["Section"]]
AnySection = TypeVar("AnySection", bound="Section")


class MisfitError(ValueError):
    """Values that do not fit together, raised by a section's own checks: pairs of (path below the section, text)."""

    def __init__(self, *problems: tuple[Place, str]) -> None:
        super().__init__("; ".join(f"{'.'.join(map(str, path))}: {text}" for path, text in problems))
        self.problems = problems


class Group(BaseModel):
    """A mapping with named keys: frozen, strict about types, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    also_called: ClassVar[Mapping[str, str]] = {}  # names that other tools give a key -> the key


class Section(Group):
    """One section of params.yaml."""

    section: ClassVar[str]


def load_section(cls: type[AnySection], path: Path = FILE) -> AnySection:
    """Read one section of a params file; the other sections need to be YAML, no more.

    Raises ParamsError, which lists every problem of the section as `file:line: section.key: what is wrong`.
    """
    root = parse(read(path), str(path))
    loaded, problems = section_problems(cls, root, {cls.section: cls})
    if loaded is None:
        raise ParamsError(report(problems, str(path)))
    return loaded


def section_problems(cls: type[AnySection], root: Node, sections: Sections) -> tuple[AnySection | None, list[Problem]]:
    """Validate the section `cls` of a parsed file; `sections` is where a misplaced key may belong."""
    name = cls.section
    keys = ", ".join(cls.model_fields)
    if name not in root.content:
        near = [
            f"'{key}' (line {root.content[key].line})" for key in closest(name, root.content) if key not in sections
        ]
        hint = f" (is it {' or '.join(near)}?)" if near else ""
        return None, [(1, name, f"the section is missing{hint}; its keys are {keys}")]
    node: Node = root.content[name]
    if not isinstance(node.content, dict):
        return None, [(node.line, name, f"must be a section with the keys {keys}; got {show(node.plain())}")]
    unknown = [key for key in node.content if key not in cls.model_fields]
    problems = [(node.content[key].line, f"{name}.{key}", _unknown(key, cls, sections)) for key in unknown]
    # A key that is merely misspelt is not reported as missing as well.
    meant = {near for key in unknown for near in closest(key, cls.model_fields, cls.also_called)}
    try:
        loaded = cls.model_validate({key: value.plain() for key, value in node.content.items() if key not in unknown})
    except ValidationError as error:
        for path, text in _texts(cls, error):
            if not (len(path) == 1 and path[0] in meant and path[0] not in node.content):
                problems.append((node.find(path).line, ".".join([name, *map(str, path)]), text))
        return None, problems
    return (None if problems else loaded), problems


def value_problem(cls: type[Group], key: str, value: object) -> str | None:
    """Say what is wrong with a value for one key of a section or mapping, or return None."""
    try:
        cls.model_validate({key: value})
    except ValidationError as error:
        return next((text for path, text in _texts(cls, error) if path and path[0] == key), None)
    return None


def closest(word: str, keys: Iterable[str], also: Mapping[str, str] | None = None) -> list[str]:
    """Return the valid keys that a misspelt one may mean: all that are one edit away, else the most similar one."""
    known = list(keys)
    near = [key for key in known if _one_edit(word, key)]
    if near:
        return near
    other = dict(also or {})
    if word.lower() in known:
        return [word.lower()]
    found = difflib.get_close_matches(word.lower(), [*known, *other], n=1, cutoff=0.6)
    return [other.get(key, key) for key in found]


def _limits(metadata: Iterable[object]) -> str:
    return " and ".join(
        f"{sign} {getattr(mark, name)}"
        for mark in metadata
        for name, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
        if getattr(mark, name, None) is not None
    )


def expected(field: FieldInfo) -> str:
    """Say in words which values a field takes, such as `a whole number >= 1 and <= 100 or 'auto'`."""
    text = _kind(field.annotation, _limits(field.metadata))
    for mark in field.metadata:
        if getattr(mark, "pattern", None):
            text += f" that matches {mark.pattern.strip('^$')}"
        if getattr(mark, "min_length", None):
            text += " that is not empty"
        if (longest := getattr(mark, "max_length", None)) is not None:
            text += f" of at most {longest} {'entries' if text == 'a list' else 'characters'}"
    return f"{text}, such as {field.examples[0]}" if field.examples else text


def _is_int(annotation: Any) -> bool:
    return annotation is int or (get_origin(annotation) is Annotated and get_args(annotation)[0] is int)


def _kind(annotation: Any, limits: str) -> str:
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        parts = [part for part in get_args(annotation) if not (_is_int(part) and float in get_args(annotation))]
        return " or ".join(_kind(part, limits) for part in parts)
    if origin is Annotated:
        inner, *marks = get_args(annotation)
        return _kind(inner, _limits(mark for info in marks for mark in info.metadata))
    if origin is Literal:
        return " or ".join(f"'{value}'" if isinstance(value, str) else str(value) for value in get_args(annotation))
    if origin in (dict, Mapping) or (isinstance(annotation, type) and issubclass(annotation, Group)):
        return "a mapping"
    if origin in (list, tuple, Sequence):
        return "a list"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "nothing"}
    word = words.get(annotation, "a value")
    return f"{word} {limits}" if limits and annotation in (int, float) else word


def _texts(cls: type[Group], error: ValidationError) -> list[tuple[Place, str]]:
    """Translate pydantic's errors into (path below the section, text), one per place."""
    texts: dict[Place, str] = {}
    misfits: list[tuple[Place, str]] = []
    misspelt: set[Place] = set()
    for item in error.errors(include_url=False):
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, MisfitError):
            misfits.extend(((*item["loc"], *path), text) for path, text in cause.problems)
            continue
        place, owner, field, wanted = _place(cls, item["loc"])
        if item["type"] == "extra_forbidden":
            texts[place] = _unknown(str(place[-1]), owner, {})
            misspelt |= {(*place[:-1], near) for near in closest(str(place[-1]), owner.model_fields, owner.also_called)}
        elif item["type"] == "missing" and field is not None:
            texts[place] = f"missing; it must be {wanted} ({field.description})"
        elif not place:
            texts[place] = item["msg"]
        else:
            texts[place] = f"must be {wanted}, got {show(item['input'])}{_advice(item['input'], wanted)}"
    missing = {place for place in misspelt if texts.get(place, "").startswith("missing")}
    return [*((place, text) for place, text in texts.items() if place not in missing), *misfits]


def _place(cls: type[Group], path: Place) -> tuple[Place, type[Group], FieldInfo | None, str]:
    """Follow pydantic's path: the place in the file, the mapping it is a key of, its field there, and what it must be.

    Below a union, pydantic's path goes on with the kinds that it tried: the place ends before them.
    """
    place: Place = ()
    owner, field = cls, None
    kind: Any = cls
    for step in path:
        if isinstance(kind, type) and issubclass(kind, Group):
            owner, field = kind, kind.model_fields.get(str(step))
            kind = field.annotation if field else None
        elif get_origin(kind) in (dict, list):
            field, kind = None, get_args(kind)[-1]
        else:
            break
        place = (*place, step)
    return place, owner, field, expected(field) if field else _kind(kind, "")


def _advice(value: object, wanted: str) -> str:
    if isinstance(value, str) and "number" in wanted:
        try:
            float(value)
        except ValueError:
            return ""
        return "; take the quotes away"
    if isinstance(value, str) and "true or false" in wanted and value.lower() in ("yes", "no", "on", "off", "y", "n"):
        return f"; write {'true' if value.lower() in ('yes', 'on', 'y') else 'false'}"
    if isinstance(value, float) and "whole number" in wanted and value.is_integer():
        return f"; write {int(value)}"
    if isinstance(value, bool | int | float) and wanted.startswith("text"):
        return "; put it in quotes"
    return ""


def _unknown(key: str, cls: type[Group], sections: Sections) -> str:
    near = closest(key, cls.model_fields, cls.also_called)
    hints = [f"the closest is {' or '.join(repr(name) for name in near)}"] if near else []
    homes = [name for name, other in sections.items() if other is not cls and key in other.model_fields]
    if homes:
        hints.append(f"there is {' and '.join(f'{name}.{key}' for name in homes)}")
    elif not near:
        found = ((name, closest(key, other.model_fields, other.also_called)) for name, other in sections.items())
        hints += [f"the closest is {name}.{keys[0]}" for name, keys in found if keys][:1]
    kind = "section" if issubclass(cls, Section) else "mapping"
    return "unknown key; " + ", and ".join(hints or [f"the {kind} has {', '.join(cls.model_fields)}"])


def _one_edit(word: str, key: str) -> bool:
    """Whether one insertion, deletion, replacement or swap of neighbours turns `word` into `key`."""
    if word == key or abs(len(word) - len(key)) > 1:
        return False
    start = next((i for i, (a, b) in enumerate(zip(word, key, strict=False)) if a != b), min(len(word), len(key)))
    a, b = word[start:], key[start:]
    return a[1:] == b[1:] or a[1:] == b or a == b[1:] or (a[:2] == b[1::-1] and a[2:] == b[2:])
