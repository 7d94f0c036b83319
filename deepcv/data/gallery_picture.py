"""The gallery as one PNG: examples of the classes above the histograms. Equal input, equal bytes."""

from pathlib import Path

import cv2
import numpy as np

from deepcv.data.gallery import EXAMPLES, SIDE, ClassRow, Gallery, Histogram, amount, counted, headline
from deepcv.data.markup import visible
from deepcv.files import atomic
from deepcv.images import UInt8Array, encode_png

MOST_ROWS = 12  # classes; more would make a picture that no page shows whole
_MARGIN, _GAP, _LABEL = 28, 6, 210  # px
_WIDTH = 2 * _MARGIN + _LABEL + EXAMPLES * (SIDE + _GAP) - _GAP
_PLOT, _ACROSS = 100, 3  # height of a histogram, px; histograms side by side
_INK, _QUIET, _BAR, _GROUND = (30, 33, 39), (110, 115, 122), (68, 119, 170), (238, 240, 243)  # RGB


def write(path: Path, gallery: Gallery) -> None:
    """Write the picture, whole or not at all: RGB, 884 pixels wide, at most 1,400 high."""
    with atomic(path) as aside:
        aside.write_bytes(encode_png(draw(gallery)))


def draw(gallery: Gallery) -> UInt8Array:
    """Draw the picture, uint8 (height, 884, 3: RGB)."""
    rows = gallery.classes[: MOST_ROWS // 2] + gallery.classes[MOST_ROWS // 2 :][-MOST_ROWS // 2 :]
    left_out = len(gallery.classes) + gallery.classes_left_out - len(rows)
    plots = -(-len(gallery.histograms) // _ACROSS)
    top = 92
    below = top + len(rows) * (SIDE + _GAP) + (26 if left_out else 0) + 14
    sheet = np.full((below + plots * (_PLOT + 62) + 8, _WIDTH, 3), 255, np.uint8)
    _write(sheet, visible(gallery.name), (_MARGIN, 46), _WIDTH - 2 * _MARGIN, size=24, weight=600)
    _write(sheet, headline(gallery), (_MARGIN, 72), _WIDTH - 2 * _MARGIN, colour=_QUIET)
    largest = max((row.images for row in rows), default=0)
    for place, row in enumerate(rows):
        _class(sheet, row, top + place * (SIDE + _GAP), largest)
    if left_out:
        told = f"and {counted(left_out, 'more class', 'more classes')}"
        _write(sheet, told, (_MARGIN, below - 20), _WIDTH - 2 * _MARGIN, colour=_QUIET)
    width = (_WIDTH - 2 * _MARGIN - (_ACROSS - 1) * _MARGIN) // _ACROSS
    for place, one in enumerate(gallery.histograms):
        line, column = divmod(place, _ACROSS)
        _histogram(sheet, one, _MARGIN + column * (width + _MARGIN), below + line * (_PLOT + 62), width)
    return sheet


def _class(sheet: UInt8Array, row: ClassRow, top: int, largest: int) -> None:
    room = _LABEL - 16
    _write(sheet, visible(row.label), (_MARGIN, top + 30), room, size=16, weight=600)
    told = counted(row.images, "image") + (f", {row.quarantined:,} quarantined" if row.quarantined else "")
    _write(sheet, told, (_MARGIN, top + 49), room, colour=_QUIET)
    length = round(room * row.images / max(1, largest))
    sheet[top + 58 : top + 62, _MARGIN : _MARGIN + length] = _BAR
    for place, shown in enumerate(row.examples):
        left = _MARGIN + _LABEL + place * (SIDE + _GAP)
        tile = sheet[top : top + SIDE, left : left + SIDE]
        tile[:] = _GROUND
        if shown.thumbnail_hwc is not None:
            _place(tile, shown.thumbnail_hwc)


def _place(tile: UInt8Array, image_hwc: UInt8Array) -> None:
    """Put an image into the middle of a tile, as many whole times its size as fit."""
    times = max(1, SIDE // max(image_hwc.shape[:2]))
    enlarged = image_hwc.repeat(times, axis=0).repeat(times, axis=1)
    height, width = enlarged.shape[:2]
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    tile[top : top + height, left : left + width] = enlarged  # grey is spread over the channels


def _histogram(sheet: UInt8Array, one: Histogram, left: int, top: int, width: int) -> None:
    title = "file size" if one.name == "bytes" else one.name
    end = _write(sheet, title, (left, top + 14), width, size=14, weight=600)
    known = bool(one.counts.any())
    told = f"median {amount(one.median, one.unit)}" if known else "no image has it"
    _write(sheet, told, (end + 10, top + 14), left + width - end - 10, colour=_QUIET)
    floor = top + 26 + _PLOT
    sheet[floor, left : left + width] = _QUIET
    across, free = one.bars
    edges = np.linspace(left, left + width, across + 1).round().astype(int)[free:]
    heights = np.ceil(_PLOT * one.counts / max(1, int(one.counts.max()))).astype(int)  # one image still is a pixel
    for start, stop, height in zip(edges, edges[1:], heights, strict=False):
        sheet[floor - height : floor, start : max(start + 1, stop - 1)] = _BAR
    if one.lowest == one.highest:
        only = amount(one.lowest, one.unit)
        _write(sheet, only, (left + (width - _length(only, 13, 400)) // 2, floor + 18), width, colour=_QUIET)
    elif known:
        lowest, highest = amount(one.lowest, one.unit), amount(one.highest, one.unit)
        _write(sheet, lowest, (left, floor + 18), width, colour=_QUIET)
        _write(sheet, highest, (left + width - _length(highest, 13, 400), floor + 18), width, colour=_QUIET)


def _write(
    sheet: UInt8Array, text: str, place: tuple[int, int], room: int, *, size: int = 13, weight: int = 400,
    colour: tuple[int, int, int] = _INK,
) -> int:  # fmt: skip
    """Write one line, shortened to `room` pixels, its left end at `place` (x, baseline); return where it ends."""
    text = text[:200]
    if _length(text, size, weight) > room:
        while text and _length(f"{text}…", size, weight) > room:
            text = text[:-1]
        text += "…"
    cv2.putText(sheet, text, place, colour, cv2.FontFace("sans"), size, weight)
    return place[0] + _length(text, size, weight)


def _length(text: str, size: int, weight: int) -> int:
    _, _, width, _ = cv2.getTextSize((10_000, 100), text, (0, 0), cv2.FontFace("sans"), size, weight)
    return int(width)
