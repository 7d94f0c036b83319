"""Pieces of HTML pages that need no other file and no network: names from outside, and pictures that the page itself holds."""

import base64
from html import escape

from deepcv.images import ImageRecipe, UInt8Array, encode_png, fit


def visible(text: str) -> str:
    """Return a name as it is where it prints on one line, else with its line breaks and control characters escaped."""
    return text if text.isprintable() else repr(text)


def thumbnail(image_hwc: UInt8Array, side: int = 96) -> UInt8Array:
    """Shrink an image, uint8 (h, w, 1 or 3), to at most `side` pixels a side; a smaller one stays as it is."""
    height, width, channels = image_hwc.shape
    return fit(image_hwc, thumbnail_recipe(height, width, channels, side))


def thumbnail_recipe(height: int, width: int, channels: int, side: int) -> ImageRecipe:
    """Say how `thumbnail` brings an image of this size to its own; large JPEGs may be decoded smaller."""
    scale = min(1.0, side / max(height, width))
    sides = max(1, round(height * scale)), max(1, round(width * scale))
    return ImageRecipe(*sides, 3 if channels == 3 else 1, reduced=True)


def picture(image_hwc: UInt8Array, *, title: str, alt: str = "") -> str:
    """Return an <img> that holds the pixels themselves."""
    inlined = base64.b64encode(encode_png(image_hwc)).decode()
    return f'<img src="data:image/png;base64,{inlined}" alt="{escape(alt)}" title="{escape(title)}">'
