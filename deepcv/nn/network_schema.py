"""The JSON Schema of network files, by which editors complete and check them."""

import json
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from deepcv.nn.op_words import meaning
from deepcv.nn.ops import OPS
from deepcv.nn.spec.document import FILE_KEYS, TEMPLATE_KEYS
from deepcv.nn.spec.expand import zoo
from deepcv.nn.spec.model import NAME, TAKEN
from deepcv.nn.spec.options import REQUIRED, alternatives, fields

_FORMULA = {"type": "string", "pattern": r"\$", "description": "a formula of $parameters"}
_NAME = {"type": "string", "pattern": "^[A-Za-z][A-Za-z0-9_]*$"}
_NAMES = {"type": "array", "items": _NAME, "minItems": 1}
_SIZE = {
    "anyOf": [
        {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 2, "maxItems": 2},
        {"type": "null"},
    ],
    "description": "[height, width] that a training resizes the images to; null: as they come",
}
_ID = _NAME | {"not": {"enum": sorted(name for name in TAKEN if NAME.fullmatch(name))}}
_SCALAR = {"type": ["number", "string", "boolean"]}
_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}


def schema() -> dict[str, Any]:
    """The schema of a network file: every op with its keys, types, ranges and defaults."""
    nodes = {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/node"}}
    sections: dict[str, Any] = {
        "parameters": {"type": "object", "additionalProperties": _SCALAR, "propertyNames": _NAME},
        "defaults": {"type": "object", "properties": _defaults(), "additionalProperties": False},
        "templates": {"type": "object", "propertyNames": _NAME, "additionalProperties": {"$ref": "#/$defs/template"}},
        "inputs": {
            "anyOf": [
                _NAMES,
                {"type": "object", "additionalProperties": _SIZE, "propertyNames": _NAME, "minProperties": 1},
            ]
        },
        "nodes": nodes,
        "outputs": {"type": "object", "additionalProperties": {"type": "string"}, "minProperties": 1},
    }
    template = sections | {
        "parameters": {"anyOf": [{"type": "array", "items": _NAME}, {"type": "object"}]},
        "inputs": _NAMES,
        "output": {"type": "string"},
        "outputs": {"type": "array", "items": {"type": "string"}},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "DeepCV network",
        "type": "object",
        "properties": {key: sections[key] for key in FILE_KEYS},
        "required": ["nodes", "outputs"],
        "additionalProperties": False,
        "$defs": {
            "id": _ID,
            "template": {
                "type": "object",
                "properties": {key: template[key] for key in TEMPLATE_KEYS},
                "required": ["nodes"],
                "additionalProperties": False,
            },
            "body": {"type": "object", "anyOf": [*_bodies(with_id=False)]},
            "node": {"type": "object", "required": ["id"], "anyOf": [*_bodies(with_id=True)]},
        },
    }


def as_json() -> str:
    """The schema as a file holds it."""
    return json.dumps(schema(), separators=(",", ":"), ensure_ascii=False) + "\n"


def _defaults() -> dict[str, Any]:
    """Each key of `defaults`: what any op that inherits it takes."""
    taken: dict[str, list[Any]] = {}
    for op in OPS.values():
        for key, name in op.inherits.items():
            choices = taken.setdefault(name, [])
            choices += [choice for choice in _value(fields(op)[key][0])["anyOf"] if choice not in choices]
    return {name: {"anyOf": taken[name]} for name in sorted(taken)}


def _bodies(*, with_id: bool) -> list[dict[str, Any]]:
    """One schema per kind of node; inside a `choice` a node has neither id nor from."""
    count = {"anyOf": [{"type": "integer", "minimum": 1}, _FORMULA]}
    again = {"checkpoint": {"anyOf": [{"type": "boolean"}, _FORMULA]}}
    own: dict[str, Any] = {"id": {"$ref": "#/$defs/id"}} if with_id else {}
    sources: dict[str, Any] = {"from": {"type": ["string", "array"], "items": {"type": "string"}}} if with_id else {}
    links = own | sources | again | {"repeat": count}

    def body(required: str, properties: dict[str, Any]) -> dict[str, Any]:
        return {"properties": properties, "required": [required], "additionalProperties": False}

    bodies = [_op(name, links) for name in OPS if name != "choice"]
    bodies += [_op(name, links, sugar=True) for name in ("timm", "torchvision")]
    bodies.append({"properties": links | {"template": _NAME}, "required": ["template"]})
    bodies.append(
        body(
            "spec", links | {"spec": {"enum": zoo()}, "parameters": {"type": "object", "additionalProperties": _SCALAR}}
        )
    )
    picks = {"pick": {"type": ["string", "null"]}, "n": count}
    candidates = {"type": "object", "additionalProperties": {"$ref": "#/$defs/body"}}
    bodies.append(body("choice", links | picks | {"choice": candidates}))
    if with_id:
        bodies.append(body("share", own | sources | again | {"share": _NAME}))
        nodes = {"type": "array", "items": {"type": "string"}, "minItems": 2}
        bodies.append(body("pick_from", own | picks | {"pick_from": nodes}))
    return bodies


def _op(name: str, links: dict[str, Any], *, sugar: bool = False) -> dict[str, Any]:
    kind, properties, required = OPS[name], {}, []
    for key, (hint, default) in fields(kind).items():
        properties[key] = _value(hint) | ({} if default in (REQUIRED, None) else {"default": default})
        properties[key]["description"] = meaning(name, key)
        if default is REQUIRED:
            required.append(key)
    if sugar:  # `timm: NAME` for `op: timm, name: NAME`
        properties[name] = properties.pop("name")
        required = [name]
    else:
        properties["op"] = {"const": name}
        required = ["op", *required]
    return {
        "title": name, "description": (kind.__doc__ or "").split("\n\n")[0].replace("\n    ", " "),
        "properties": links | properties, "required": required, "additionalProperties": False,
    }  # fmt: skip


def _value(hint: Any) -> dict[str, Any]:
    """The schema of one key; a formula may stand for anything but a text of one's own."""
    choices = [_plain(part) for part in alternatives(hint)]
    return {"anyOf": [*choices, _FORMULA, *([{"type": "null"}] if NoneType in get_args(hint) else [])]}


def _plain(hint: Any) -> dict[str, Any]:
    if get_origin(hint) is tuple:
        return {"type": "array", "items": _plain(get_args(hint)[0]), "minItems": 1}
    base, bounds = get_args(hint) if get_origin(hint) is Annotated else (hint, None)
    if get_origin(base) is Literal:
        return {"enum": list(get_args(base))}
    return {"type": _TYPES[base]} | ({} if bounds is None else {"minimum": bounds.low, "maximum": bounds.high})
