"""One node of a network file where it is used: what it sees, what it takes, whose modules it has."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from deepcv.nn.spec.document import Document
from deepcv.nn.spec.errors import SpecError, closest
from deepcv.nn.spec.formula import Formula, Value
from deepcv.nn.spec.model import MAX_NODES
from deepcv.nn.spec.scope import Scope
from deepcv.nn.spec.source import Block, shown

MAX_DEPTH = 16  # of templates and networks inside each other
_SHARE_KEYS = ("id", "share", "from", "checkpoint")


@dataclass(frozen=True)
class Place:
    """Where a list of nodes is expanded: what its nodes can see and what their ids begin with.

    `shared` is what the ids begin with whose modules are used: the same as `prefix`, but under a `share`.
    """

    document: Document
    values: Mapping[str, Value]
    defaults: Mapping[str, object]
    prefix: str = ""
    shared: str = ""
    checkpoint: str = ""
    stack: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Use:
    """One node of a list as it is written, and where it stands. `owner` is `name`, but under a `share` or a `repeat`."""

    name: str
    block: Block
    scope: Scope
    place: Place
    owner: str
    as_id: str  # the name, with the number of its repetition

    @property
    def id(self) -> str:
        """Its path in the network."""
        return self.place.prefix + self.as_id

    @property
    def owner_id(self) -> str:
        """The path of the modules that it uses; its own, but under a `share`."""
        return self.place.shared + self.owner

    def value(self, key: str) -> Value:
        """The value of a key, its formula computed."""
        return self.scope.value(self.name, key, self.place.values)

    def error(self, message: str, key: str = "id") -> SpecError:
        """An error of this node, at one of its keys."""
        return self.scope.error(self.name, message, key)

    def check_keys(self, known: tuple[str, ...]) -> None:
        """Refuse a key that is none of these."""
        for key in self.block:
            if key not in known:
                raise self.error(f"unknown key {key!r}; {closest(key, known)}", key)

    def inside(self, **changes: Any) -> Place:
        """The place of the nodes inside this one."""
        return replace(self.place, prefix=f"{self.id}.", shared=f"{self.owner_id}.", **changes)


def shared(use: Use) -> Use:
    """The node whose modules this one shares, under this one's name."""
    use.check_keys(_SHARE_KEYS)
    known = list(use.scope.blocks)[: list(use.scope.blocks).index(use.name)]
    target = use.name
    block = use.block
    while "share" in block:
        where, target = target, block["share"]
        if not isinstance(target, str) or target not in known:
            raise use.scope.error(where, f"share: no node {shown(target)} above it; {closest(target, known)}", "share")
        block = use.scope.blocks[target]
    merged = Block(use.block.where)
    merged.update({**block, **{key: use.block[key] for key in ("from", "checkpoint") if key in use.block}})
    merged.places = {**block.places, **use.block.places}
    return replace(use, block=merged, owner=target, scope=use.scope.standing_in(use.name, merged))


def checkpointed(use: Use) -> Use:
    """The node, in a part of its own where it is computed again in the backward pass and lies in no such part yet."""
    if "checkpoint" not in use.block:
        return use
    wanted = use.value("checkpoint")
    if not isinstance(wanted, bool):
        raise use.error(f"checkpoint must be true or false, got {wanted!r}", "checkpoint")
    return replace(use, place=replace(use.place, checkpoint=use.id)) if wanted and not use.place.checkpoint else use


def times(use: Use) -> int:
    """How often the node is repeated."""
    times = use.value("repeat")
    if isinstance(times, Formula):
        raise use.error("repeat cannot wait for $classes, which only build is told", "repeat")
    if not isinstance(times, int) or isinstance(times, bool) or not 1 <= times <= MAX_NODES:
        raise use.error(f"repeat must be a whole number from 1 to {MAX_NODES}, got {shown(times)}", "repeat")
    return times


def deeper(use: Use, called: str, kind: str) -> tuple[str, ...]:
    """The templates and networks around the nodes inside this one; an error where it lies in itself, or too deep."""
    stack = (*use.place.stack, called)
    if called in use.place.stack:
        raise use.error(f"{kind} {called!r} uses itself: {' -> '.join(stack)}", kind)
    if len(stack) > MAX_DEPTH:
        raise use.error(f"templates nest deeper than {MAX_DEPTH}", kind)
    return stack


def taken(use: Use, what: str, inputs: tuple[str, ...], sources: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """What the inputs of a template or a network stand for; an error where there are more or fewer sources."""
    if len(inputs) != len(sources):
        count = "one input" if len(inputs) == 1 else f"{len(inputs)} inputs ({', '.join(inputs)})"
        raise use.error(f"{what} takes {count}, got {len(sources)}", "from")
    return {name: (source,) for name, source in zip(inputs, sources, strict=True)}
