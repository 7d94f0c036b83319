"""The gallery as one HTML page that needs no other file and no network."""

from collections.abc import Iterator
from html import escape
from pathlib import Path

from deepcv.data.gallery import ClassRow, Extreme, Gallery, Histogram, Shown, amount, counted, headline
from deepcv.data.markup import picture, visible
from deepcv.files import write_text

_WIDTH, _HEIGHT = 320, 110  # of a histogram, in its own units

# The policy forbids what the escaping should already prevent: a script or an address from an image's or a class's name.
_HEAD = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Gallery</title>
<style>
:root { color-scheme: light dark; --bar: #4477aa; --quiet: #8888; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
h3 { font-size: .9rem; margin: 0 0 .3rem; } h3 .quiet { font-weight: 400; margin-left: .3rem; }
.quiet { opacity: .68; } p { margin: .2rem 0; }
table { border-collapse: collapse; width: 100%; } tr { border-top: 1px solid var(--quiet); }
th, td { padding: .35rem .6rem .35rem 0; text-align: left; font-weight: 400; vertical-align: middle; }
th[scope=row] { font-weight: 600; overflow-wrap: anywhere; min-width: 7rem; max-width: 14rem; }
.count { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; padding-right: 1rem; }
.share { background: var(--bar); border-radius: 2px; height: 6px; min-width: 1px; }
.row { display: flex; flex-wrap: wrap; gap: 4px; } td .row { align-items: center; }
img, .blank { width: 72px; height: 72px; object-fit: contain; border-radius: 5px; background: #8882; image-rendering: pixelated; }
.blank { display: inline-block; font-size: .65rem; line-height: 72px; text-align: center; }
.plots, .ends { display: grid; gap: 1.2rem 1.6rem; grid-template-columns: repeat(auto-fill, minmax(290px, 1fr)); }
.ends { grid-template-columns: repeat(auto-fill, minmax(500px, 1fr)); }
svg { display: block; width: 100%; height: auto; } rect { fill: var(--bar); } path { stroke: var(--quiet); }
text { fill: currentColor; font-size: 11px; opacity: .68; }
figure { margin: 0; width: 80px; } figcaption { font-size: .68rem; line-height: 1.25; overflow-wrap: anywhere; }
b.out { color: #b45309; }
@media (max-width: 34rem) { .ends { grid-template-columns: 1fr; } }
</style>
</head>
<body>
"""


def write(path: Path, gallery: Gallery) -> None:
    """Write the page, whole or not at all."""
    write_text(path, _HEAD + "\n".join(_body(gallery)) + "\n</body>\n</html>\n")


def _body(gallery: Gallery) -> Iterator[str]:
    yield f'<h1>{_text(gallery.name)}</h1><p class="quiet">{_text(headline(gallery))}</p>'
    yield "<h2>Classes</h2>"
    yield from _classes(gallery)
    yield '<h2>Distributions</h2><div class="plots">'
    yield from (_histogram(one) for one in gallery.histograms)
    yield "</div><h2>Furthest out</h2>"
    yield '<p class="quiet">The images at the ends of each measure; most are no mistake. Numbers are rows of the manifest.</p>'
    yield '<div class="ends">'
    yield from (_extreme(one) for one in gallery.extremes)
    yield "</div>" if gallery.extremes else '</div><p class="quiet">none: the images do not differ in any measure</p>'


def _classes(gallery: Gallery) -> Iterator[str]:
    splits = [split for split, count in gallery.by_split.items() if count]
    largest = max((row.images for row in gallery.classes), default=0)
    heads = "".join(f'<th class="count quiet">{_text(split)}</th>' for split in splits)
    yield f'<table><tr><th></th><th class="count quiet">images</th>{heads}<th></th></tr>'
    yield from (_class(row, splits, largest) for row in gallery.classes)
    yield "</table>"
    if gallery.classes_left_out:
        yield (
            f'<p class="quiet">The largest and the smallest classes; '
            f"{counted(gallery.classes_left_out, 'class', 'classes')} between them not shown.</p>"
        )


def _class(row: ClassRow, splits: list[str], largest: int) -> str:
    counts = "".join(f'<td class="count quiet">{row.by_split[split]:,}</td>' for split in splits)
    share = 100 * row.images / max(1, largest)
    out = f'<br><b class="out">{row.quarantined:,} quarantined</b>' if row.quarantined else ""
    more = row.images - row.quarantined - len(row.examples)
    rest = f'<span class="quiet" title="not shown">+{more:,}</span>' if more else ""
    pictures = "".join(_image(shown) for shown in row.examples)
    return (
        f'<tr><th scope="row">{_text(row.label)}<div class="share" style="width:{share:.1f}%"></div></th>'
        f'<td class="count">{row.images:,}{out}</td>{counts}<td><div class="row">{pictures}{rest}</div></td></tr>'
    )


def _histogram(one: Histogram) -> str:
    """Draw a histogram as inline SVG."""
    title = "file size" if one.name == "bytes" else one.name
    told = f"median {amount(one.median, one.unit)}" if one.counts.any() else "no image has it"
    told += f" · {counted(one.missing, 'image')} without" if one.missing and one.counts.any() else ""
    return (
        f'<div><h3>{_text(title)} <span class="quiet">{_text(told)}</span></h3>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + 16}" role="img">{"".join(_bars(one))}</svg></div>'
    )


def _bars(one: Histogram) -> Iterator[str]:
    across, free = one.bars
    width, top = _WIDTH / across, max(1, int(one.counts.max()))
    for place, count in enumerate(one.counts.tolist()):
        height = max(1.5, _HEIGHT * count / top)  # so that a single image is seen
        said = f"{amount(one.edges[place], one.unit)} to {amount(one.edges[place + 1], one.unit)}: {counted(count, 'image')}"
        if count:
            yield (
                f'<rect x="{(free + place) * width:.1f}" y="{_HEIGHT - height:.1f}" width="{max(1, width - 1):.1f}" '
                f'height="{height:.1f}"><title>{said}</title></rect>'
            )
    yield f'<path d="M0 {_HEIGHT}H{_WIDTH}"/>'
    if one.lowest == one.highest:
        yield f'<text x="{_WIDTH / 2:g}" y="{_HEIGHT + 13}" text-anchor="middle">{amount(one.lowest, one.unit)}</text>'
    elif one.counts.any():
        yield f'<text x="0" y="{_HEIGHT + 13}">{amount(one.lowest, one.unit)}</text>'
        yield f'<text x="{_WIDTH}" y="{_HEIGHT + 13}" text-anchor="end">{amount(one.highest, one.unit)}</text>'


def _extreme(end: Extreme) -> str:
    figures = "".join(
        f"<figure>{_image(shown)}<figcaption><b>{amount(value)}</b><br>#{shown.number} · {_text(shown.label)}<br>"
        f'<span class="quiet">{_text(shown.name)}</span>{_out(shown)}</figcaption></figure>'
        for shown, value in end.images
    )
    about = f"{end.measure}, median {amount(end.median)}"
    return f'<div><h3>{end.title} <span class="quiet">{about}</span></h3><div class="row">{figures}</div></div>'


def _out(shown: Shown) -> str:
    return '<br><b class="out">quarantined</b>' if shown.quarantined else ""


def _image(shown: Shown) -> str:
    title = f"{visible(shown.name)} · {shown.width}×{shown.height} · {visible(shown.split)}"
    if shown.thumbnail_hwc is None:
        return f'<span class="blank quiet" title="{escape(title)}">unreadable</span>'
    return picture(shown.thumbnail_hwc, title=title)


def _text(name: str) -> str:
    return escape(visible(name))
