"""Images that are nearly the same: candidates by perceptual hash in less than quadratic time, then a look at their pixels."""

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from deepcv.images import UInt8Array

Pairs = NDArray[np.int64]  # (p, 2): positions of two images, the smaller first

RADIUS = 3  # bits; CIFAR-10 has 112 such pairs, and 179 more at 4 bits, where pictures begin to differ
_BANDS = RADIUS + 1  # two hashes that differ in RADIUS bits are equal in one band at least (Norouzi et al. 2012)
_BITS = 64 // _BANDS
_MAX_COMPARISONS = 1_000_000_000
_MAX_PAIRS = 100_000  # what is compared by pixels
_SIDE = 16
_ALIKE = (
    0.95  # correlation of two 16×16 pictures; half of the pairs at 4 bits and nearly all below reach it on CIFAR-10
)


def candidates(phash: NDArray[np.uint64]) -> tuple[Pairs, str]:
    """Pairs of images whose 64-bit hashes differ in at most RADIUS bits; of equal hashes, each with the first.

    Where very many hashes are alike the search ends early, with 100,000 pairs of as many images as it can. Also returns where it ended;
    nothing where these are all pairs.
    """
    unique, first, which = np.unique(phash, return_index=True, return_inverse=True)
    later = np.flatnonzero(first[which] != np.arange(len(phash)))
    found, number, compared = [np.stack([first[which[later]], later], axis=1)], len(later), 0
    for near, comparisons in (step for band in range(_BANDS) for step in _near(unique, band)):
        found.append(first[near])
        number += len(near)
        compared += comparisons
        if number > _MAX_PAIRS or compared > _MAX_COMPARISONS:
            break
    pairs = np.sort(np.concatenate(found).astype(np.int64), axis=1)[:_MAX_PAIRS]
    ended = f"{_MAX_PAIRS} pairs of nearly equal hashes" if number > _MAX_PAIRS else ""
    ended = ended or (f"{_MAX_COMPARISONS} comparisons of hashes" if compared > _MAX_COMPARISONS else "")
    return np.unique(pairs, axis=0) if len(pairs) else pairs, ended


def picture(image_hwc: UInt8Array) -> NDArray[np.float32]:
    """Luma at 16×16, (256,), centred and of length 1: brightness and contrast do not count."""
    luma = cv2.cvtColor(image_hwc, cv2.COLOR_RGB2GRAY) if image_hwc.shape[2] == 3 else image_hwc[:, :, 0]
    small = cv2.resize(luma.astype(np.float32), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).ravel()
    small -= small.mean()
    unit: NDArray[np.float32] = small / max(1e-6, float(np.linalg.norm(small)))
    return unit


def alike(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    """Whether two pictures show the same."""
    return float(one @ other) >= _ALIKE


def _near(hashes: NDArray[np.uint64], band: int) -> Iterator[tuple[Pairs, int]]:
    """Compare hashes that are equal in this band: each with its next in sorted order, then the one after, and so on.

    Yields, after each such step, the pairs that are near and equal in no band before, and how many were compared.
    """
    keys = _in_band(hashes, band)
    order = np.argsort(keys, kind="stable")
    keys, hashes = keys[order], hashes[order]
    live = np.arange(len(keys))
    for step in range(1, len(keys)):
        live = live[live < len(keys) - step]
        live = live[keys[live] == keys[live + step]]
        if not len(live):
            return
        differ = hashes[live] ^ hashes[live + step]
        new = np.flatnonzero(np.bitwise_count(differ) <= RADIUS)
        for before in range(band):
            new = new[_in_band(differ[new], before) != 0]
        near = live[new]
        yield np.stack([order[near], order[near + step]], axis=1), len(live)


def _in_band(hashes: NDArray[np.uint64], band: int) -> NDArray[np.uint64]:
    return (hashes >> np.uint64(_BITS * band)) & np.uint64(2**_BITS - 1)
