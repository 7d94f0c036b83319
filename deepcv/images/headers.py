"""What an image file says of its size, read from its first bytes: nothing is decoded, no memory is asked for."""

import re
import struct
from collections.abc import Callable
from typing import NamedTuple

_EXIF_ORIENTATION = 0x0112
_TURNED = range(5, 9)  # EXIF orientations that swap width and height


class Header(NamedTuple):
    """The size of the upright image, in pixels; of a JPEG the bits of a level and how many of these a pixel has."""

    width: int
    height: int
    is_jpeg: bool = False
    bits: int = 0
    components: int = 0


def read(encoded: bytes) -> Header | None:
    """Return the header of a JPEG, PNG, GIF, BMP, WebP, TIFF, PNM, JPEG 2000 or AVIF file; None for what it cannot tell."""
    start = encoded[:32]
    try:
        for magic, reader in _READERS:
            if magic.match(start):
                return reader(encoded)
    except (struct.error, IndexError, ValueError, KeyError):
        return None  # shorter than its own header, or damaged: the decoder says so
    return None


def is_known(encoded: bytes) -> bool:
    """Whether the first bytes are those of an image format that `read` knows, whatever follows."""
    return any(magic.match(encoded[:32]) for magic, _ in _READERS)


def _jpeg(encoded: bytes) -> Header | None:
    place, turned = 2, False
    while True:
        while encoded[place + 1] == 0xFF:  # fill bytes
            place += 1
        marker = encoded[place + 1]
        if encoded[place] != 0xFF or marker == 0xDA:  # the scan begins and no size came before it
            return None
        (length,) = struct.unpack_from(">H", encoded, place + 2)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits, height, width, components = struct.unpack_from(">BHHB", encoded, place + 4)
            return Header(*((height, width) if turned else (width, height)), True, bits, components)
        if marker == 0xE1 and encoded[place + 4 : place + 10] == b"Exif\0\0":
            tags = tiff_tags(encoded[place + 10 : place + 2 + length])
            turned = tags.get(_EXIF_ORIENTATION, 1) in _TURNED
        place += 2 + length


def tiff_tags(tiff: bytes) -> dict[int, int]:
    """Return the first number of each tag of 16 or 32 bits in a TIFF file's first directory; damaged ones hold none."""
    order = "<" if tiff[:2] == b"II" else ">"
    tags: dict[int, int] = {}
    try:
        (place,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, place)
        for entry in range(place + 2, place + 2 + 12 * count, 12):
            tag, kind, numbers = struct.unpack_from(order + "HHI", tiff, entry)
            if kind in (3, 4):
                size, layout = (2, "H") if kind == 3 else (4, "I")
                at = entry + 8 if numbers * size <= 4 else struct.unpack_from(order + "I", tiff, entry + 8)[0]
                if at + size <= len(tiff):
                    (tags[tag],) = struct.unpack_from(order + layout, tiff, at)
    except struct.error:
        pass
    return tags


def _tiff(encoded: bytes) -> Header:
    tags = tiff_tags(encoded)
    return Header(tags[256], tags[257])


def _webp(encoded: bytes) -> Header | None:
    kind = encoded[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(encoded[place : place + 3], "little") + 1 for place in (24, 27))
        return Header(width, height)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", encoded, 21)
        return Header((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    width, height = struct.unpack_from("<HH", encoded, 26)
    return Header(width & 0x3FFF, height & 0x3FFF)


def _bmp(encoded: bytes) -> Header:
    (size,) = struct.unpack_from("<I", encoded, 14)
    width, height = struct.unpack_from("<HH" if size == 12 else "<ii", encoded, 18)
    return Header(abs(width), abs(height))  # rows from top to bottom have a negative height


def _pnm(encoded: bytes) -> Header | None:
    start = re.sub(rb"#[^\n]*\n", b" ", encoded[:4096])
    if found := re.match(rb"P[1-6]\s+(\d+)\s+(\d+)\s", start):
        return Header(int(found[1]), int(found[2]))
    width, height = (re.search(word + rb"\s+(\d+)", start) for word in (b"WIDTH", b"HEIGHT"))
    return Header(int(width[1]), int(height[1])) if width and height else None


def _jpeg_2000(encoded: bytes) -> Header | None:
    start = encoded[:4096]
    if (place := start.find(b"\xff\x4f\xff\x51")) >= 0:  # the code stream's own words; a box may claim less
        right, lower, left, upper = struct.unpack_from(">IIII", start, place + 8)
        return Header(right - left, lower - upper)
    return None


def _avif(encoded: bytes) -> Header | None:
    start = encoded[:4096]
    sizes = [struct.unpack_from(">II", start, found.end() + 4) for found in re.finditer(b"ispe", start)]
    return Header(*max(sizes, key=lambda size: size[0] * size[1])) if sizes else None


def _fixed(layout: str, place: int) -> Callable[[bytes], Header]:
    return lambda encoded: Header(*struct.unpack_from(layout, encoded, place))


_READERS: tuple[tuple[re.Pattern[bytes], Callable[[bytes], Header | None]], ...] = tuple(
    (re.compile(magic, re.DOTALL), reader)
    for magic, reader in (
        (rb"\xff\xd8\xff", _jpeg),
        (rb"\x89PNG\r\n\x1a\n", _fixed(">II", 16)),
        (rb"GIF8", _fixed("<HH", 6)),
        (rb"BM", _bmp),
        (rb"RIFF.{4}WEBP", _webp),
        (rb"II\*\0|MM\0\*", _tiff),
        (rb"P[1-7]\s", _pnm),
        (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", _jpeg_2000),
        (rb".{4}ftypavi", _avif),
    )
)
