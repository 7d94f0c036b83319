"""A diff of two datasets as one HTML page with pictures that needs no other file and no network."""

import hashlib
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from deepcv.data.diff import Report, caption, headline, judged
from deepcv.data.markup import picture, thumbnail, visible
from deepcv.data.revisions import Snapshot
from deepcv.data.samples import DataError
from deepcv.files import write_text
from deepcv.images import DecodeError, decode

_IMAGES_PER_SECTION = 48

# The policy forbids what the escaping should already prevent: a script or an address from an image's or a class's name.
_HEAD = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Data diff</title>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
nav a { margin-right: 1rem; }
.images { display: flex; flex-wrap: wrap; gap: .75rem; }
figure { margin: 0; padding: .4rem; border: 1px solid #8886; border-radius: 4px; max-width: 13.5rem; }
figure div { display: flex; gap: .4rem; align-items: center; justify-content: center; }
img { width: 96px; height: 96px; object-fit: contain; image-rendering: pixelated; background: #8882; }
figcaption { font-size: .75rem; overflow-wrap: anywhere; margin-top: .3rem; }
table { border-collapse: collapse; } th, td { padding: .15rem .7rem; text-align: right; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; } tr { border-bottom: 1px solid #8884; }
.differs { font-weight: 600; } .none { opacity: .6; }
</style>
</head>
<body>
"""


def write(path: Path, found: Report, before: Snapshot, after: Snapshot, limit: int = _IMAGES_PER_SECTION) -> None:
    """Write the page, whole or not at all; at most `limit` images per section. Raises DataError where one is damaged."""
    write_text(path, _HEAD + "\n".join(_body(found, before, after, limit)) + "\n</body>\n</html>\n")


def _body(found: Report, before: Snapshot, after: Snapshot, limit: int) -> Iterator[str]:
    sections = found.diff.sections
    yield f"<h1>{escape(headline(found))}</h1>"
    yield from (f"<p>{escape(line)}</p>" for line in judged(found))
    links = (f'<a href="#{key}">{title}: {len(table)}</a>' for key, (title, table) in sections.items())
    yield f'<nav>{"".join(links)}<a href="#balance">class shares</a></nav>'
    for key, (title, table) in sections.items():
        yield f'<h2 id="{key}">{title}: {len(table)}</h2>'
        yield '<div class="images">' if len(table) else '<p class="none">none</p>'
        for row in table.head(limit).itertuples():
            pictures = "".join(_image(*one) for one in _pictures(key, row, before, after))
            yield f"<figure><div>{pictures}</div><figcaption>{escape(caption(key, row))}</figcaption></figure>"
        if len(table):
            yield "</div>"
        if len(table) > limit:
            yield f"<p>and {len(table) - limit} more</p>"
    yield from _shares(found.diff.balance)


def _pictures(key: str, row: Any, before: Snapshot, after: Snapshot) -> Iterator[tuple[str, Snapshot, int, int, str]]:
    """Which pictures show one image of a section: word for it, dataset, offset and size in bytes there, sha256."""
    if key == "removed":
        yield "before", before, row.offset, row.bytes, row.sha256
    elif key == "added":
        yield "after", after, row.offset, row.bytes, row.sha256
    else:
        if key == "changed":
            yield "before", before, row.offset_before, row.bytes_before, row.sha256_before
        yield "after", after, row.offset_after, row.bytes_after, row.sha256_after


def _image(word: str, snapshot: Snapshot, offset: int, size: int, sha256: str) -> str:
    """Return an <img> that holds the picture itself, shrunk to a thumbnail where it is larger."""
    try:
        with snapshot.files["images.bin"].open("rb") as blob:
            blob.seek(offset)
            encoded = blob.read(size)
        image_hwc = decode(encoded)
    except (DecodeError, OSError) as error:
        if isinstance(error, DecodeError) and hashlib.sha256(encoded).hexdigest() == sha256:  # so it came to `ingest`
            return f'<span class="none" title="{escape(f"{word}: {error}")}">unreadable</span>'
        raise DataError(
            f"{snapshot.files['images.bin']}: damaged ({error}); remove it from DVC's cache and run `dvc fetch` or `dvc repro`"
        ) from error
    height, width = image_hwc.shape[:2]
    return picture(thumbnail(image_hwc), title=f"{word}: {width}×{height}", alt=word)


def _shares(balance: pd.DataFrame) -> Iterator[str]:
    yield '<h2 id="balance">Class shares</h2>'
    yield "<table><tr><th>split</th><th>class</th><th>before</th><th></th><th>after</th><th></th></tr>"
    for row in balance.to_dict("records"):
        cells = [str(row["split"]), visible(row["class"])]
        cells += [text for side in ("before", "after") for text in (str(row[side]), f"{row[f'share_{side}']:.2%}")]
        differs = ' class="differs"' if row["before"] != row["after"] else ""
        yield f"<tr{differs}>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
    yield "</table>"
