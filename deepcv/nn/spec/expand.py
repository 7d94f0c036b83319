"""From a network file to a `NetworkSpec`: templates, repeats, shares, choices and nested networks become plain nodes."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from deepcv.nn.ops import OPS
from deepcv.nn.spec import unused
from deepcv.nn.spec.document import INDEX, USE_KEYS, Document, Template, open_document, typed
from deepcv.nn.spec.errors import Where, closest
from deepcv.nn.spec.formula import Formula, Value
from deepcv.nn.spec.idle import idle
from deepcv.nn.spec.lowering import chosen
from deepcv.nn.spec.model import MAX_NODES, NODE_KEYS, NetworkSpec, NodeSpec, make_node
from deepcv.nn.spec.scope import KINDS, Names, Scope
from deepcv.nn.spec.source import Block, Items, shown
from deepcv.nn.spec.use import Place, Use, checkpointed, deeper, shared, taken, times

ZOO = Path(__file__).parents[1] / "zoo"
_CHOICE_KEYS = ("id", "choice", "from", "pick", "n", "repeat", "checkpoint")
_PICK_KEYS = ("id", "pick_from", "pick", "n")
_SPEC_KEYS = ("id", "spec", "from", "parameters", "repeat", "checkpoint")


def load(
    path: str | Path, parameters: Mapping[str, object] | None = None, choices: Mapping[str, str] | None = None
) -> NetworkSpec:
    """Read a network file. `parameters` override those of the file and must exist there, as do `choices`, by their node ids.

    A choice so decided is as if the file said `pick`. Shapes are checked by `build`. Raises SpecError with file and line.
    """
    path = Path(path)
    if str(path) in zoo() and not path.exists():
        raise Where(str(path)).error(
            f"no such file, but the zoo has a network of this name: give the path ZOO / '{path}.yaml', "
            "with ZOO from deepcv.nn.spec"
        )
    document = open_document(path, parameters or {})
    expander = _Expander()
    place = Place(document, document.values, document.defaults)
    names = expander.expand(document.nodes, place, {name: (name,) for name in document.inputs})
    outputs = _outputs(document, names)
    nodes = _used(expander, outputs)
    unused.refuse(document)
    spec = NetworkSpec(nodes, tuple(outputs.items()), document.inputs, document.sizes)
    return chosen(spec, choices or {}, f"{path}: network_choices")


def zoo() -> list[str]:
    """The names of the networks that come with DeepCV."""
    return sorted(path.stem for path in ZOO.glob("*.yaml"))


def _outputs(document: Document, names: Names) -> dict[str, str]:
    block: Block = typed(document.body, "outputs", Block)
    outputs = {}
    for name, source in block.items():
        where = block.at(name)
        if not isinstance(source, str) or source not in names:
            raise where.error(f"output {name!r}: no node {shown(source)}; {closest(source, names)}")
        if len(names[source]) != 1:
            ends = ", ".join(end for end in names if end.startswith(f"{source}."))
            raise where.error(f"output {name!r}: {source!r} has several outputs, take one of {ends}")
        outputs[name] = names[source][0]
    return outputs


def _used(expander: "_Expander", outputs: Mapping[str, str]) -> tuple[NodeSpec, ...]:
    """The nodes that an output needs. One that none needs is an error, but for those of a network inside this one."""
    used, kept = set(outputs.values()), []
    for node in reversed(expander.nodes):
        if node.id in used:
            used.update(node.sources)
            kept.append(node)
        elif not node.id.startswith(tuple(expander.nested)):
            raise node.error("nothing uses it: neither a later node nor an output")
    return tuple(reversed(kept))


class _Expander:
    def __init__(self) -> None:
        self.nodes: list[NodeSpec] = []
        self.nested: list[str] = []  # what the ids of nodes of nested networks begin with

    def expand(self, items: Items, place: Place, inputs: Names) -> dict[str, tuple[str, ...]]:
        """Append the nodes of a list; gives what each name of it stands for."""
        scope = Scope(items, place.note)
        known = dict(inputs)
        previous = next(iter(inputs)) if len(inputs) == 1 else ""
        for name, block in scope.blocks.items():
            if name in inputs:
                raise scope.error(name, "an input has this name")
            sources = () if "pick_from" in block else scope.sources(name, previous, known)
            made = self._node(Use(name, block, scope, place, name, name), sources, known)
            known |= {f"{name}.{inner}" if inner else name: ids for inner, ids in made.items()}
            previous = name
        return known

    def _node(self, use: Use, sources: tuple[str, ...], known: Names) -> dict[str, tuple[str, ...]]:
        """Append what one node of a file stands for; gives its inner names, and its outputs under the empty name."""
        if "share" in use.block:
            use = shared(use)
        if "repeat" not in use.block:
            return self._once(checkpointed(use), sources, known)
        made: dict[str, tuple[str, ...]] = {}
        for index in range(times(use)):
            values = {**use.place.values, INDEX: index}
            owner, as_id = f"{use.owner}.{index}", f"{use.as_id}.{index}"
            again = replace(use, place=replace(use.place, values=values), owner=owner, as_id=as_id)
            once = self._once(checkpointed(again), sources, known)
            made |= {f"{index}.{inner}" if inner else str(index): ids for inner, ids in once.items()}
            sources = once[""]
        return made | once  # without a number: the last

    def _once(self, use: Use, sources: tuple[str, ...], known: Names) -> dict[str, tuple[str, ...]]:
        if "template" in use.block:
            return self._template(use, sources)
        if "spec" in use.block:
            return self._network(use, sources)
        if "choice" in use.block:
            return self._choice(use, sources, known)
        if "pick_from" in use.block:
            use.check_keys(_PICK_KEYS)
            given = use.block["pick_from"]
            if not isinstance(given, list):
                raise use.error(f"pick_from must be a list of nodes, got {shown(given)}", "pick_from")
            sources = tuple(i for one in given for i in use.scope.found(use.name, one, known, "pick_from"))
            return self._append(use, "choice", sources, _picks(use))
        op = next(kind for kind in KINDS if kind in use.block)
        given = {key: use.value(key) for key in use.block if key not in (*NODE_KEYS, op)}
        if op != "op":  # `timm: NAME`
            return self._append(use, op, sources, {"name": use.value(op), **given})
        if not isinstance(name := use.block["op"], str):
            raise use.error(f"op must be a text, got {shown(name)}", "op")
        return self._append(use, name, sources, given)

    def _append(
        self, use: Use, op: str, sources: tuple[str, ...], given: Mapping[str, Any]
    ) -> dict[str, tuple[str, ...]]:
        places = {key: replace(where, note=use.place.note) for key, where in use.block.places.items()}
        inherited = {}
        if op in OPS:
            for key, name in OPS[op].inherits.items():
                if key not in given and name in use.place.defaults:
                    inherited[key] = use.place.defaults[name]
        options = {key: use.scope.computed(use.name, key, value, use.place.values) for key, value in inherited.items()}
        node = make_node(use.id, op, sources, {**options, **given}, use.scope.where(use.name), places)
        if found := idle(op, dict(node.options), {**inherited, **use.block}):
            key, why = found
            raise use.error(why, key if key in use.block else "id")
        if len(self.nodes) == MAX_NODES:
            raise use.error(f"more than {MAX_NODES} nodes once templates and repeats are expanded")
        share = use.owner_id if use.owner_id != use.id else ""
        self.nodes.append(replace(node, share=share, checkpoint=use.place.checkpoint))
        return {"": (node.id,)}

    def _template(self, use: Use, sources: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
        called, templates = use.block["template"], use.place.document.templates
        if not isinstance(called, str) or called not in templates:
            raise use.error(f"unknown template {shown(called)}; {closest(called, templates)}", "template")
        template = templates[called]
        stack = deeper(use, called, "template")
        for key in use.block:
            if key not in USE_KEYS and key not in template.parameters:
                known = [*template.parameters, *USE_KEYS]
                raise use.error(f"unknown key {key!r} of template {called!r}; {closest(key, known)}", key)
        if missing := [key for key in template.required if key not in use.block]:
            raise use.error(f"template {called!r} needs the key {missing[0]!r}")
        for key in template.parameters:
            if isinstance(use.block.get(key), list | dict):
                raise use.error(f"{key} must be a single value, got {shown(use.block[key])}", key)
        given = {key: use.value(key) if key in use.block else default for key, default in template.parameters.items()}
        place = use.inside(
            values={**use.place.document.values, **given}, defaults={**use.place.defaults, **template.defaults},
            stack=stack, note=f"in template {called!r}, used in line {use.block.where.line}",
        )  # fmt: skip
        names = self.expand(template.nodes, place, taken(use, f"template {called!r}", template.inputs, sources))
        inner = {name: ids for name, ids in names.items() if name not in template.inputs}
        return {**inner, "": _ends(template, names)}

    def _network(self, use: Use, sources: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
        """A network of the zoo inside this one. A path would be a file that `train` depends on and DVC does not know."""
        use.check_keys(_SPEC_KEYS)
        name, given = use.block["spec"], use.block.get("parameters", Block(use.block.where))
        if not isinstance(name, str) or name not in zoo():
            raise use.error(f"no network {shown(name)} in the zoo; {closest(name, zoo())}", "spec")
        stack = deeper(use, name, "spec")
        if not isinstance(given, Block):
            raise use.error(f"parameters must be a mapping, got {shown(given)}", "parameters")
        values = {
            key: use.scope.computed(use.name, "parameters", value, use.place.values) for key, value in given.items()
        }
        if any(isinstance(value, Formula) for value in values.values()):
            raise use.error("parameters cannot wait for $classes, which the network inside knows", "parameters")
        document = open_document(ZOO / f"{name}.yaml", values, f"node {use.name!r}: parameters")
        place = use.inside(
            document=document, values=document.values, defaults=document.defaults, stack=stack,
            note=f"in network {name!r}, used in line {use.block.where.line}",
        )  # fmt: skip
        self.nested.append(place.prefix)
        names = self.expand(document.nodes, place, taken(use, f"network {name!r}", document.inputs, sources))
        ends = {output: (node,) for output, node in _outputs(document, names).items()}
        inner = {name: ids for name, ids in names.items() if name not in document.inputs}
        return {**inner, **ends, "": tuple(node for (node,) in ends.values())}

    def _choice(self, use: Use, sources: tuple[str, ...], known: Names) -> dict[str, tuple[str, ...]]:
        use.check_keys(_CHOICE_KEYS)
        bodies = use.block["choice"]
        if not isinstance(bodies, Block):
            raise use.error(f"choice must be a mapping of names to nodes, got {shown(bodies)}", "choice")
        items = Items(bodies.where)
        for name, body in bodies.items():
            if not isinstance(body, Block) or "from" in body or "id" in body:
                raise bodies.at(name).error(f"node {use.name!r}: {name!r} must be a node without id and from")
            items.append(_named(name, body))
            items.places.append(bodies.at(name))
        scope, place = Scope(items, use.place.note), use.inside()
        ends: list[str] = []
        for name, block in scope.blocks.items():
            made = self._node(Use(name, block, scope, place, name, name), sources, known)[""]
            if len(made) != 1:
                raise scope.error(name, f"a candidate of a choice has one output, got {len(made)}")
            ends += made
        return self._append(use, "choice", tuple(ends), _picks(use))


def _ends(template: Template, names: Names) -> tuple[str, ...]:
    if not template.outputs:
        return names[template.nodes[-1]["id"]]
    key = "output" if "output" in template.body else "outputs"
    for name in template.outputs:
        if name not in names:
            where: Where = template.body.at(key)
            raise where.error(f"template {template.name!r}: {key}: no node {name!r}; {closest(name, names)}")
    return tuple(node for name in template.outputs for node in names[name])


def _picks(use: Use) -> dict[str, Value]:
    """What a choice picks, and how many, where its node says so."""
    return {key: use.value(key) for key in ("pick", "n") if key in use.block}


def _named(name: str, body: Block) -> Block:
    block = Block(body.where)
    block.update({"id": name, **body})
    block.places = dict(body.places)
    return block
