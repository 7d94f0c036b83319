"""The keys of an op: from plain values to the field types of its dataclass in `ops`."""

import dataclasses
from collections.abc import Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from deepcv.nn.ops import OPS, Op, Range
from deepcv.nn.spec.errors import closest
from deepcv.nn.spec.formula import Formula, Value

REQUIRED = dataclasses.MISSING


class OptionError(Exception):
    """A key or a value that an op does not take; the caller adds the place. `key` is the key at fault, if any."""

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message)
        self.key = key


@cache
def fields(kind: type[Op]) -> dict[str, tuple[Any, Any]]:
    """Key to (type, default) of an op, in the order of its dataclass."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: (hints[field.name], field.default) for field in dataclasses.fields(kind)}


@cache
def later(kind: type[Op]) -> dict[str, Value]:
    """The keyword-only keys of an op with their defaults: those that came after networks had been saved without them."""
    return {field.name: fields(kind)[field.name][1] for field in dataclasses.fields(kind) if field.kw_only}


def complete(op: str, given: Mapping[str, Value], also: tuple[str, ...] = ()) -> tuple[tuple[str, Value], ...]:
    """Every option of an op, checked, defaults filled in. `also` are the node's own keys, for the closest name."""
    known = fields(OPS[op])
    for key in given:
        if key not in known:
            raise OptionError(f"unknown key {key!r}; {closest(key, [*known, *also])}", key)
    options = []
    for key, (hint, default) in known.items():
        if key in given:
            options.append((key, coerce(key, given[key], hint)))
        elif default is REQUIRED:
            raise OptionError(f"{op} needs the key {key!r}: {describe(hint)}")
        else:
            options.append((key, default))
    return tuple(options)


def make(op: str, options: Mapping[str, Value]) -> Op:
    """The op's dataclass from options without formulas."""
    known = fields(OPS[op])
    return OPS[op](**{key: coerce(key, value, known[key][0]) for key, value in options.items()})


def coerce(key: str, value: Value, hint: Any) -> Value:
    """The value as the type says; a formula that waits for $classes passes where a number may stand, a list becomes a tuple."""
    element = _element(hint)
    if isinstance(value, list | tuple) and element is not None:
        if not value:
            raise OptionError(f"{key} must be {describe(hint)}, got an empty list", key)
        return tuple(coerce(key, one, element) for one in value)
    base, bounds = _parts(hint)
    if _optional(hint) and value is None:
        return None
    if isinstance(value, Formula) and base in (int, float):
        return value
    if get_origin(base) is Literal:
        if value in get_args(base) and isinstance(value, str):
            return value
        known = [str(name) for name in get_args(base)]
        hit = closest(value, known)
        tail = f" ({hit})" if hit.startswith("the closest") else ""
        raise OptionError(f"{key} must be {describe(hint)}, got {value!r}{tail}", key)
    if base is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not base:
        raise OptionError(f"{key} must be {describe(hint)}, got {value!r}", key)
    if bounds is not None and isinstance(value, int | float) and not bounds.low <= value <= bounds.high:
        raise OptionError(f"{key} must be {describe(hint)}, got {value!r}", key)
    return value


def describe(hint: Any) -> str:
    """A field's type in words."""
    element, (base, bounds) = _element(hint), _parts(hint)
    if element is not None:
        return ("" if base is None else f"{describe(base)} or ") + f"a list, each {describe(element)}"
    if get_origin(base) is Literal:
        return f"one of {', '.join(get_args(base))}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[base]
    return f"{words} from {bounds.low:g} to {bounds.high:g}" if bounds else words


def _optional(hint: Any) -> bool:
    return NoneType in get_args(hint)


def _element(hint: Any) -> Any:
    """The type of the items where a list may stand, else None."""
    for part in alternatives(hint):
        if get_origin(part) is tuple:
            return get_args(part)[0]
    return None


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The types that a field may have, without that of None."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return tuple(part for part in parts if part is not NoneType)


def _parts(hint: Any) -> tuple[Any, Range | None]:
    """The type of a single value and its bounds; None where only a list may stand."""
    hint = next((part for part in alternatives(hint) if get_origin(part) is not tuple), None)
    if get_origin(hint) is Annotated:
        base, bounds = get_args(hint)
        return base, bounds
    return hint, None
