"""Write docs/network.schema.json: the JSON Schema of network files, by which editors complete and check them.

Run by `make schema`. A network file names it in its first line: `# yaml-language-server: $schema=../docs/network.schema.json`.
"""

import json
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from deepcv.nn.ops import OPS
from deepcv.nn.spec.document import FILE_KEYS, TEMPLATE_KEYS
from deepcv.nn.spec.expand import zoo
from deepcv.nn.spec.options import REQUIRED, fields

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
_SCALAR = {"type": ["number", "string", "boolean"]}
_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}


def schema() -> dict[str, Any]:
    """The schema of a network file: every op with its keys, types, ranges and defaults."""
    nodes = {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/node"}}
    inherited = sorted({name for op in OPS.values() for name in op.inherits.values()})
    sections: dict[str, Any] = {
        "parameters": {"type": "object", "additionalProperties": _SCALAR, "propertyNames": _NAME},
        "defaults": {"type": "object", "properties": dict.fromkeys(inherited, _SCALAR), "additionalProperties": False},
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


def _bodies(*, with_id: bool) -> list[dict[str, Any]]:
    """One schema per kind of node; inside a `choice` a node has neither id nor from."""
    links: dict[str, Any] = {
        "repeat": {"anyOf": [{"type": "integer", "minimum": 1}, _FORMULA]},
        "checkpoint": {"anyOf": [{"type": "boolean"}, _FORMULA]},
    }
    sources = {"type": ["string", "array"], "items": {"type": "string"}}
    if with_id:
        links |= {"id": _NAME, "from": sources}

    def body(required: str, properties: dict[str, Any], also: list[str] | None = None) -> dict[str, Any]:
        return {
            "properties": links | properties, "required": [required, *(also or [])], "additionalProperties": False,
        }  # fmt: skip

    bodies = [_op(name, links) for name in OPS if name != "choice"]
    bodies += [_op(name, links, sugar=True) for name in ("timm", "torchvision")]
    bodies.append({"properties": links | {"template": _NAME}, "required": ["template"]})
    bodies.append(
        body("spec", {"spec": {"enum": zoo()}, "parameters": {"type": "object", "additionalProperties": _SCALAR}})
    )
    bodies.append(
        body(
            "choice", {"choice": {"type": "object", "additionalProperties": {"$ref": "#/$defs/body"}}, "pick": _SCALAR}
        )
    )
    if with_id:
        bodies.append(body("share", {"share": _NAME}))
        picks = {"pick_from": {"type": "array", "items": {"type": "string"}, "minItems": 2}, "pick": _SCALAR}
        bodies.append(body("pick_from", picks | {"n": {"anyOf": [{"type": "integer", "minimum": 1}, _FORMULA]}}))
    return bodies


def _op(name: str, links: dict[str, Any], *, sugar: bool = False) -> dict[str, Any]:
    kind, properties, required = OPS[name], {}, []
    for key, (hint, default) in fields(kind).items():
        properties[key] = _value(hint) | ({} if default in (REQUIRED, None) else {"default": default})
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
    choices = [part for part in get_args(hint) if part is not NoneType]
    optional = NoneType in get_args(hint)
    if optional:
        (hint,) = choices
    base, bounds = get_args(hint) if get_origin(hint) is Annotated else (hint, None)
    if get_origin(base) is Literal:
        plain: dict[str, Any] = {"enum": list(get_args(base))}
    else:
        plain = {"type": _TYPES[base]}
    if bounds is not None:
        plain |= {"minimum": bounds.low, "maximum": bounds.high}
    return {"anyOf": [plain, _FORMULA, *([{"type": "null"}] if optional else [])]}


if __name__ == "__main__":
    Path("docs/network.schema.json").write_text(json.dumps(schema(), separators=(",", ":")) + "\n", encoding="utf-8")
