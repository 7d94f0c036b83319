"""What the checks flagged, as one HTML page of thumbnails that needs no other file and no network."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

import pandas as pd

from deepcv.data.findings import Findings
from deepcv.data.manifest import encoded_images
from deepcv.data.markup import picture, thumbnail
from deepcv.files import write_text
from deepcv.images import DecodeError, decode

_IMAGES_PER_CHECK = 48
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Flagged images</title>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1.2rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .3rem; }
.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(128px, 1fr)); gap: 1rem .8rem; }
figure { margin: 0; } figcaption { font-size: .75rem; line-height: 1.3; overflow-wrap: anywhere; }
img { width: 96px; height: 96px; object-fit: contain; background: #8882; border-radius: 6px; image-rendering: pixelated; }
.none { width: 96px; height: 96px; display: grid; place-items: center; border: 1px dashed; border-radius: 6px; font-size: .75rem; }
li { white-space: pre-line; }
.limit { font-size: .8rem; font-weight: 400; margin-left: .8rem; } .label { font-weight: 600; } .id, .quiet { opacity: .65; }
.severity { border-radius: 99px; font-size: .75rem; font-weight: 600; padding: .1rem .6rem; vertical-align: 2px; color: #fff; }
.fail { background: #b91c1c; } .quarantine { background: #a16207; } .warn { background: #475569; }
ul { padding-left: 1.2rem; }
</style>
</head>
<body>
"""


def write(
    path: Path, raw: Path, manifest: pd.DataFrame, findings: Findings, severities: Mapping[str, str],
    outcomes: Mapping[str, Sequence[str]], limits: Mapping[str, tuple[bool, str]], *, name: str,
) -> None:  # fmt: skip
    """Write the page, whole or not at all: outcomes by severity, then up to 48 images of each check that flagged some.

    `limits` says of a check whether it holds, and how it stands to its limit; others allow no image. Raises DataError where data/raw is
    damaged.
    """
    body = "\n".join(_body(raw, manifest, findings, severities, outcomes, limits, name))
    write_text(path, _HEAD + body + "\n</body>\n</html>\n")


def headline(flagged: pd.DataFrame, page: Path) -> str:
    """Say in one line how many images each check flagged, and where to see them."""
    counts = ", ".join(f"{_words(check)} {len(part)}" for check, part in flagged.groupby("check"))
    images = flagged["position"].nunique()
    return f"{images} image{'' if images == 1 else 's'} flagged: {counts} ({page})" if images else "no image flagged"


def _words(check: object) -> str:
    return str(check).replace("_", " ")


def _body(
    raw: Path, manifest: pd.DataFrame, findings: Findings, severities: Mapping[str, str],
    outcomes: Mapping[str, Sequence[str]], limits: Mapping[str, tuple[bool, str]], name: str,
) -> Iterator[str]:  # fmt: skip
    flagged = findings.flagged
    images = flagged["position"].nunique()
    yield f"<h1>{escape(name)}: {images} of {len(manifest)} images flagged</h1>"
    yield '<p class="quiet">Worth a look; most are no mistake. Limits and severities: params.yaml, section validate.</p>'
    for severity, texts in outcomes.items():
        if texts:
            yield f"<h2>{_badge(severity)}</h2><ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>"
    for check, part in flagged.groupby("check", sort=True):
        severity = severities.get(str(check), "fail")
        holds, told = limits.get(str(check), (False, "above the limit of 0 images"))
        told = escape(told if holds else f"{told}: {severity}")
        told = "each is left out" if severity == "quarantine" else told
        total = findings.sampled if check == "label_noise" else len(manifest)
        yield f"<h2>{escape(_words(check))}: {len(part)} of {total}"
        yield f'<span class="quiet limit">{told}</span></h2>'
        yield '<div class="images">'
        shown = part.sort_values("position", kind="stable").head(_IMAGES_PER_CHECK)
        rows = manifest.iloc[shown["position"]]
        for encoded, (_, row), reason in zip(encoded_images(raw, rows), rows.iterrows(), shown["reason"], strict=True):
            yield (
                f'<figure>{_image(encoded)}<figcaption><span class="label">{escape(str(row["label"]))}</span> '
                f"· {escape(str(row['split']))}<br>{escape(reason)}<br>"
                f'<span class="id">{escape(str(row["id"]))}</span></figcaption></figure>'
            )
        yield "</div>"
        if len(part) > len(shown):
            yield f'<p class="quiet">and {len(part) - len(shown)} more</p>'
    if findings.skipped:
        yield "<h2>Not checked</h2><ul>"
        yield from (f"<li>{escape(_words(check))}: {escape(why)}</li>" for check, why in findings.skipped.items())
        yield "</ul>"


def _badge(severity: str) -> str:
    return f'<span class="severity {escape(severity)}">{escape(severity)}</span>'


def _image(encoded: bytes) -> str:
    """Return an <img> that holds the picture itself, shrunk to a thumbnail where it is larger."""
    try:
        image_hwc = decode(encoded)
    except DecodeError:
        return '<span class="none quiet">unreadable</span>'
    height, width = image_hwc.shape[:2]
    return picture(thumbnail(image_hwc), title=f"{width}×{height}")
