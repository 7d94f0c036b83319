"""How an image file becomes the network's input."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import cv2
import numpy as np

from deepcv.images.codec import UInt8Array, check_header, decode_checked, reduction

Resize = Literal["stretch", "pad", "reflect", "crop"]
Denoise = Literal["none", "median", "bilateral", "nlmeans"]
Colour = Literal["rgb", "hsv", "lab"]

_ALWAYS_STORED = ("height", "width", "channels", "resize")
_TILES = (8, 8)


@dataclass(frozen=True)
class ImageRecipe:
    """How an image file becomes the network's input; stored in the shards and in every exported model.

    Steps, in this order: keep the central share `keep` of each side · `resize` · `denoise` · equalise the lightness
    locally up to the contrast limit `clahe` (0: off) · `colour` of 3 channels, on 0–255 each. `reduced` decodes a JPEG at
    1/2, 1/4 or 1/8 where it is shrunk at least as much.
    """

    height: int
    width: int
    channels: Literal[1, 3]
    resize: Resize = "stretch"
    keep: float = 1.0
    denoise: Denoise = "none"
    clahe: float = 0.0
    colour: Colour = "rgb"
    reduced: bool = False

    def stored(self) -> dict[str, Any]:
        """Return the recipe as `ImageRecipe(**stored)` takes it; a step that is off leaves no trace.

        So shards and models that do not use a step keep their bytes and digests when that step is added to DeepCV.
        """
        off = {field.name: field.default for field in fields(self) if field.name not in _ALWAYS_STORED}
        return {name: value for name, value in asdict(self).items() if name not in off or value != off[name]}


def prepare(encoded: bytes, recipe: ImageRecipe) -> UInt8Array:
    """Image file bytes to the network's input, uint8 (recipe.height, recipe.width, recipe.channels). Raises DecodeError."""
    header = check_header(encoded)
    reduce = reduction(_scale(header.height, header.width, recipe)) if recipe.reduced and header else 1
    return fit(decode_checked(encoded, recipe.channels, reduce, header), recipe)


def fit(image_hwc: UInt8Array, recipe: ImageRecipe) -> UInt8Array:
    """Do all steps of the recipe that follow decoding: uint8 (h, w, recipe.channels) to the network's input.

    `stretch` resizes both sides, `pad` and `reflect` fill up with black or with the mirrored image, `crop` takes the centre.
    """
    if recipe.keep != 1:
        image_hwc = _centre(image_hwc, *(max(1, round(side * recipe.keep)) for side in image_hwc.shape[:2]))
    height, width = image_hwc.shape[:2]
    if recipe.resize == "stretch":
        return _colours(_enhance(_resize(image_hwc, recipe.height, recipe.width), recipe), recipe)
    scale = _scale(height, width, recipe, keep=1)
    inner = _resize(image_hwc, max(1, round(height * scale)), max(1, round(width * scale)))
    if recipe.resize == "crop":
        return _colours(_enhance(_centre(inner, recipe.height, recipe.width), recipe), recipe)
    return _colours(_pad(_enhance(inner, recipe), recipe), recipe)


def prepare_crop(encoded: bytes, box: tuple[int, int, int, int], recipe: ImageRecipe) -> UInt8Array:
    """A box of an image file to the network's input: `resized_crop` in place of `keep` and `resize`, then the other steps."""
    image_hwc = resized_crop(encoded, box, recipe.height, recipe.width, recipe.channels)
    return _colours(_enhance(image_hwc, recipe), recipe)


def resized_crop(
    encoded: bytes, box: tuple[int, int, int, int], height: int, width: int, channels: Literal[1, 3] = 3
) -> UInt8Array:
    """Decode a box (top, left, height, width; pixels of the upright image) at a size: uint8 (height, width, channels).

    A JPEG is decoded at 1/2, 1/4 or 1/8 where the box is then still at least height × width; its edges are rounded to
    whole pixels of that. Shrinking by 2 and more averages areas, by less it interpolates linearly. Raises DecodeError.
    """
    reduce = reduction(max(height / box[2], width / box[3]))
    image_hwc = decode_checked(encoded, channels, reduce, header := check_header(encoded))
    if header and header.is_jpeg and reduce > 1:
        bottom, right = round((box[0] + box[2]) / reduce), round((box[1] + box[3]) / reduce)
        box = (round(box[0] / reduce), round(box[1] / reduce), bottom, right)
        box = (box[0], box[1], box[2] - box[0], box[3] - box[1])
    top, left, box_height, box_width = box
    inner = image_hwc[top : top + box_height, left : left + box_width]
    area = max(inner.shape[0] / height, inner.shape[1] / width) >= 2
    # Areas of no whole number of pixels take seven times as long as interpolation, which below 2 leaves no pixel out.
    resized = cv2.resize(inner, (width, height), interpolation=cv2.INTER_AREA if area else cv2.INTER_LINEAR)
    return np.asarray(resized, np.uint8).reshape(height, width, channels)


