"""The graph as Mermaid text, which GitHub, GitLab and many editors draw."""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from deepcv.profiling.amounts import shape_of
from deepcv.profiling.blocks import Block

_PLAIN = re.compile(r"[^A-Za-z0-9_.,+×… -]")


def mermaid(rows: Sequence[Block]) -> str:
    """A flowchart from top to bottom; neighbours with the same first part of their names are a subgraph, outputs are pills."""
    return "\n".join(("flowchart TD", *_boxes(rows), *_links(rows), *_idle(rows))) + "\n"


def _boxes(rows: Sequence[Block]) -> Iterator[str]:
    for part, run in groupby(enumerate(rows), key=lambda pair: pair[1].name.partition(".")[0]):
        members = list(run)
        is_group = len(members) > 1
        if is_group:
            yield f'  subgraph g{members[0][0]}["{_safe(part)}"]'
        for place, row in members:
            label = "<br/>".join(_safe(text) for text in _lines(row))
            yield f'  {"  " if is_group else ""}n{place}["{label}"]'
        if is_group:
            yield "  end"


def _links(rows: Sequence[Block]) -> Iterator[str]:
    for place, row in enumerate(rows):
        yield from (f"  n{source} --> n{place}" for source in row.sources)
    outputs = ((place, name) for place, row in enumerate(rows) for name in row.outputs)
    yield from (f'  n{place} --> o{count}(["{_safe(name)}"])' for count, (place, name) in enumerate(outputs))


def _idle(rows: Sequence[Block]) -> Iterator[str]:
    """Dashes around what does not run."""
    if idle := [f"n{place}" for place, row in enumerate(rows) if row.is_idle]:
        yield "  classDef idle stroke-dasharray: 4 4"
        yield f"  class {','.join(idle)} idle"


def _lines(row: Block) -> Iterator[str]:
    yield from (row.name, row.kinds, *row.remarks)
    yield ", ".join(shape_of(shape) for shape in row.shapes or (row.shape,))


def _safe(text: str) -> str:
    """As Mermaid's entity codes, which neither end a label nor become HTML."""
    return _PLAIN.sub(lambda found: f"#{ord(found.group())};", text)
