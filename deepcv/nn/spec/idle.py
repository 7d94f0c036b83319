"""Keys of a node that another of its keys leaves without effect: mostly a key too few, or a misunderstanding.

Files alone are checked. Stored networks were built with such keys, and a key with a formula is for other values of its parameter.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from deepcv.nn.ops import OPS
from deepcv.nn.spec.options import fields

_WITH_VALUE = ("constant", "truncated_normal")


def idle(op: str, options: Mapping[str, Any], written: Mapping[str, object]) -> tuple[str, str] | None:
    """The first key without effect and why, or None. `written` are the node's keys as they stand, formulas as texts."""
    for keys, why in _found(op, options):
        if not any("$" in value for key in keys if isinstance(value := written.get(key), str)):
            return keys[0], why
    return None


def _found(op: str, options: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Keys that play a part in it, the one without effect first, and why."""

    def told(*keys: str) -> bool:
        return any(options[key] != fields(OPS[op])[key][1] for key in keys)

    if options.get("init_value", 0) != 0 and (init := options["init"]) not in _WITH_VALUE:
        got = "no init" if init is None else f"init: {init}"
        yield ("init_value", "init"), f"init_value is for init: {' and '.join(_WITH_VALUE)}, got {got}"
    if options.get("norm_groups") is not None and options["norm"] != "group":
        yield ("norm_groups", "norm"), f"norm_groups is for norm: group, got norm: {options['norm']}"
    if op == "squeeze_excite" and options["hidden"] is not None and told("reduction", "divisor"):
        why = f"reduction and divisor find the size of the bottleneck, which hidden: {options['hidden']} gives"
        yield ("reduction", "divisor", "hidden"), why
    if op == "eca" and options["kernel"] is not None and told("gamma", "b"):
        why = f"gamma and b find the size of the kernel, which kernel: {options['kernel']} gives"
        yield ("gamma", "b", "kernel"), why
    if op == "pad" and options["mode"] != "constant" and told("value"):
        yield ("value", "mode"), f"value is for mode: constant, got mode: {options['mode']}"
    if op == "upsample":
        said = [key for key in ("height", "scale") if options[key] is not None] + (["factor"] if told("factor") else [])
        if len(said) > 1:
            yield (said[1], said[0]), f"give one of factor, scale and height, got {said[1]} and {said[0]}"
    if op == "timm" and options["features"] and told("classes", "pool"):
        yield (
            ("classes", "pool", "features"),
            "classes and pool are for the end of the network, which features: true leaves out",
        )
    if op == "timm" and options["out_indices"] is not None and not options["features"]:
        yield ("out_indices", "features"), "out_indices are for features: true"
    if op == "torchvision" and options["at"] is None and options["classes"] == 0:
        why = "needs classes of at least 1; for its features name the node that gives them, e.g. at: flatten"
        yield ("classes", "at"), why
