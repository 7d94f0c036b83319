"""Encoded image bytes to arrays: the one decoding and resizing that preparation, serving and evaluation share.

Images are numpy arrays `image_hwc`: uint8, height × width × channels, RGB (3 channels) or grey (1).
"""

from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

UInt8Array = NDArray[np.uint8]
Resize = Literal["stretch", "pad", "crop"]

# OpenCV reports a damaged file on stderr as well as by its return value; the caller says it better, with the file's name.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class DecodeError(ValueError):
    """The bytes are not a whole image of a format that OpenCV reads."""


@dataclass(frozen=True)
class ImageRecipe:
    """How an image file becomes the network's input; stored in the shards and in every exported model."""

    height: int
    width: int
    channels: Literal[1, 3]
    resize: Resize = "stretch"


def decode(encoded: bytes, channels: int | None = None) -> UInt8Array:
    """Decode to uint8 `image_hwc` with 1 or 3 channels; None keeps grey files grey and makes all others RGB.

    EXIF orientation is applied and transparency dropped. Raises DecodeError.
    """
    if not encoded:
        raise DecodeError("the file is empty")
    # IMREAD_ANYCOLOR alone keeps grey grey; together with IMREAD_COLOR_RGB it does not.
    flags = {None: cv2.IMREAD_ANYCOLOR, 1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR_RGB}[channels]
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error as error:
        raise DecodeError(f"OpenCV cannot decode it: {error.err}") from error
    if image is None:
        raise DecodeError("not a whole image: truncated, damaged, or of a format that OpenCV does not read")
    image_hwc = image[:, :, None] if image.ndim == 2 else image if channels else image[:, :, 2::-1]  # BGR to RGB
    return np.ascontiguousarray(image_hwc, dtype=np.uint8)


def fit(image_hwc: UInt8Array, recipe: ImageRecipe) -> UInt8Array:
    """Resize to the recipe's height and width: `stretch` both sides, `pad` with black, or `crop` the centre."""
    height, width = image_hwc.shape[:2]
    if recipe.resize == "stretch":
        return _resize(image_hwc, recipe.height, recipe.width)
    scales = (recipe.height / height, recipe.width / width)
    scale = min(scales) if recipe.resize == "pad" else max(scales)
    inner = _resize(image_hwc, max(1, round(height * scale)), max(1, round(width * scale)))
    if recipe.resize == "pad":
        canvas = np.zeros((recipe.height, recipe.width, image_hwc.shape[2]), np.uint8)
        top, left = (recipe.height - inner.shape[0]) // 2, (recipe.width - inner.shape[1]) // 2
        canvas[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
        return canvas
    top, left = (inner.shape[0] - recipe.height) // 2, (inner.shape[1] - recipe.width) // 2
    return inner[top : top + recipe.height, left : left + recipe.width]


def prepare(encoded: bytes, recipe: ImageRecipe) -> UInt8Array:
    """Image file bytes to the network's input, uint8 (recipe.height, recipe.width, recipe.channels). Raises DecodeError."""
    return fit(decode(encoded, recipe.channels), recipe)


def encode_png(image_hwc: UInt8Array) -> bytes:
    """Encode losslessly as PNG."""
    bgr = image_hwc[:, :, ::-1] if image_hwc.shape[2] == 3 else image_hwc
    _, encoded = cv2.imencode(".png", np.ascontiguousarray(bgr))
    return bytes(encoded.tobytes())


def grid(images_nhwc: UInt8Array, captions: list[tuple[str, ...]], columns: int, tile_side: int = 96) -> UInt8Array:
    """Lay images out as an RGB contact sheet, each under its lines of caption (`images_nhwc` share one size)."""
    line_height, margin = 14, 6
    caption_height = line_height * max((len(lines) for lines in captions), default=0) + margin
    rows = max(1, -(-len(images_nhwc) // columns))  # no image: an empty sheet, which still is a picture
    sheet = np.full((rows * (tile_side + caption_height + margin), columns * (tile_side + margin), 3), 255, np.uint8)
    for position, (image, lines) in enumerate(zip(images_nhwc, captions, strict=True)):
        row, column = divmod(position, columns)
        top, left = row * (tile_side + caption_height + margin), column * (tile_side + margin)
        enlarged = cv2.resize(image, (tile_side, tile_side), interpolation=cv2.INTER_NEAREST)
        sheet[top : top + tile_side, left : left + tile_side] = enlarged.reshape(tile_side, tile_side, -1)
        for number, line in enumerate(lines, start=1):
            place = (left + 2, top + tile_side + number * line_height - 2)
            cv2.putText(sheet, line[:16], place, cv2.FONT_HERSHEY_SIMPLEX, 0.35, (0, 0, 0), 1, cv2.LINE_AA)
    return sheet


def _resize(image_hwc: UInt8Array, height: int, width: int) -> UInt8Array:
    if image_hwc.shape[:2] == (height, width):
        return image_hwc
    shrinks = height * width < image_hwc.shape[0] * image_hwc.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR  # area averages away what small images would alias
    resized: Any = cv2.resize(image_hwc, (width, height), interpolation=interpolation)
    return np.asarray(resized, np.uint8).reshape(height, width, image_hwc.shape[2])
