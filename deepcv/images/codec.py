"""Image files to arrays and back, with OpenCV."""

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from deepcv.images import headers

UInt8Array = NDArray[np.uint8]

Reduction = Literal[1, 2, 4, 8]

# 400 MB as RGB, more than any camera takes. A file of 50 kB may claim more: it is refused before memory is asked for.
MAX_PIXELS = 2**27

# OpenCV reports a damaged file on stderr as well as by its return value; the caller says it better, with the file's name.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

# IMREAD_ANYCOLOR alone keeps grey grey; together with IMREAD_COLOR_RGB it does not.
_COLOURS = {None: cv2.IMREAD_ANYCOLOR, 1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR_RGB}
# The names say grey, the bit says the scale alone: OpenCV has no name for reduced RGB.
_SCALES = {
    1: 0, 2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4, 8: cv2.IMREAD_REDUCED_GRAYSCALE_8
}  # fmt: skip


class DecodeError(ValueError):
    """The bytes are not a whole image of a format that OpenCV reads, or too large a one."""


def decode(encoded: bytes, channels: int | None = None, reduce: Reduction = 1) -> UInt8Array:
    """Decode to uint8 `image_hwc` with 1 or 3 channels; None keeps grey files grey and makes all others RGB.

    EXIF orientation is applied and transparency dropped; of an animation the first frame is taken. `reduce` makes each
    side of a JPEG ceil(side / reduce) pixels long while it is decoded (see `reduction`). Raises DecodeError.
    """
    return decode_checked(encoded, channels, reduce, check_header(encoded))


def check_header(encoded: bytes) -> headers.Header | None:
    """Read the size of the upright image without decoding; None where the format's header is not known.

    Raises DecodeError for an empty file and for an image of more than MAX_PIXELS.
    """
    if not encoded:
        raise DecodeError("the file is empty")
    header = headers.read(encoded)
    if header is not None and header.width * header.height > MAX_PIXELS:
        raise DecodeError(
            f"{header.width} × {header.height} pixels are more than the limit of {MAX_PIXELS // 2**20} × 2²⁰; "
            "scale the image down or cut it into tiles first"
        )
    return header  # of another format OpenCV itself refuses more than 2³⁰ pixels


def decode_checked(
    encoded: bytes, channels: int | None, reduce: Reduction, header: headers.Header | None
) -> UInt8Array:
    """Decode what `check_header` let pass; see `decode`."""
    if reduce != 1 and not (header and header.is_jpeg):
        reduce = 1  # OpenCV would decode another format whole and throw pixels away
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), _COLOURS[channels] | _SCALES[reduce])
    except cv2.error as error:
        raise DecodeError(f"OpenCV cannot decode it: {error.err}") from error
    if image is None:
        raise DecodeError(
            "not a whole image: truncated or damaged"
            if headers.is_known(encoded)
            else f"not an image format that OpenCV reads: it begins with {encoded[:12]!r}"
        )
    if image.ndim == 2:
        image = image[:, :, None]
    elif not channels:  # IMREAD_COLOR_RGB would have made grey files RGB too
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return np.ascontiguousarray(image, dtype=np.uint8)


def reduction(scale: float) -> Reduction:
    """Return the strongest reduction after which an image that is to be scaled by `scale` is still large enough."""
    return 8 if scale <= 1 / 8 else 4 if scale <= 1 / 4 else 2 if scale <= 1 / 2 else 1


def encode_png(image_hwc: UInt8Array) -> bytes:
    """Encode losslessly as PNG."""
    bgr = image_hwc[:, :, ::-1] if image_hwc.shape[2] == 3 else image_hwc
    _, encoded = cv2.imencode(".png", np.ascontiguousarray(bgr))
    return bytes(encoded.tobytes())
