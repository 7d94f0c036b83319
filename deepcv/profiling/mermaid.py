"""The graph as Mermaid text, which GitHub, GitLab and many editors draw."""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from deepcv.profiling.amounts import shape_of
from deepcv.profiling.blocks import Block

_PLAIN = re.compile(r"[^A-Za-z0-9_.,+×… -]")


def mermaid(rows: Sequence[Block]) -> str:
    """A flowchart from top to bottom; neighbours with the same first part of their names are a subgraph."""
    return "\n".join(("flowchart TD", *_boxes(rows), *_links(rows))) + "\n"


def _boxes(rows: Sequence[Block]) -> Iterator[str]:
    for part, run in groupby(enumerate(rows), key=lambda pair: pair[1].name.partition(".")[0]):
        members = list(run)
        is_group = len(members) > 1
        if is_group:
            yield f'  subgraph g{members[0][0]}["{_safe(part)}"]'
        for place, row in members:
            label = "<br/>".join(_safe(text) for text in (row.name, row.kinds, shape_of(row.shape)))
            yield f'  {"  " if is_group else ""}n{place}["{label}"]'
        if is_group:
            yield "  end"


def _links(rows: Sequence[Block]) -> Iterator[str]:
    for place, row in enumerate(rows):
        yield from (f"  n{source} --> n{place}" for source in row.sources)


def _safe(text: str) -> str:
    """As Mermaid's entity codes, which neither end a label nor become HTML."""
    return _PLAIN.sub(lambda found: f"#{ord(found.group())};", text)
