"""What can be measured on one image without knowing what it shows: image in, numbers out.

Luma is that of ITU-R BT.601 (OpenCV's RGB2GRAY), on the scale 0–1. A grey image and the same image as RGB measure the same.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from math import log2, pi, sqrt
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from deepcv.images import UInt8Array

FloatArray = NDArray[np.float32]

_SHARPNESS_SIDE = 64  # every image is brought to this square before its Laplacian, so that sizes compare
_HASH_SIDE, _HASH_FREQUENCIES = 32, slice(1, 9)
_NOISE_MASK = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)  # blind to steps and slopes along the axes
_LEVELS = np.arange(256.0)
_PIXELS_AT_ONCE = 2**14  # what is computed on the way stays in the cache
_FLAT = 1e-3  # DCT coefficients of luma 0–255 below this are rounding: a flat image has one hash, not a random one


class Measures(NamedTuple):
    """Numbers about one image; none depends on how the file was encoded, as long as the pixels are the same.

    brightness      mean luma, 0–1
    contrast        standard deviation of luma, 0–0.5
    sharpness       variance of the Laplacian of luma at 64×64 pixels, >= 0: low is blurred (Pech-Pacheco et al. 2000)
    noise           luma of what is finer than edges at the image's own pixels, >= 0: strong compression removes it (Immerkær 1996)
    entropy         of luma's histogram of 256 levels, 0–8 bits
    saturation      mean of HSV's S, 0–1; 0 where grey
    red_minus_blue  mean of R minus mean of B, -1–1: its sign turns when the channel order does
    phash           64 bits of which near-duplicates share most, see `hash_distance` (Zauner 2010)
    """

    brightness: float
    contrast: float
    sharpness: float
    noise: float
    entropy: float
    saturation: float
    red_minus_blue: float
    phash: int


def measure(image_hwc: UInt8Array) -> Measures:
    """Measure one image, uint8 (height, width, 1 or 3: RGB), of any size from 1×1."""
    return measure_all([image_hwc])[0]


def measure_all(images: Sequence[UInt8Array]) -> list[Measures]:
    """Measure images as `measure` does, bit for bit; small ones of one shape share calls, which saves a quarter of the time."""
    alike: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for place, image_hwc in enumerate(images):
        alike[image_hwc.shape].append(place)
    found: dict[int, Measures] = {}
    for (height, width, _), places in alike.items():
        at_once = max(1, _PIXELS_AT_ONCE // (height * width))
        for start in range(0, len(places), at_once):
            part = places[start : start + at_once]
            found |= zip(part, _measure_alike(np.stack([images[place] for place in part])), strict=True)
    return [found[place] for place in range(len(images))]


def _measure_alike(images_nhwc: UInt8Array) -> list[Measures]:
    """Measure images of one shape. They stand below each other where OpenCV looks at each pixel or row by itself."""
    count, height, width, channels = images_nhwc.shape
    rows = images_nhwc.reshape(count * height, width, channels)
    luma_nhw = images_nhwc[..., 0]
    saturation, red_minus_blue = [0.0] * count, [0.0] * count
    if channels == 3:
        luma_nhw = cv2.cvtColor(rows, cv2.COLOR_RGB2GRAY).reshape(count, height, width)
        hsv_nhwc = cv2.cvtColor(rows, cv2.COLOR_RGB2HSV).reshape(images_nhwc.shape)
        saturation = [cv2.mean(hsv_hwc)[1] for hsv_hwc in hsv_nhwc]
        red_minus_blue = [red - blue for red, _, blue, _ in map(cv2.mean, images_nhwc)]
    # Not 8 bits from here on: their rounding would show as detail in an enlarged small image.
    fine_nhw = luma_nhw.astype(np.float32)
    counts = _histograms(luma_nhw)
    mean = counts @ _LEVELS * (1 / (height * width))  # sums of whole numbers, exact; then as cv2.meanStdDev rounds
    deviation = np.sqrt(np.maximum(counts @ _LEVELS**2 * (1 / (height * width)) - mean * mean, 0))
    return [
        Measures(*values)
        for values in zip(
            (mean / 255).tolist(), (deviation / 255).tolist(), _sharpness(fine_nhw), _noise(luma_nhw),
            _entropy(counts, height * width), (value / 255 for value in saturation),
            (value / 255 for value in red_minus_blue), _phash(fine_nhw), strict=True,
        )
    ]  # fmt: skip


def hash_distance(one: int, other: int) -> int:
    """Count the bits in which two perceptual hashes differ, 0–64; unrelated images differ in about 32."""
    return (one ^ other).bit_count()


def _sharpness(luma_nhw: FloatArray) -> list[float]:
    """Variance of the Laplacian, luma 0–1."""
    squares = np.stack([_to_square(luma, _SHARPNESS_SIDE) for luma in luma_nhw])
    found = []
    for laplacian in _filtered(squares, lambda rows: cv2.Laplacian(rows, cv2.CV_32F)):
        square = cv2.norm(laplacian) ** 2 / laplacian.size
        found.append(max(0.0, float(square - cv2.mean(laplacian)[0] ** 2)) / 255**2)
    return found


def _noise(luma_nhw: UInt8Array) -> list[float]:
    """Standard deviation of the noise, luma 0–1, if there were no texture."""
    differences = _filtered(luma_nhw, lambda rows: cv2.filter2D(rows, cv2.CV_32F, _NOISE_MASK))
    means = (float(cv2.norm(difference, cv2.NORM_L1)) / float(difference.size) for difference in differences)
    return [sqrt(pi / 2) / 6 * mean / 255 for mean in means]


def _filtered(images_nhw: NDArray[Any], kernel: Callable[[NDArray[Any]], FloatArray]) -> FloatArray:
    """Apply a 3×3 filter of OpenCV to each image; rows that mirror its own keep each one from its neighbours."""
    count, height, width = images_nhw.shape
    inside = min(1, height - 1)
    mirrored = np.concatenate(
        [images_nhw[:, inside : inside + 1], images_nhw, images_nhw[:, height - 1 - inside : height - inside]], axis=1
    )
    return kernel(mirrored.reshape(-1, width)).reshape(count, height + 2, width)[:, 1:-1]


def _histograms(luma_nhw: UInt8Array) -> NDArray[np.float64]:
    """How many pixels of each image have each level, (n, 256)."""
    if len(luma_nhw) == 1:  # a large one: eight bytes per pixel would be much
        return np.asarray(cv2.calcHist([luma_nhw[0]], [0], None, [256], [0, 256]), np.float64).reshape(1, 256)
    places = luma_nhw.reshape(len(luma_nhw), -1) + 256 * np.arange(len(luma_nhw))[:, None]
    counts = np.bincount(places.ravel(), minlength=256 * len(luma_nhw))
    return counts.reshape(-1, 256).astype(np.float64)


def _entropy(counts: NDArray[np.float64], pixels: int) -> list[float]:
    logs = np.log2(np.maximum(counts, 1))
    return [max(0.0, log2(pixels) - float(count @ log) / pixels) for count, log in zip(counts, logs, strict=True)]


def _phash(luma_nhw: FloatArray) -> list[int]:
    """DCT hash: which of 64 low frequencies, without the mean, lie above their median."""
    low = np.empty((len(luma_nhw), 64), np.float32)
    for place, luma in enumerate(luma_nhw):
        low[place] = cv2.dct(_to_square(luma, _HASH_SIDE))[_HASH_FREQUENCIES, _HASH_FREQUENCIES].ravel()
    ordered = np.sort(low, axis=1)
    bits = low > ((ordered[:, 31] + ordered[:, 32]) / 2 + _FLAT)[:, None]
    hashes: list[int] = np.packbits(bits, axis=1).view(">u8").ravel().tolist()
    return hashes


def _to_square(luma: FloatArray, side: int) -> FloatArray:
    if luma.shape == (side, side):
        return luma
    interpolation = cv2.INTER_AREA if luma.size > side * side else cv2.INTER_LINEAR
    resized: FloatArray = cv2.resize(luma, (side, side), interpolation=interpolation)
    return resized
