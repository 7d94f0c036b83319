"""The names of one list of nodes: who may take whose output."""

from collections.abc import Mapping
from dataclasses import replace

from deepcv.nn.spec.errors import SpecError, Where, closest
from deepcv.nn.spec.formula import FormulaError, Value, evaluate
from deepcv.nn.spec.model import INPUT, TAKEN, check_name
from deepcv.nn.spec.source import Block, Items, shown


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
            if ("op" in block) == ("template" in block):
                raise place.error(f"node {name!r}: needs either op or template")
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
        value = self.blocks[name][key]
        try:
            return evaluate(value, values) if isinstance(value, str) and "$" in value else value
        except FormulaError as problem:
            raise self.error(name, f"{key}: {problem}", key) from None

    def sources(self, name: str, previous: str, known: Mapping[str, str]) -> list[str]:
        """The local names that a node takes; the node before is the default."""
        given = self.blocks[name].get("from", previous)
        given = given if isinstance(given, list) else [given]
        for source in given:
            if isinstance(source, str) and source in known:
                continue
            if not isinstance(source, str) or source not in self.blocks:
                candidates = [*known]
                raise self.error(name, f"no node {shown(source)}; {closest(source, candidates)}", "from")
            if source == name:
                raise self.error(name, "takes itself as input", "from")
            line = self.blocks[source].where.line
            if cycle := self._way(source, name):
                raise self.error(name, f"a cycle: {' -> '.join([*cycle, name])}", "from")
            raise self.error(name, f"{source!r} comes later, in line {line}; a node takes only nodes above it", "from")
        return list(given)

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
            given = self.blocks[name].get("from", order[place - 1] if place else INPUT)
            for source in given if isinstance(given, list) else [given]:
                if isinstance(source, str) and source in self.blocks and source not in ways:
                    ways[source] = [source, *ways[name]]
                    pending.append(source)
        return []
