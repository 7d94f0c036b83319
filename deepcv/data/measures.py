"""What can be measured on one image without knowing what it shows: image in, numbers out.

Luma is that of ITU-R BT.601 (OpenCV's RGB2GRAY), on the scale 0–1. A grey image and the same image as RGB measure the same.
"""

from math import log2, pi, sqrt
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from deepcv.images import UInt8Array

FloatArray = NDArray[np.float32]

_SHARPNESS_SIDE = 64  # every image is brought to this square before its Laplacian, so that sizes compare
_HASH_SIDE, _HASH_FREQUENCIES = 32, slice(1, 9)
_NOISE_MASK = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)  # blind to steps and slopes along the axes
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
    colour = image_hwc.shape[2] == 3
    luma = cv2.cvtColor(image_hwc, cv2.COLOR_RGB2GRAY) if colour else image_hwc[:, :, 0]
    # Not 8 bits from here on: their rounding would show as detail in an enlarged small image.
    fine = luma.astype(np.float32)
    mean, deviation = cv2.meanStdDev(luma)
    red, _, blue, _ = cv2.mean(image_hwc) if colour else (0.0, 0.0, 0.0, 0.0)
    saturation = cv2.mean(cv2.cvtColor(image_hwc, cv2.COLOR_RGB2HSV))[1] if colour else 0.0
    return Measures(
        brightness=float(mean[0, 0]) / 255,
        contrast=float(deviation[0, 0]) / 255,
        sharpness=_sharpness(fine),
        noise=_noise(luma),
        entropy=_entropy(luma),
        saturation=saturation / 255,
        red_minus_blue=(red - blue) / 255,
        phash=_phash(fine),
    )


def hash_distance(one: int, other: int) -> int:
    """Count the bits in which two perceptual hashes differ, 0–64; unrelated images differ in about 32."""
    return (one ^ other).bit_count()


def _sharpness(luma: FloatArray) -> float:
    """Variance of the Laplacian, luma 0–1."""
    laplacian = cv2.Laplacian(_to_square(luma, _SHARPNESS_SIDE), cv2.CV_32F)
    squares = cv2.norm(laplacian) ** 2 / laplacian.size
    return max(0.0, float(squares - cv2.mean(laplacian)[0] ** 2)) / 255**2


def _noise(luma: UInt8Array) -> float:
    """Standard deviation of the noise, luma 0–1, if there were no texture."""
    difference = cv2.filter2D(luma, cv2.CV_32F, _NOISE_MASK)
    mean = float(cv2.norm(difference, cv2.NORM_L1)) / float(difference.size)
    return sqrt(pi / 2) / 6 * mean / 255


def _entropy(luma: UInt8Array) -> float:
    counts = cv2.calcHist([luma], [0], None, [256], [0, 256]).ravel().astype(np.float64)
    return max(0.0, log2(luma.size) - float(counts @ np.log2(np.maximum(counts, 1))) / luma.size)


def _phash(luma: FloatArray) -> int:
    """DCT hash: which of 64 low frequencies, without the mean, lie above their median."""
    low = cv2.dct(_to_square(luma, _HASH_SIDE))[_HASH_FREQUENCIES, _HASH_FREQUENCIES].ravel()
    ordered = np.sort(low)
    bits = low > (ordered[31] + ordered[32]) / 2 + _FLAT
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _to_square(luma: FloatArray, side: int) -> FloatArray:
    if luma.shape == (side, side):
        return luma
    interpolation = cv2.INTER_AREA if luma.size > side * side else cv2.INTER_LINEAR
    resized: FloatArray = cv2.resize(luma, (side, side), interpolation=interpolation)
    return resized
