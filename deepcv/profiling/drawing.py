"""The graph as SVG that a page holds itself."""

from collections.abc import Iterator, Sequence
from html import escape

from deepcv.profiling.amounts import lines_of, milliseconds, shape_of, short
from deepcv.profiling.blocks import Block
from deepcv.profiling.layout import HEIGHT, WIDTH, Layout, Point, layered

_MARGIN = 4
_LETTERS = 22  # of a name that fit into a box
_SMALL_LETTERS = 31
_SHAPE_LETTERS = 29  # figures are wider
_LINE = 14  # height of a line of small letters
_PILL = 26  # height of an output
_SMALLEST = 0.7  # a wide graph shrinks to its place, but no further than this: then it is scrolled


def draw(rows: Sequence[Block]) -> str:
    """Boxes from top to bottom with a bar for each box's share of the MACs, outputs as pills; details as tooltips."""
    outputs = [(place, name) for place, row in enumerate(rows) for name in row.outputs]
    texts = [_lines(row) for row in rows]
    heights = [HEIGHT + _LINE * (len(lines) - 2) for lines in texts] + [_PILL] * len(outputs)
    laid = layered([*(row.sources for row in rows), *([place] for place, _ in outputs)], heights)
    most = max((row.macs for row in rows), default=0) or 1
    width, height = laid.width + 2 * _MARGIN, laid.height + 2 * _MARGIN
    boxes = [
        _box(row, texts[place], laid.boxes[place], heights[place], row.macs / most) for place, row in enumerate(rows)
    ]
    boxes += [_pill(name, at) for (_, name), at in zip(outputs, laid.boxes[len(rows) :], strict=True)]
    return (
        f'<svg class="graph" viewBox="{-_MARGIN} {-_MARGIN} {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" '
        f'style="min-width:{_SMALLEST * width:.0f}px" role="img">{"".join(_links(laid, heights))}{"".join(boxes)}</svg>'
    )


def _links(laid: Layout, heights: Sequence[float]) -> Iterator[str]:
    """A curve from the bottom of a box to the top of another, straight down past the layers between."""
    for (source, target), points in laid.links.items():
        x, y = points[0]
        y += heights[source] / 2
        path = f"M{x:.1f} {y:.1f}"
        for place, (to_x, to_y) in enumerate(points[1:], start=2):
            is_last = place == len(points)
            half = (heights[target] if is_last else laid.bands[to_y]) / 2
            top = to_y - half
            bend = (y + top) / 2
            path += f"C{x:.1f} {bend:.1f} {to_x:.1f} {bend:.1f} {to_x:.1f} {top:.1f}"
            x, y = to_x, top
            if not is_last:
                y = to_y + half
                path += f"V{y:.1f}"
        yield f'<path d="{path}"/>'


def _lines(row: Block) -> list[tuple[str, str]]:
    """What stands under the name, each with its style: the layers, remarks, and the shapes that leave the block."""
    kinds = lines_of(row.kinds.split(" + "), _SMALL_LETTERS, " + ")
    shapes = lines_of((shape_of(shape) for shape in row.shapes or (row.shape,)), _SHAPE_LETTERS)
    return [*((line, "words") for line in (*kinds, *row.remarks)), *((line, "quiet") for line in shapes)]


def _box(row: Block, lines: Sequence[tuple[str, str]], at: Point, height: float, share: float) -> str:
    left, top = at[0] - WIDTH / 2, at[1] - height / 2
    figures = [f"{short(row.macs)} MACs"] if row.macs else []
    figures += [f"{short(row.parameters)} parameters"] if row.parameters else []
    told = [row.name, *(line for line, _ in lines), *figures, f"receptive field {row.field or 'unknown'}"]
    told += [milliseconds(row.seconds)] if row.seconds else []
    bar = f'<rect class="bar" x="{left + 1:.1f}" y="{top + height - 5:.1f}" width="{share * (WIDTH - 2):.1f}" height="4"/>'
    words = ""
    for place, (line, kind) in enumerate(lines):
        y = top + 29 + place * _LINE
        words += f'<text class="{kind}" x="{at[0]:.1f}" y="{y:.1f}">{_fit(line, _SMALL_LETTERS)}</text>'
    kind = "idle" if row.is_idle else "runs"
    return (
        f'<g class="{kind}"><title>{escape(chr(10).join(told))}</title>'
        f'<rect class="box" x="{left:.1f}" y="{top:.1f}" width="{WIDTH}" height="{height}" rx="6"/>{bar if share else ""}'
        f'<text class="name" x="{at[0]:.1f}" y="{top + 15:.1f}">{_fit_name(row.name)}</text>{words}</g>'
    )


def _pill(name: str, at: Point) -> str:
    width = min(WIDTH, 40 + 8 * len(name))
    return (
        f'<g><title>{escape(f"output {name}")}</title><rect class="output" x="{at[0] - width / 2:.1f}" '
        f'y="{at[1] - _PILL / 2:.1f}" width="{width}" height="{_PILL}" rx="{_PILL // 2}"/>'
        f'<text class="name" x="{at[0]:.1f}" y="{at[1] + 4:.1f}">{_fit_name(name)}</text></g>'
    )


def _fit(text: str, letters: int) -> str:
    return escape(text if len(text) <= letters else f"{text[: letters - 1]}…")


def _fit_name(name: str) -> str:
    """A path that is too long gives way in the middle: its first part and its last ones tell most."""
    first, *others = name.split(".")
    tail = ""
    while others and len(f"{first}….{others[-1]}{tail}") <= _LETTERS:
        tail = f".{others.pop()}{tail}"
    if len(name) > _LETTERS:
        name = f"{first}…{tail[1:]}" if tail else f"…{name[1 - _LETTERS :]}"
    return escape(name)