def _scale(height: int, width: int, recipe: ImageRecipe, keep: float | None = None) -> float:
    """By how much the recipe scales an image of this size; where it stretches, by how much the side that shrinks less."""
    kept = recipe.keep if keep is None else keep
    scales = (recipe.height / (height * kept), recipe.width / (width * kept))
    return min(scales) if recipe.resize in ("pad", "reflect") else max(scales)


def _centre(image_hwc: UInt8Array, height: int, width: int) -> UInt8Array:
    top, left = (image_hwc.shape[0] - height) // 2, (image_hwc.shape[1] - width) // 2
    return image_hwc[top : top + height, left : left + width]


def _pad(inner: UInt8Array, recipe: ImageRecipe) -> UInt8Array:
    top, left = (recipe.height - inner.shape[0]) // 2, (recipe.width - inner.shape[1]) // 2
    bottom, right = recipe.height - inner.shape[0] - top, recipe.width - inner.shape[1] - left
    mode = cv2.BORDER_REFLECT if recipe.resize == "reflect" else cv2.BORDER_CONSTANT
    padded = cv2.copyMakeBorder(inner, top, bottom, left, right, mode, value=(0, 0, 0))
    return np.asarray(padded, np.uint8).reshape(recipe.height, recipe.width, inner.shape[2])


def _enhance(image_hwc: UInt8Array, recipe: ImageRecipe) -> UInt8Array:
    """Denoise and equalise at the network's scale, so that the cost does not grow with the file's size."""
    if recipe.denoise == "none" and not recipe.clahe:
        return image_hwc
    image = np.ascontiguousarray(image_hwc)
    if recipe.denoise == "median":
        image = cv2.medianBlur(image, 3)
    elif recipe.denoise == "bilateral":
        image = cv2.bilateralFilter(image, 5, 30, 5)
    elif recipe.denoise == "nlmeans":
        strength = 5  # of noise to remove, in grey levels
        grey = image_hwc.shape[2] == 1
        image = (
            cv2.fastNlMeansDenoising(image, None, strength)
            if grey
            else cv2.fastNlMeansDenoisingColored(image, None, strength, strength)
        )
    image = np.asarray(image, np.uint8).reshape(image_hwc.shape)
    return _equalise(image, recipe.clahe) if recipe.clahe else image


def _equalise(image_hwc: UInt8Array, limit: float) -> UInt8Array:
    """Contrast-limited adaptive histogram equalisation (Zuiderveld 1994) of the lightness; hues stay."""
    equaliser = cv2.createCLAHE(limit, _TILES)  # one per call: it holds buffers that threads must not share
    if image_hwc.shape[2] == 1:
        return np.asarray(equaliser.apply(image_hwc[:, :, 0]), np.uint8)[:, :, None]
    lab = cv2.cvtColor(image_hwc, cv2.COLOR_RGB2LAB)
    lab[:, :, 0] = equaliser.apply(np.ascontiguousarray(lab[:, :, 0]))
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB), np.uint8)


def _colours(image_hwc: UInt8Array, recipe: ImageRecipe) -> UInt8Array:
    if recipe.colour == "rgb" or recipe.channels == 1:
        return image_hwc
    code = cv2.COLOR_RGB2HSV_FULL if recipe.colour == "hsv" else cv2.COLOR_RGB2LAB
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(image_hwc), code), np.uint8)


def _resize(image_hwc: UInt8Array, height: int, width: int) -> UInt8Array:
    if image_hwc.shape[:2] == (height, width):
        return image_hwc
    shrinks = height * width < image_hwc.shape[0] * image_hwc.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR  # area averages away what small images would alias
    resized: Any = cv2.resize(image_hwc, (width, height), interpolation=interpolation)
    return np.asarray(resized, np.uint8).reshape(height, width, image_hwc.shape[2])
