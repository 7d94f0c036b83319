"""The graph as SVG that a page holds itself."""

from collections.abc import Iterator, Sequence
from html import escape

from deepcv.profiling.amounts import milliseconds, shape_of, short
from deepcv.profiling.blocks import Block
from deepcv.profiling.layout import HEIGHT, WIDTH, Point, layered

_MARGIN = 4
_LETTERS = 23  # of a name that fit into a box
_SMALL_LETTERS = 33


def draw(rows: Sequence[Block]) -> str:
    """Boxes from top to bottom with a bar for each box's share of the MACs; details as tooltips."""
    laid = layered([row.sources for row in rows])
    most = max((row.macs for row in rows), default=0) or 1
    width, height = laid.width + 2 * _MARGIN, laid.height + 2 * _MARGIN
    return (
        f'<svg class="graph" viewBox="{-_MARGIN} {-_MARGIN} {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" '
        f'role="img">{"".join(_links(laid.links))}'
        f"{''.join(_box(row, at, row.macs / most) for row, at in zip(rows, laid.boxes, strict=True))}</svg>"
    )


def _links(links: dict[tuple[int, int], tuple[Point, ...]]) -> Iterator[str]:
    """A curve from the bottom of a box to the top of another, straight down past the layers between."""
    for points in links.values():
        x, y = points[0]
        path = f"M{x:.1f} {y + HEIGHT / 2:.1f}"
        y += HEIGHT / 2
        for place, (to_x, to_y) in enumerate(points[1:], start=2):
            top = to_y - HEIGHT / 2
            bend = (y + top) / 2
            path += f"C{x:.1f} {bend:.1f} {to_x:.1f} {bend:.1f} {to_x:.1f} {top:.1f}"
            x, y = to_x, top
            if place < len(points):
                y = to_y + HEIGHT / 2
                path += f"V{y:.1f}"
        yield f'<path d="{path}"/>'


def _box(row: Block, at: Point, share: float) -> str:
    left, top = at[0] - WIDTH / 2, at[1] - HEIGHT / 2
    figures = [f"{short(row.macs)} MACs"] if row.macs else []
    figures += [f"{short(row.parameters)} parameters"] if row.parameters else []
    told = [row.name, row.kinds, shape_of(row.shape), *figures, f"receptive field {row.field or 'unknown'}"]
    told += [milliseconds(row.seconds)] if row.seconds else []
    bar = f'<rect class="bar" x="{left + 1:.1f}" y="{top + HEIGHT - 5:.1f}" width="{share * (WIDTH - 2):.1f}" height="4"/>'
    return (
        f"<g><title>{escape(chr(10).join(told))}</title>"
        f'<rect class="box" x="{left:.1f}" y="{top:.1f}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>{bar if share else ""}'
        f'<text class="name" x="{at[0]:.1f}" y="{top + 15:.1f}">{_fit(row.name, _LETTERS)}</text>'
        f'<text x="{at[0]:.1f}" y="{top + 29:.1f}">{_fit(row.kinds, _SMALL_LETTERS)}</text>'
        f'<text class="shape" x="{at[0]:.1f}" y="{top + 43:.1f}">{_fit(shape_of(row.shape), _SMALL_LETTERS)}</text></g>'
    )


def _fit(text: str, letters: int) -> str:
    return escape(text if len(text) <= letters else f"…{text[1 - letters :]}")
