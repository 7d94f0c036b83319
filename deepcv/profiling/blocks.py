"""The nodes of a graph as a person reads them: a convolution with its norm and activation is one block."""

from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from deepcv.profiling.observe import NodeProfile, Shape

_BORING = {"getitem", "getattr", "constant"}


@dataclass(frozen=True)
class Block:
    """Neighbouring nodes of one name; `sources` are places of other blocks in the list that holds this one.

    `shape` is the last node's; `shapes` are all that other blocks and outputs take, each once. `shares` names the blocks whose
    parameters this one uses instead of its own. MACs are of what runs; of an idle block, those that it would take.
    """

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
    shapes: tuple[Shape, ...] = ()
    shares: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    is_idle: bool = False

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader must know besides the layers: whose weights it uses, and that it does not run."""
        shared = f"{'partly ' if self.parameters else ''}shares {', '.join(self.shares)}"
        return (*((shared,) if self.shares else ()), *(("idle",) if self.is_idle else ()))


def blocks(
    nodes: Sequence[NodeProfile], seconds: Mapping[str, float] | None = None, depth: int | None = None
) -> list[Block]:
    """Join neighbours of equal id; with `depth`, of equal first parts of it: `res1.first` and `res1.link` are `res1` at 1.

    Every block comes after its sources: only neighbours are joined, so that no cycle can come up. Nodes that give no
    tensor, and constants, are left out.
    """
    seconds = seconds or {}
    shown = [node for node in nodes if node.shape is not None and node.kind != "constant"]
    hidden = {node.name: node.inputs for node in nodes if node not in shown}
    place: dict[str, int] = {}  # of each node's value, the block that it comes from
    runs: list[list[NodeProfile]] = []
    sources: list[set[int]] = []
    taken: dict[str, None] = {}  # values that other blocks take
    for _, run in groupby(shown, key=_cut(depth)):
        members = list(run)
        here = len(runs)
        outside = [one for member in members for source in member.inputs for one in _origins(source, place, hidden)]
        place |= dict.fromkeys((member.name for member in members), here)
        taken |= dict.fromkeys(outside)
        sources.append({place[one] for one in outside})
        runs.append(members)
    return [
        _block(members, tuple(sorted(own)), seconds, taken, depth) for members, own in zip(runs, sources, strict=True)
    ]


def _block(
    members: Sequence[NodeProfile], sources: tuple[int, ...], seconds: Mapping[str, float], taken: Container[str],
    depth: int | None,
) -> Block:  # fmt: skip
    last, name = members[-1], _cut(depth)(members[-1])
    running = [member for member in members if not member.is_idle] or members
    given = [
        member.shape for member in members if member.shape is not None and (member.name in taken or member.outputs)
    ]
    owners = dict.fromkeys(_first_parts(member.shares, depth) for member in members if member.shares)
    return Block(
        name=name,
        kinds=_kinds(members),
        sources=sources,
        shape=last.shape or (),
        parameters=sum(member.parameters for member in members),
        macs=sum(member.macs for member in running),
        field="" if last.field is None else str(last.field),
        made_bytes=sum(member.made_bytes for member in running),
        live_bytes=max(member.live_bytes for member in running),
        seconds=sum(seconds.get(member.name, 0.0) for member in members),
        nodes=len(members),
        shapes=tuple(dict.fromkeys(given)) or (last.shape or (),),
        shares=tuple(owner for owner in owners if owner != name),
        outputs=tuple(output for member in members for output in member.outputs),
        is_idle=all(member.is_idle for member in members),
    )


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
    given = [
        replace(rows[old], kinds="from outside", sources=(), macs=0, seconds=0.0, shares=(), outputs=())
        for old in outside
    ]
    return [
        *given,
        *(replace(row, sources=tuple(place[source] for source in row.sources)) for row in rows[start:end]),
    ]


def _cut(depth: int | None) -> Callable[[NodeProfile], str]:
    return lambda node: _first_parts(node.id, depth)


def _first_parts(name: str, depth: int | None) -> str:
    return ".".join(name.split(".")[:depth])


def _origins(name: str, place: Container[str], hidden: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The drawn nodes that a value comes from: itself, or those before a node that is not drawn."""
    found: list[str] = []
    pending, met = [name], set()
    while pending:
        one = pending.pop()
        if one in met:
            continue
        met.add(one)
        found += [one] if one in place else []
        pending += hidden.get(one, ())
    return found


def _kinds(members: Sequence[NodeProfile]) -> str:
    if len(choices := [member.kind for member in members if " of " in member.kind]) == 1 and len(members) > 1:
        return choices[0]  # what a person wants to know of a choice and its candidates
    kinds = Counter(member.kind for member in members if member.kind not in _BORING)
    if not kinds:
        return members[0].kind
    if len(kinds) > 3:
        return f"{sum(kinds.values())} layers"
    return " + ".join(f"{count} {kind}" if count > 1 else kind for kind, count in kinds.items())
