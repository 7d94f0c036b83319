"""The reference of all ops as text: `deepcv ops`. It is read off the ops themselves, so that it cannot lag behind them."""

import textwrap

from deepcv.errors import DeepcvError
from deepcv.nn.op_words import EXAMPLES, meaning
from deepcv.nn.ops import FAMILIES, OPS, Op
from deepcv.nn.spec.errors import closest
from deepcv.nn.spec.options import REQUIRED, describe, fields

_LEGEND = "Of one image: C channels, H height, W width in pixels; T tokens of D features; F flat features."


def table(width: int) -> str:
    """All ops by family, each with one line."""
    indent = max(map(len, OPS)) + 4
    lines = []
    for family, ops in FAMILIES.items():
        lines += [family, *(f"  {name}".ljust(indent) + _short(kind, width - indent) for name, kind in ops.items()), ""]
    return "\n".join([*lines, f"{len(OPS)} ops; deepcv ops NAME shows the keys of one."]) + "\n"


def page(name: str, width: int) -> str:
    """One op: what it does and where it comes from, its shapes, an example, and its keys with type, default and unit."""
    if name not in OPS:
        raise DeepcvError(f"no op {name!r}; {closest(name, OPS)}; deepcv ops lists them all")
    kind = OPS[name]
    family = next(family for family, ops in FAMILIES.items() if name in ops)
    text = " ".join((kind.__doc__ or "").split())
    lines = [f"{name} ({family})", "", *textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="  "), ""]
    takes = {"inputs": _inputs(kind), "shapes": _shapes(kind), "example": f"- {EXAMPLES[name]}"}
    lines += [_row(f"  {title}", value, 12, width) for title, value in takes.items()]
    keys = fields(kind)
    if not keys:
        return "\n".join([*lines, "", "  It has no keys.", "", f"  {_LEGEND}"]) + "\n"
    defaults = {key: "required" if default is REQUIRED else _shown(default) for key, (_, default) in keys.items()}
    first, second = (max(map(len, column)) + 2 for column in (["key", *keys], ["default", *defaults.values()]))
    lines += ["", f"  {'key':{first}}{'default':{second}}meaning [values]"]
    for key, (hint, _) in keys.items():
        inherited = f"; inherits `defaults: {{{kind.inherits[key]}: …}}`" if key in kind.inherits else ""
        what = f"{meaning(name, key)}{inherited} [{describe(hint)}]"
        lines.append(_row(f"  {key:{first}}{defaults[key]:{second}}", what, first + second + 2, width))
    return "\n".join([*lines, "", f"  {_LEGEND}"]) + "\n"


def _short(kind: type[Op], width: int) -> str:
    return textwrap.shorten((kind.__doc__ or "").partition("\n")[0], width, placeholder=" …")


def _shapes(kind: type[Op]) -> str:
    return " ".join((kind.emit.__doc__ or "").split())


def _inputs(kind: type[Op]) -> str:
    return "two" if kind.pair else "two or more" if kind.many else "one" if kind.most == 1 else "one or two"


def _shown(default: object) -> str:
    """A default as a network file has it."""
    return "null" if default is None else str(default).lower() if isinstance(default, bool) else str(default)


def _row(head: str, text: str, indent: int, width: int) -> str:
    """A text beside its head, its further lines below its first."""
    lines = textwrap.wrap(text, max(width - indent, 40), break_long_words=False, break_on_hyphens=False)
    return f"\n{' ' * indent}".join([f"{head:<{indent}}{lines[0]}", *lines[1:]])
