"""A profile as one HTML page that needs no other file and no network."""

from collections.abc import Iterator, Sequence
from html import escape

from deepcv.profiling.amounts import milliseconds, rate, shape_of, short
from deepcv.profiling.blocks import Block, blocks, overview, parts
from deepcv.profiling.drawing import draw
from deepcv.profiling.mermaid import mermaid
from deepcv.profiling.report import Profile

# The policy forbids what the escaping should already prevent: a script or an address from a name.
_HEAD = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Network profile</title>
<style>
:root { color-scheme: light dark; --bar: #4477aa; --time: #cc8844; --quiet: #8888; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
.quiet { opacity: .68; } p { margin: .2rem 0; } summary { cursor: pointer; margin: .6rem 0; }
.cards { display: flex; flex-wrap: wrap; gap: .7rem; margin: 1.2rem 0; }
.cards div { border: 1px solid var(--quiet); border-radius: 8px; padding: .5rem .9rem; min-width: 7.5rem; }
.cards b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; } .broad { margin-inline: min(0px, calc(50% - 48vw)); }
table { border-collapse: collapse; width: 100%; font-size: .87rem; } tr { border-top: 1px solid var(--quiet); }
th, td { padding: .22rem .8rem .22rem 0; text-align: left; font-weight: 400; } thead tr { border: 0; }
th[scope=row] { font-weight: 600; overflow-wrap: anywhere; min-width: 9rem; }
.counters th[scope=row] { white-space: nowrap; } tfoot th, tfoot td { font-weight: 600; }
.figure { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.share { width: 9rem; } .share span { display: block; height: 6px; border-radius: 2px; background: var(--bar); margin: 2px 0; }
.share .time { background: var(--time); }
.key { display: inline-block; width: .8rem; height: .5rem; border-radius: 2px; background: var(--bar); }
.key.time { background: var(--time); margin-left: .8rem; }
b.out { color: #b45309; }
svg.graph { display: block; margin: 0 auto; max-width: 100%; height: auto; }
.graph path { fill: none; stroke: currentColor; stroke-opacity: .45; stroke-width: 1.3; }
.graph .box { fill: #8882; stroke: var(--quiet); } .graph .bar { fill: var(--bar); }
.graph .output { fill: none; stroke: currentColor; stroke-opacity: .6; } .graph .idle .box { fill: none; stroke-dasharray: 4; }
.graph text { fill: currentColor; font-size: 10.5px; text-anchor: middle; } .graph .name { font-size: 12.5px; font-weight: 600; }
.graph .quiet { opacity: .68; }
pre { font-size: .8rem; overflow-x: auto; border: 1px solid var(--quiet); border-radius: 8px; padding: .7rem; }
</style>
</head>
<body>
"""


def html(found: Profile) -> str:
    """The whole page."""
    return _HEAD + "\n".join(_body(found)) + "\n</body>\n</html>\n"


def _body(found: Profile) -> Iterator[str]:
    seconds = found.timings[0].node_s if found.timings else {}
    rows, fewer = blocks(found.nodes, seconds), overview(found.nodes, seconds)
    shapes = ", ".join(map(shape_of, found.shapes))
    yield f'<h1>{escape(found.name)}</h1><p class="quiet">one image of {escape(shapes)}; 1 MAC = one multiply-add</p>'
    yield from _cards(found)
    yield from (f'<p><b class="out">{escape(sentence)}</b></p>' for sentence in found.disagreements)
    dashed = " Dashed: not run." if any(row.is_idle for row in rows) else ""
    yield '<h2>Graph</h2><p class="quiet">Bars: share of the largest box\'s MACs. Pills: outputs.'
    yield f"{dashed} Point at a box for its figures.</p>"
    yield f'<div class="wide broad">{draw(fewer)}</div>'
    for title, inner in parts(fewer, rows).items():
        yield f"<details><summary>Inside {escape(title)}</summary>"
        yield f'<div class="wide broad">{draw(inner)}</div></details>'
    yield from _nodes(found, rows)
    yield from _times(found)
    yield from _opinions(found)
    yield f"<details><summary>Graph as Mermaid text</summary><pre>{escape(mermaid(rows))}</pre></details>"


def _cards(found: Profile) -> Iterator[str]:
    cards = [
        (f"{found.parameters:,}", "parameters"),
        (short(found.macs), "MACs"),
        (short(found.weight_bytes, "B"), "weights and buffers"),
        (short(found.peak_bytes, "B"), "values alive at most"),
        (short(found.training_bytes, "B"), "kept per training image"),
    ]
    for time in found.timings:
        threads = f", {time.threads} thread{'s' if time.threads > 1 else ''}" if time.device == "cpu" else ""
        cards.append((f"{rate(time.images_per_s)} images/s", f"{time.device}{threads}, batch {time.batch}"))
    yield '<div class="cards">'
    yield from (
        f'<div><b>{escape(figure)}</b><span class="quiet">{escape(word)}</span></div>' for figure, word in cards
    )
    yield "</div>"


def _nodes(found: Profile, rows: Sequence[Block]) -> Iterator[str]:
    total_s = sum(row.seconds for row in rows)
    most_macs, most_s = (
        max(values, default=0) for values in zip(*((row.macs, row.seconds) for row in rows), strict=True)
    )
    timed = f'<span class="key time"></span> time on {escape(found.timings[0].device)}' if total_s else ""
    yield f'<h2>Nodes</h2><p class="quiet"><span class="key"></span> MACs {timed}</p><div class="wide"><table><thead><tr>'
    heads = ("shape", "parameters", "MACs", "receptive field", "memory made", "alive", "time" if total_s else "")
    yield '<th class="quiet">node</th><th class="quiet">layers</th>'
    yield "".join(f'<th class="figure quiet">{head}</th>' for head in heads) + "<th></th></tr></thead><tbody>"
    for row in rows:
        cells = (
            shape_of(row.shape), f"{row.parameters:,}" if row.parameters else "", short(row.macs) if row.macs else "",
            row.field or "?", short(row.made_bytes, "B") if row.made_bytes else "", short(row.live_bytes, "B"),
            milliseconds(row.seconds) if row.seconds else "",
        )  # fmt: skip
        layers = "; ".join((*row.remarks, row.kinds))
        yield (
            f'<tr><th scope="row">{escape(row.name)}</th><td class="quiet">{escape(layers)}</td>{_figures(cells)}'
            f'<td class="share">{_bar(row.macs, most_macs, "")}{_bar(row.seconds, most_s, "time")}</td></tr>'
        )
    totals = (
        "", f"{found.parameters:,}", short(found.macs), "", "", f"{short(found.peak_bytes, 'B')}",
        milliseconds(total_s) if total_s else "",
    )  # fmt: skip
    yield f'</tbody><tfoot><tr><th scope="row">total</th><td></td>{_figures(totals)}<td></td></tr></tfoot></table></div>'


def _times(found: Profile) -> Iterator[str]:
    if not found.timings:
        return
    yield '<h2>Time</h2><div class="wide"><table><thead><tr><th class="quiet">device</th>'
    heads = ("threads", "batch", "median", "fastest", "slowest", "repeats", "images/s")
    yield "".join(f'<th class="figure quiet">{head}</th>' for head in heads) + "</tr></thead>"
    for time in found.timings:
        cells = (
            str(time.threads), str(time.batch), milliseconds(time.latency_s), milliseconds(time.fastest_s),
            milliseconds(time.slowest_s), str(time.repeats), rate(time.images_per_s),
        )  # fmt: skip
        yield f'<tr><th scope="row">{escape(time.device)}</th>{_figures(cells)}</tr>'
    yield "</table></div>"


def _opinions(found: Profile) -> Iterator[str]:
    yield '<h2>Other counters</h2><div class="wide"><table class="counters"><thead><tr><th class="quiet">counter</th>'
    yield "".join(f'<th class="figure quiet">{head}</th>' for head in ("parameters", "MACs", "difference"))
    yield '<th class="quiet">why</th></tr></thead>'
    for one in found.opinions:
        away = "" if one.macs is None else f"{(one.macs - found.macs) / max(1, found.macs):+.2%}"
        cells = (
            "" if one.parameters is None else f"{one.parameters:,}", "" if one.macs is None else short(one.macs), away,
        )  # fmt: skip
        out = '<b class="out">disagrees</b> · ' if one.disagrees(found.parameters, found.macs) else ""
        yield f'<tr><th scope="row">{escape(one.counter)}</th>{_figures(cells)}<td>{out}{escape(one.told)}</td></tr>'
    yield "</table></div>"


def _figures(cells: Sequence[str]) -> str:
    return "".join(f'<td class="figure">{escape(cell)}</td>' for cell in cells)


def _bar(part: float, whole: float, kind: str) -> str:
    return f'<span class="{kind}" style="width:{100 * part / whole:.1f}%"></span>' if part and whole else ""
