"""The nodes of a graph as a person reads them: a convolution with its norm and activation is one block."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from deepcv.profiling.observe import NodeProfile, Shape

_BORING = {"getitem", "getattr", "constant"}


@dataclass(frozen=True)
class Block:
    """Neighbouring nodes of one name; `sources` are places of other blocks in the list that holds this one."""

    name: str
    kinds: str
    sources: tuple[int, ...]
    shape: Shape
    parameters: int
    macs: int
    field: str
    made_bytes: int
    live_bytes: int
    seconds: float
    nodes: int


def blocks(
    nodes: Sequence[NodeProfile], seconds: Mapping[str, float] | None = None, depth: int | None = None
) -> list[Block]:
    """Join neighbours of equal id; with `depth`, of equal first parts of it: `res1.first` and `res1.link` are `res1` at 1.

    Every block comes after its sources: only neighbours are joined, so that no cycle can come up. Nodes that give no
    tensor, and constants, are left out.
    """
    seconds = seconds or {}
    shown = [node for node in nodes if node.shape is not None and node.kind != "constant"]
    place: dict[str, set[int]] = {}  # of each node's value, the blocks that it comes from
    found: list[Block] = []
    hidden = {node.name: node.inputs for node in nodes if node not in shown}
    for name, run in groupby(shown, key=_cut(depth)):
        members = list(run)
        here = len(found)
        sources: set[int] = set()
        for member in members:
            sources |= {one for source in member.inputs for one in _origins(source, place, hidden)} - {here}
            place[member.name] = {here}
        last = members[-1]
        found.append(
            Block(
                name=name,
                kinds=_kinds(members),
                sources=tuple(sorted(sources)),
                shape=last.shape or (),
                parameters=sum(member.parameters for member in members),
                macs=sum(member.macs for member in members),
                field="" if last.field is None else str(last.field),
                made_bytes=sum(member.made_bytes for member in members),
                live_bytes=max(member.live_bytes for member in members),
                seconds=sum(seconds.get(member.name, 0.0) for member in members),
                nodes=len(members),
            )
        )
    return found


def overview(nodes: Sequence[NodeProfile], seconds: Mapping[str, float] | None = None, most: int = 40) -> list[Block]:
    """The finest blocks that are at most `most`; else the coarsest."""
    deepest = max((node.id.count(".") + 1 for node in nodes), default=1)
    levels = (blocks(nodes, seconds, depth) for depth in range(deepest, 0, -1))
    return next((level for level in levels if len(level) <= most), blocks(nodes, seconds, 1))


def parts(coarse: Sequence[Block], fine: Sequence[Block]) -> dict[str, list[Block]]:
    """What coarse blocks of several fine ones are made of, by title; what they take from outside comes first.

    Both lists are of the same nodes.
    """
    found: dict[str, list[Block]] = {}
    end = 0
    for block in coarse:
        start, count = end, 0
        while count < block.nodes:
            count += fine[end].nodes
            end += 1
        if end - start > 1:
            title = block.name if block.name not in found else f"{block.name} ({len(found)})"
            found[title] = _part(fine, start, end)
    return found


def _part(rows: Sequence[Block], start: int, end: int) -> list[Block]:
    outside = sorted({source for row in rows[start:end] for source in row.sources if source < start})
    place = {old: new for new, old in enumerate((*outside, *range(start, end)))}
    given = [replace(rows[old], kinds="from outside", sources=(), macs=0, seconds=0.0) for old in outside]
    return [
        *given,
        *(replace(row, sources=tuple(place[source] for source in row.sources)) for row in rows[start:end]),
    ]


def _cut(depth: int | None) -> Callable[[NodeProfile], str]:
    return lambda node: ".".join(node.id.split(".")[:depth])


def _origins(name: str, place: Mapping[str, set[int]], hidden: Mapping[str, tuple[str, ...]]) -> set[int]:
    found: set[int] = set()
    pending, met = [name], set()
    while pending:
        one = pending.pop()
        if one in met:
            continue
        met.add(one)
        found |= place.get(one, set())
        pending += hidden.get(one, ())
    return found


def _kinds(members: Sequence[NodeProfile]) -> str:
    kinds = Counter(member.kind for member in members if member.kind not in _BORING)
    if not kinds:
        return members[0].kind
    if len(kinds) > 3:
        return f"{sum(kinds.values())} layers"
    return " + ".join(f"{count} {kind}" if count > 1 else kind for kind, count in kinds.items())
