"""Where the boxes of a drawn graph go: layers from top to bottom, after Sugiyama, Tagawa and Toda 1981."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

WIDTH, HEIGHT = 190, 54  # of a box; a box may have a height of its own
_GAP_X, _GAP_Y = 22, 30
_LANE = 14  # width that a link takes where it passes a layer
_SWEEPS = 12
_BENT = 0.005  # how much less a link that passes layers pulls its ends than a straight one

Point = tuple[float, float]


@dataclass(frozen=True)
class Layout:
    """Centres of the boxes; for each link (source, target) the points that it goes through; size of the whole.

    `bands` are the heights of the layers by the centres of the boxes in them, which are the highest box's.
    """

    boxes: tuple[Point, ...]
    links: dict[tuple[int, int], tuple[Point, ...]]
    bands: dict[float, float]
    width: float
    height: float


def layered(sources: Sequence[Sequence[int]], heights: Sequence[float] = ()) -> Layout:
    """Lay out a graph without cycles, given each box's sources, which come before it; `heights` are HEIGHT each by default."""
    ranks: list[int] = []
    for own in sources:
        ranks.append(max((ranks[source] + 1 for source in own), default=0))
    count = len(sources)
    layers: list[list[int]] = [[] for _ in range(max(ranks, default=-1) + 1)]
    for box, rank in enumerate(ranks):
        layers[rank].append(box)
    chains: dict[tuple[int, int], list[int]] = {}
    neighbours: dict[int, list[tuple[int, float]]] = {box: [] for box in range(count)}
    lanes = count
    for target, own in enumerate(sources):
        for source in own:
            chain = [source]
            for rank in range(ranks[source] + 1, ranks[target]):
                layers[rank].append(lanes)
                neighbours[lanes] = []
                chain.append(lanes)
                lanes += 1
            chain.append(target)
            chains[source, target] = chain
            for above, below in pairwise(chain):
                pull = _BENT if (above < count) != (below < count) else 1.0
                neighbours[above].append((below, pull))
                neighbours[below].append((above, pull))
    x = _across(layers, neighbours, count)
    low = min((x[box] - _half(box, count) for layer in layers for box in layer), default=0)
    high = max((x[box] + _half(box, count) for layer in layers for box in layer), default=0)
    y: dict[int, float] = {}
    bands: dict[float, float] = {}
    top = 0.0
    for layer in layers:
        band = max((heights[box] for box in layer if box < count), default=HEIGHT) if heights else HEIGHT
        bands[top + band / 2] = band
        y |= dict.fromkeys(layer, top + band / 2)
        top += band + _GAP_Y
    at = {box: (x[box] - low, y[box]) for box in y}
    return Layout(
        boxes=tuple(at[box] for box in range(count)),
        links={link: tuple(at[box] for box in chain) for link, chain in chains.items()},
        bands=bands,
        width=high - low,
        height=max(0, top - _GAP_Y),
    )


def _across(layers: list[list[int]], neighbours: dict[int, list[tuple[int, float]]], count: int) -> dict[int, float]:
    """Each box near the mean of its neighbours: the order within a layer first, then the distances."""
    x: dict[int, float] = {}
    for layer in layers:
        _spread(layer, {box: float(place) for place, box in enumerate(layer)}, x, count)
    rank_of = {box: rank for rank, layer in enumerate(layers) for box in layer}
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        for layer in layers if down else reversed(layers):
            wanted = {}
            for box in layer:
                beside = [
                    (x[other], pull) for other, pull in neighbours[box] if (rank_of[other] < rank_of[box]) == down
                ]
                weight = sum(pull for _, pull in beside)
                wanted[box] = sum(place * pull for place, pull in beside) / weight if weight else x[box]
            if sweep < _SWEEPS // 2:
                layer.sort(key=lambda box, to=wanted: (to[box], box >= count))  # type: ignore[misc]
            _spread(layer, wanted, x, count)
    return x


def _spread(layer: Sequence[int], wanted: dict[int, float], x: dict[int, float], count: int) -> None:
    """Keep the order and the distances, and be as near to the wanted places as one push to the right and one back allow."""
    edge = float("-inf")
    for box in layer:
        x[box] = max(wanted[box], edge + _half(box, count))
        edge = x[box] + _half(box, count) + _GAP_X
    weights = {box: 1.0 if box < count else _BENT for box in layer}  # rather bend a link than shift a box
    shift = sum(weights[box] * (x[box] - wanted[box]) for box in layer) / sum(weights.values())
    for box in layer:
        x[box] -= shift


def _half(box: int, count: int) -> float:
    return (WIDTH if box < count else _LANE) / 2
