"""The expanded spec: what a network file says once templates and parameters are filled in."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from keyword import iskeyword
from numbers import Integral
from typing import Any

from torch import fx, nn

from deepcv.nn.emitter import Shape
from deepcv.nn.ops import OPS, Op
from deepcv.nn.spec import options
from deepcv.nn.spec.errors import SpecError, Where, closest
from deepcv.nn.spec.formula import CLASSES, Formula, FormulaError, Value, evaluate

FORMAT = 1
INPUT = "input"
NODE_KEYS = ("id", "op", "from", "repeat", "checkpoint")  # of every node, whatever its op
MAX_NODES = 10_000
Size = tuple[int, int]  # height, width
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
OWN = (
    "blueprint",
    "from_blueprint",
    "from_file",
    "from_spec",
    "spec",
)  # what only a DeepcvModule has, of its nodes' names
TAKEN = frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph()))) | {INPUT}


@dataclass(frozen=True)
class NodeSpec:
    """One layer. The id of one inside a template is `res1.first`; options are complete and in a fixed order.

    `share` is the id of the node whose modules this one uses, empty where it has its own. `checkpoint` is the id of the node
    or template use whose values are computed again in the backward pass instead of kept, empty where they are kept.
    """

    id: str
    op: str
    sources: tuple[str, ...]
    options: tuple[tuple[str, Value], ...]
    where: Where = field(default=Where(), compare=False, repr=False)
    share: str = ""
    checkpoint: str = ""

    def bind(self, classes: int) -> Op:
        """The op with `$classes` filled in."""
        known: dict[str, Value] = {"classes": classes}
        try:
            values = {k: evaluate(v.text, known) if isinstance(v, Formula) else v for k, v in self.options}
            return options.make(self.op, values)
        except (FormulaError, options.OptionError) as error:
            raise self.error(str(error)) from None

    def error(self, message: str) -> SpecError:
        """An error of this node, with its place."""
        return self.where.error(f"node {self.id!r}: {message}")


@dataclass(frozen=True)
class NetworkSpec:
    """A whole network, checked but for the shapes; nodes in an order in which each comes after its sources.

    `sizes` are those of the inputs that have one of their own; the others take images as they come.
    """

    nodes: tuple[NodeSpec, ...]
    outputs: tuple[tuple[str, str], ...]
    inputs: tuple[str, ...] = (INPUT,)
    sizes: tuple[tuple[str, Size], ...] = ()

    def input_shapes(self, given: Shape | Mapping[str, Shape]) -> dict[str, Shape]:
        """The shape (C, H, W) of each input: `given`, in the input's own size where it has one; or all of them by their names.

        Raises SpecError.
        """
        sizes = dict(self.sizes)
        if isinstance(given, Mapping):
            shapes = {name: _shape(shape) for name, shape in given.items()}
        else:
            whole = _shape(given)
            shapes = {name: (*whole[:-2], *sizes.get(name, whole[-2:])) for name in self.inputs}
        if set(shapes) != set(self.inputs):
            raise SpecError(f"input_shape must name the inputs {', '.join(self.inputs)}, got {', '.join(shapes)}")
        for name, shape in shapes.items():
            if shape[1:] != sizes.get(name, shape[1:]):
                raise SpecError(
                    f"the network file says that the input {name!r} is {sizes[name]}, got input_shape {shape}"
                )
        return {name: shapes[name] for name in self.inputs}

    def check_ids(self) -> None:
        """Raise SpecError for an id that a `DeepcvModule` has as an attribute."""
        for node in self.nodes:
            if (name := node.id.partition(".")[0]) in TAKEN - {INPUT} or name in OWN:
                raise node.error(f"the id is taken: a DeepcvModule has a {name!r} of its own; call the node otherwise")

    def canonical(self) -> dict[str, Any]:
        """The spec as plain data for YAML or JSON: no path, no line; equal for equal networks.

        No default is left out but those of keys that an op got later: a network without them keeps its digest.
        """
        inputs: dict[str, Any] = {} if self.inputs == (INPUT,) else {"inputs": list(self.inputs)}
        inputs |= {"sizes": {name: list(size) for name, size in self.sizes}} if self.sizes else {}
        return {
            "format": FORMAT,
            **inputs,
            "nodes": [_canonical_node(node) for node in self.nodes],
            "outputs": [
                list(output) for output in self.outputs
            ],  # pairs, as a YAML dump may sort the keys of a mapping
        }

    def sha256(self) -> str:
        """The digest of the canonical form: equal for equal networks, however their files are written."""
        return hashlib.sha256(json.dumps(self.canonical(), sort_keys=True).encode()).hexdigest()


def _shape(given: object) -> Shape:
    """A shape (C, H, W) as a tuple; SpecError for anything else."""
    sides = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else ()
    if len(sides) != 3 or any(type(side) is bool or not isinstance(side, Integral) or side < 1 for side in sides):
        raise SpecError(f"input_shape must be (C, H, W) with sizes of at least 1, got {given!r}")
    return sides


def _canonical_node(node: NodeSpec) -> dict[str, Any]:
    later = options.later(OPS[node.op])
    given = {key: value for key, value in node.options if key not in later or value != later[key]}
    links = {"share": node.share, "checkpoint": node.checkpoint}
    return (
        {"id": node.id, "op": node.op, "from": list(node.sources)}
        | {key: value for key, value in links.items() if value}
        | {key: _plain(value) for key, value in given.items()}
    )


def _plain(value: Value) -> Any:
    """An option as JSON and YAML have it."""
    return value.text if isinstance(value, Formula) else list(value) if isinstance(value, tuple) else value


def from_canonical(canonical: Mapping[str, Any]) -> NetworkSpec:
    """The spec that gave this canonical form; SpecError where it is none."""
    nowhere = Where()
    try:
        if canonical["format"] != FORMAT:
            raise nowhere.error(f"a network spec of format {canonical['format']!r}; this DeepCV reads format {FORMAT}")
        nodes = []
        for entry in canonical["nodes"]:
            given = {key: value for key, value in entry.items() if key not in (*NODE_KEYS, "share")}
            node = make_node(str(entry["id"]), str(entry["op"]), tuple(entry["from"]), given, nowhere, {})
            nodes.append(replace(node, share=str(entry.get("share", "")), checkpoint=str(entry.get("checkpoint", ""))))
        outputs = tuple((str(name), str(source)) for name, source in canonical["outputs"])
        inputs = tuple(str(name) for name in canonical.get("inputs", (INPUT,)))
        given_sizes = {
            str(name): (int(height), int(width)) for name, (height, width) in canonical.get("sizes", {}).items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise nowhere.error(f"not a canonical network spec: {type(error).__name__}: {error}") from None
    known = {check_name(name, "an input", nowhere) for name in inputs}
    sizes = tuple((name, given_sizes[name]) for name in inputs if name in given_sizes)
    if len(sizes) < len(given_sizes) or any(min(size) < 1 for _, size in sizes):
        raise nowhere.error(f"expected sizes of at least 1 of the inputs {', '.join(inputs)}, got {given_sizes}")
    for node in nodes:
        first, *parts = node.id.split(".")
        if not NAME.fullmatch(first) or any(not NAME.fullmatch(part) and not part.isdecimal() for part in parts):
            raise node.error("not a node id")
        if node.id in known:
            raise node.error("the id stands twice")
        if unknown := [source for source in node.sources if source not in known]:
            raise node.error(f"no node {unknown[0]!r} before it")
        if node.share and node.share not in known:
            raise node.error(f"shares {node.share!r}, and no such node stands before it")
        if node.checkpoint and not f"{node.id}.".startswith(f"{node.checkpoint}."):
            raise node.error(f"lies outside of the part {node.checkpoint!r} that it is computed again with")
        known.add(node.id)
    for name, source in outputs:
        if source not in known:
            raise nowhere.error(f"output {name!r}: no node {source!r}")
    return NetworkSpec(tuple(nodes), outputs, inputs, sizes)


def make_node(
    node_id: str, op: str, sources: tuple[str, ...], given: Mapping[str, Any], where: Where, places: Mapping[str, Where]
) -> NodeSpec:
    """A checked node. Values of `given` may be plain or wait for `$classes`; `places` says where each key stands."""

    def error(message: str, key: str) -> SpecError:
        return places.get(key, where).error(f"node {node_id!r}: {message}")

    if op not in OPS:
        raise error(f"unknown op {op!r}; {closest(op, OPS)}", "op")
    if OPS[op].many and len(sources) < 2:
        raise error(f"{op} needs two or more inputs, e.g. from: [a, b]", "from")
    if not OPS[op].many and not 1 <= len(sources) <= OPS[op].most:
        count = "one input" if OPS[op].most == 1 else "one or two inputs"
        raise error(f"{op} takes {count}, got {len(sources)}; join them with sum or concat", "from")
    try:
        values = {k: evaluate(v, CLASSES) if isinstance(v, str) and "$" in v else v for k, v in given.items()}
        return NodeSpec(node_id, op, sources, options.complete(op, values, NODE_KEYS), where)
    except FormulaError as problem:
        raise error(str(problem), "") from None
    except options.OptionError as problem:
        raise error(str(problem), problem.key) from None


def check_name(name: object, what: str, where: Where, taken: Sequence[str] = ()) -> str:
    """A name of a node, a parameter, a template or an output."""
    if not isinstance(name, str) or not NAME.fullmatch(name) or "__" in name or iskeyword(name):
        raise where.error(f"{what} must be a name (letters, digits, single underscores, a letter first), got {name!r}")
    if name in taken:
        raise where.error(f"{what} cannot be {name!r}: the name is taken by {_taker(name)}")
    return name


def _taker(name: str) -> str:
    if name in (*CLASSES, "index"):
        return f"${name}, which files have already"
    if name in TAKEN - {INPUT}:
        return f"torch, whose modules have {name!r} of their own"
    return "the images that come in" if name == INPUT else "a key that nodes have"
