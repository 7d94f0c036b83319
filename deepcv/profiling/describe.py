"""A network as text for a terminal."""

from collections.abc import Iterator, Sequence

from torch import fx

from deepcv.profiling.amounts import milliseconds, rate, shape_of, short
from deepcv.profiling.blocks import Block, blocks
from deepcv.profiling.observe import Shape, macs_of, observe, peak_bytes_of
from deepcv.profiling.report import Profile

_HEAD = ("node", "layers", "shape", "parameters", "MACs", "field", "memory")
_LEFT = 3  # columns of words; the others are figures
_NARROWEST = 12


def describe(network: fx.GraphModule, *shapes: Shape, width: int = 110) -> str:
    """A table with a row for each node of the network file: output shape, parameters, MACs, receptive field and memory.

    For one image; `shapes` as in `observe`. Memory is what the node's values take, in total the most alive at once.
    """
    nodes = observe(network, *shapes)
    rows = blocks(nodes)
    parameters = sum(p.numel() for p in network.parameters())
    return table(rows, parameters, macs_of(nodes), peak_bytes_of(nodes), width=width)


def table(rows: Sequence[Block], parameters: int, macs: int, peak_bytes: int, width: int = 110) -> str:
    """The rows and their totals, at most `width` wide; names that do not fit end in …"""
    lines = [
        (
            row.name, "; ".join((*row.remarks, row.kinds)), shape_of(row.shape), f"{row.parameters:,}" if row.parameters else "",
            short(row.macs) if row.macs else "", row.field, short(row.made_bytes, "B") if row.made_bytes else "",
        )
        for row in rows
    ]  # fmt: skip
    total = ("total", "", "", f"{parameters:,}", short(macs), "", f"peak {short(peak_bytes, 'B')}")
    sizes = [max(len(line[column]) for line in (_HEAD, *lines, total)) for column in range(len(_HEAD))]
    spare = width - sum(sizes) - 2 * (len(sizes) - 1)
    for column in (1, 0):  # the layers give way first
        given = min(max(0, -spare), max(0, sizes[column] - _NARROWEST))
        sizes[column] -= given
        spare += given
    rule = "─" * (sum(sizes) + 2 * (len(sizes) - 1))
    return "\n".join((_line(_HEAD, sizes), rule, *(_line(line, sizes) for line in lines), rule, _line(total, sizes)))


def _line(cells: Sequence[str], sizes: Sequence[int]) -> str:
    fitted = [cell if len(cell) <= size else f"{cell[: size - 1]}…" for cell, size in zip(cells, sizes, strict=True)]
    padded = (
        cell.ljust(size) if column < _LEFT else cell.rjust(size)
        for column, (cell, size) in enumerate(zip(fitted, sizes, strict=True))
    )
    return "  ".join(padded).rstrip()


def as_text(found: Profile, width: int = 110) -> str:
    """The table, then what the other counters say and the times."""
    node_s = found.timings[0].node_s if found.timings else {}
    rows = blocks(found.nodes, node_s)
    text = table(rows, found.parameters, found.macs, found.peak_bytes, width)
    return "\n".join((text, "", *facts(found), *slowest(found, rows)))


def facts(found: Profile) -> Iterator[str]:
    """A sentence for each figure of the whole network."""
    yield f"{found.name}, one image of {', '.join(map(shape_of, found.shapes))}; 1 MAC = one multiply-add"
    yield f"weights {short(found.weight_bytes, 'B')}; values {short(found.peak_bytes, 'B')} at most at once; " + (
        f"training keeps {short(found.training_bytes, 'B')} more for each image of a batch"
    )
    for one in found.opinions:
        said = f"{one.parameters:,} parameters, " if one.parameters is not None else ""
        said += (
            f"{short(one.macs)} MACs ({(one.macs - found.macs) / max(1, found.macs):+.1%})"
            if one.macs is not None
            else ""
        )
        names = one.disagrees(found.parameters, found.macs)
        mark = f"DISAGREES on {' and '.join(names)}: " if names else ""
        yield f"{one.counter}: {mark}{'; '.join(part for part in (said, one.told) if part)}"
    for time in found.timings:
        yield (
            f"{time.device}, {time.threads} thread{'s' if time.threads > 1 else ''}, batch {time.batch}: "
            f"{milliseconds(time.latency_s)} (median of {time.repeats}, {milliseconds(time.fastest_s)} to "
            f"{milliseconds(time.slowest_s)}), {rate(time.images_per_s)} images/s"
        )


def slowest(found: Profile, rows: Sequence[Block], most: int = 5) -> Iterator[str]:
    """The nodes that take longest on the first device."""
    total = sum(row.seconds for row in rows)
    if total:
        first = sorted(rows, key=lambda row: row.seconds, reverse=True)[:most]
        told = (f"{row.name} {milliseconds(row.seconds)} ({row.seconds / total:.0%})" for row in first)
        yield f"slowest nodes on {found.timings[0].device}: {', '.join(told)}"
