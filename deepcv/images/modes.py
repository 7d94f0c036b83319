"""How an image file stores its pixels: what decoding to 8 bits of grey or RGB hides.

A mode is `grey`, `colour` or `cmyk` with the bits of a level (`grey1`, `colour16`, `colour32f` of floats), or `palette`; then what
else there is:

+alpha     transparency, which decoding drops
+animated  several pictures, of which decoding takes the first; +pages in a TIFF
+dim       more than 8 bits of which the highest are not used: decoded, no level is above 63 (12 bits in 16 give 0–15)
"""

import re
import struct
from collections.abc import Callable
from contextlib import suppress

import cv2
import numpy as np

from deepcv.images import headers
from deepcv.images.codec import UInt8Array

_DIM = 63
_OF_CHANNELS = ("grey{}", "grey{}+alpha", "colour{}", "colour{}+alpha")
_JPEG = {1: "grey8", 3: "colour8", 4: "cmyk8"}
_PNG = {0: "grey{}", 2: "colour{}", 3: "palette", 4: "grey{}+alpha", 6: "colour{}+alpha"}
_TIFF = {0: "grey{}", 1: "grey{}", 2: "colour{}", 3: "palette", 5: "cmyk{}", 6: "colour{}", 8: "colour{}"}
_BITS, _PHOTOMETRIC, _EXTRA_SAMPLES = 258, 262, 338


def read(encoded: bytes, header: headers.Header | None, image_hwc: UInt8Array) -> str:
    """Return the mode of a file that decodes to `image_hwc`, from its header or, where that does not tell, by decoding it as it is."""
    if header and header.bits == 8 and header.components in _JPEG:
        return _JPEG[header.components]  # nearly all files, at no cost
    mode = ""
    for magic, reader in _READERS:
        if magic.match(encoded):
            with suppress(struct.error, IndexError, ValueError, KeyError):
                mode = reader(encoded)
            break
    mode = mode or _as_it_is(encoded) or ("grey8" if image_hwc.shape[2] == 1 else "colour8")
    if mode == "palette" and image_hwc.shape[2] == 1:
        return "grey8"  # which BMP has no other way to store
    bits = re.match(r"[a-z]+(\d+)", mode)
    return f"{mode}+dim" if bits and int(bits[1]) > 8 and image_hwc.max() <= _DIM else mode


def _as_it_is(encoded: bytes) -> str:
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        return ""
    kind = f"{8 * image.itemsize}{'f' if image.dtype.kind == 'f' else ''}"
    mode = _OF_CHANNELS[image.shape[2] - 1 if image.ndim == 3 else 0].format(kind)
    return f"{mode}+animated" if encoded[4:12] == b"ftypavis" else mode


def _png(encoded: bytes) -> str:
    mode = _PNG[encoded[25]].format(encoded[24])
    place, kinds = 8, set()
    while (kind := encoded[place + 4 : place + 8]) != b"IDAT":
        kinds.add(kind)
        place += 12 + struct.unpack_from(">I", encoded, place)[0]
    return mode + "+alpha" * (b"tRNS" in kinds) + "+animated" * (b"acTL" in kinds)


def _gif(encoded: bytes) -> str:
    place = 13 + _gif_colours(encoded[10])
    pictures, alpha = 0, False
    while pictures < 2 and encoded[place] in b"!,":
        if encoded[place] == ord(","):
            pictures += 1
            place += 11 + _gif_colours(encoded[place + 9])
        else:
            alpha |= not pictures and encoded[place + 1] == 0xF9 and encoded[place + 3] & 1 == 1
            place += 2
        while encoded[place]:  # blocks of at most 255 bytes
            place += 1 + encoded[place]
        place += 1
    return "palette" + "+alpha" * alpha + "+animated" * (pictures > 1)


def _gif_colours(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _bmp(encoded: bytes) -> str:
    (size,) = struct.unpack_from("<I", encoded, 14)
    (bits,) = struct.unpack_from("<H", encoded, 24 if size == 12 else 28)
    if bits <= 8:
        return "palette"
    has_mask = bits == 32 and size >= 56 and any(encoded[66:70])
    return "colour8" + "+alpha" * has_mask


def _webp(encoded: bytes) -> str:
    kind = encoded[12:16]
    if kind == b"VP8X":
        return "colour8" + "+alpha" * (encoded[20] >> 4 & 1) + "+animated" * (encoded[20] >> 1 & 1)
    return "colour8" + "+alpha" * (encoded[24] >> 4 & 1 if kind == b"VP8L" else 0)


def _tiff(encoded: bytes) -> str:
    tags = headers.tiff_tags(encoded)
    mode = _TIFF[tags[_PHOTOMETRIC]].format(tags.get(_BITS, 1))
    order = "<" if encoded[:2] == b"II" else ">"
    (first,) = struct.unpack_from(order + "I", encoded, 4)
    (count,) = struct.unpack_from(order + "H", encoded, first)
    (following,) = struct.unpack_from(order + "I", encoded, first + 2 + 12 * count)
    return mode + "+alpha" * (tags.get(_EXTRA_SAMPLES, 0) in (1, 2)) + "+pages" * bool(following)


def _pnm(encoded: bytes) -> str:
    start = re.sub(rb"#[^\n]*\n", b" ", encoded[:4096])
    if start[:2] in (b"P1", b"P4"):
        return "grey1"
    if start[:2] == b"P7":
        depth, most = (int(re.findall(word + rb"\s+(\d+)", start)[0]) for word in (b"DEPTH", b"MAXVAL"))
    else:
        depth = 1 if start[:2] in (b"P2", b"P5") else 3
        most = int(start.split(maxsplit=4)[3])
    return _OF_CHANNELS[depth - 1].format(8 if most < 256 else 16)


_READERS: tuple[tuple[re.Pattern[bytes], Callable[[bytes], str]], ...] = tuple(
    (re.compile(magic, re.DOTALL), reader)
    for magic, reader in (
        (rb"\x89PNG\r\n\x1a\n", _png),
        (rb"GIF8", _gif),
        (rb"BM", _bmp),
        (rb"RIFF.{4}WEBP", _webp),
        (rb"II\*\0|MM\0\*", _tiff),
        (rb"P[1-7]\s", _pnm),
    )
)
