"""The names of one list of nodes: who may take whose output."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from deepcv.nn.spec.errors import SpecError, Where, closest
from deepcv.nn.spec.formula import FormulaError, Value, evaluate
from deepcv.nn.spec.model import TAKEN, check_name
from deepcv.nn.spec.source import Block, Items, shown

# What a node is: one of these keys, and no other of them.
KINDS = ("op", "template", "share", "choice", "pick_from", "spec", "timm", "torchvision")
Names = Mapping[
    str, tuple[str, ...]
]  # what a name stands for: one node id, or several where a template has several outputs


class Scope:
    """The nodes of one list under their ids, before any is made: who may refer to whom."""

    def __init__(self, items: Items, note: str) -> None:
        self.note = note
        self.blocks: dict[str, Block] = {}
        for block, place in zip(items, items.places, strict=True):
            place = replace(place, note=note)
            if not isinstance(block, Block):
                raise place.error(f"a node must be a mapping such as {{id: stem, op: conv}}, got {shown(block)}")
            if "id" not in block:
                raise place.error("a node needs an id")
            name = check_name(block["id"], "the id of a node", place, taken=tuple(TAKEN))
            if name in self.blocks:
                raise place.error(f"node {name!r}: the id stands twice, first in line {self.blocks[name].where.line}")
            if sum(kind in block for kind in KINDS) != 1:
                raise place.error(f"node {name!r}: needs one of {', '.join(KINDS[:-1])} or {KINDS[-1]}")
            self.blocks[name] = block

    def where(self, name: str, key: str = "id") -> Where:
        """Where a key of a node stands; the node itself where the key is absent."""
        block = self.blocks[name]
        return replace(block.places.get(key, block.where), note=self.note)

    def error(self, name: str, message: str, key: str = "id") -> SpecError:
        """An error of a node, at one of its keys."""
        return self.where(name, key).error(f"node {name!r}: {message}")

    def value(self, name: str, key: str, values: Mapping[str, Value]) -> Value:
        """The value of a key of a node, its formula computed."""
        return self.computed(name, key, self.blocks[name][key], values)

    def computed(self, name: str, key: str, value: Any, values: Mapping[str, Value]) -> Value:
        """A value that a node has from elsewhere, its formula computed; errors stand at that key of the node."""
        try:
            return evaluate(value, values) if isinstance(value, str) and "$" in value else value
        except FormulaError as problem:
            raise self.error(name, f"{key}: {problem}", key) from None

    def standing_in(self, name: str, block: Block) -> "Scope":
        """These nodes with another block under one of the names."""
        other = Scope(Items(block.where), self.note)
        other.blocks = {**self.blocks, name: block}
        return other

    def sources(self, name: str, previous: str, known: Names) -> tuple[str, ...]:
        """The ids of the nodes that a node takes; the node before is the default, empty where there is none."""
        given = self.blocks[name].get("from", previous)
        if not given and "from" not in self.blocks[name]:
            raise self.error(name, f"needs the key 'from': there are several inputs, {', '.join(known)}")
        return tuple(
            found for one in (given if isinstance(given, list) else [given]) for found in self.found(name, one, known)
        )

    def found(self, name: str, source: object, known: Names, key: str = "from") -> tuple[str, ...]:
        """What a name that a node gives under `key` stands for; an error that says why it stands for nothing."""
        if isinstance(source, str) and source in known:
            return known[source]
        if not isinstance(source, str) or source not in self.blocks:
            raise self.error(name, f"no node {shown(source)}; {closest(source, known)}", key)
        if source == name:
            raise self.error(name, "takes itself as input", key)
        line = self.blocks[source].where.line
        if cycle := self._way(source, name):
            raise self.error(name, f"a cycle: {' -> '.join([*cycle, name])}", key)
        raise self.error(name, f"{source!r} comes later, in line {line}; a node takes only nodes above it", key)

    def _way(self, start: str, goal: str) -> list[str]:
        """Node ids from `goal` along the links to `start`; empty if `start` does not depend on `goal`."""
        order = list(self.blocks)
        ways = {start: [start]}
        pending = [start]
        while pending:
            name = pending.pop()
            if name == goal:
                return ways[name]
            place = order.index(name)
            given = self.blocks[name].get("from", order[place - 1] if place else "")
            for source in given if isinstance(given, list) else [given]:
                if isinstance(source, str) and source in self.blocks and source not in ways:
                    ways[source] = [source, *ways[name]]
                    pending.append(source)
        return []
