"""Do the labels of similar images agree? Cheap features, nearest neighbours, one statistical test; no model is trained."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from deepcv.images import UInt8Array

FloatArray = NDArray[np.float32]

NEIGHBOURS = 10
GROUP = 500  # images that are compared with each other
_GALLERY = 5000
_SURE = 8  # so many of the neighbours share one class, and none has the image's own
_SIDE, _CELLS, _ORIENTATIONS = 32, 4, 8
_COLOUR = 0.5  # length of the colours beside gradients of length 1
_AT_ONCE = 1000
_BLOCK = 64  # images whose gradients stay in the cache: half of the time of 1000
_STRIDE = 16  # columns of which the largest value is looked at first


@dataclass(frozen=True)
class Agreement:
    """For each image: the share of neighbours with its label, 0–1 (NaN: too few images); what they say where they contradict it."""

    share: FloatArray
    contradicted_by: NDArray[np.object_]


def sample(sha256: "pd.Series[str]", size: int, seed: int) -> NDArray[np.int64]:
    """Positions of `size` images in random order; the draw depends on content and seed alone, not on names or labels."""
    ranks = pd.util.hash_array(sha256.to_numpy(dtype=object), hash_key=f"{seed:016d}"[-16:], categorize=False)
    return np.argsort(ranks, kind="stable")[:size]


def describe(images: Sequence[UInt8Array]) -> FloatArray:
    """Features of images uint8 (height, width, 1 or 3), float32 (n, 176): gradients in cells (Dalal and Triggs 2005), colours."""
    return np.concatenate([_describe(images[start : start + _BLOCK]) for start in range(0, len(images), _BLOCK)])


def _describe(images: Sequence[UInt8Array]) -> FloatArray:
    colours = np.stack([_colours(image) for image in images])
    luma = np.stack([_luma(image) for image in images])
    down, across = np.gradient(luma, axis=(1, 2))
    length = np.hypot(down, across)
    angle = np.arctan2(down, across)
    angle[np.abs(angle) == np.float32(np.pi)] = 0
    # As `angle % np.pi` and `turn % 1` are to the last bit, in a tenth of the time.
    turn = np.where(angle < 0, angle + np.float32(np.pi), angle) / np.float32(np.pi) * np.float32(_ORIENTATIONS)
    whole = np.floor(turn)
    part = turn - whole
    rows, columns = np.divmod(np.arange(_SIDE * _SIDE), _SIDE)
    cell = (rows * _CELLS // _SIDE * _CELLS + columns * _CELLS // _SIDE).reshape(_SIDE, _SIDE)
    place = (np.arange(len(images))[:, None, None] * _CELLS**2 + cell) * _ORIENTATIONS
    size = len(images) * _CELLS**2 * _ORIENTATIONS
    low = whole.astype(np.int64) % _ORIENTATIONS
    cells = np.bincount((place + low).ravel(), (length * (1 - part)).ravel(), size)
    cells += np.bincount((place + (low + 1) % _ORIENTATIONS).ravel(), (length * part).ravel(), size)
    gradients = np.sqrt(cells.reshape(len(images), -1))  # the root: no single edge decides
    gradients /= np.maximum(1e-6, np.linalg.norm(gradients, axis=1, keepdims=True))
    return np.concatenate([gradients, _COLOUR * colours], axis=1).astype(np.float32)


def agree(features_nf: FloatArray, labels: "pd.Series[str]") -> Agreement:
    """Compare each image's label with those of its 10 nearest neighbours (cosine after centring).

    Neighbours are looked for within groups of consecutive rows, which must be in random order: some images are neighbours
    of very many, so that only groups without a common image are independent samples. A rest below 11 images is left out.
    """
    number, names = pd.factorize(labels, sort=True)
    share = np.full(len(number), np.nan, np.float32)
    contradicted = np.full(len(number), "", object)
    for rows in _blocks(len(number), GROUP):
        share[rows] = (number[_nearest(features_nf[rows]) + rows.start] == number[rows, None]).mean(axis=1)
    for rows in _blocks(len(number), _GALLERY):  # contradicted by more images, with more right
        theirs = np.sort(number[_nearest(features_nf[rows]) + rows.start], axis=1)
        leading = theirs[:, NEIGHBOURS // 2]  # a class with 8 of 10 sorted votes holds the middle one
        sure = (theirs == leading[:, None]).sum(axis=1) >= _SURE
        none_is_own = (theirs != number[rows, None]).all(axis=1)
        contradicted[rows] = np.where(sure & none_is_own, np.asarray(names, object)[leading], "")
    return Agreement(share, contradicted)


def p_value(reference: FloatArray, new: FloatArray) -> float:
    """Chance that the groups' mean agreement is this much lower although labels are as good as the reference's.

    Takes the shares of `agree` in its order; Welch's test on the means of groups, one-sided. NaN below two groups a side.
    """
    from scipy import stats  # slow to import, and needed with a reference alone

    means = [
        np.array([np.nanmean(share[rows]) for rows in _blocks(len(share), GROUP)], np.float64)
        for share in (new, reference)
    ]
    if min(map(len, means)) < 2:
        return float("nan")
    if all(np.ptp(side) == 0 for side in means):
        return 1.0 if means[0][0] >= means[1][0] else 0.0
    return float(stats.ttest_ind(*means, equal_var=False, alternative="less").pvalue)


def _blocks(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        if min(size, count - start) > NEIGHBOURS:
            yield slice(start, min(count, start + size))


def _nearest(features_nf: FloatArray) -> NDArray[np.int64]:
    """Positions of the 10 nearest neighbours, (n, 10), in no order; n > 10."""
    centred = features_nf - features_nf.mean(axis=0)
    centred /= np.maximum(1e-6, np.linalg.norm(centred, axis=1, keepdims=True))

    def of_rows(start: int) -> NDArray[np.int64]:
        likeness = centred[start : start + _AT_ONCE] @ centred.T
        rows = np.arange(len(likeness))
        likeness[rows, start + rows] = -2  # an image is not its own neighbour
        return _largest(likeness)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # numpy sorts without Python's lock
        return np.concatenate(list(pool.map(of_rows, range(0, len(centred), _AT_ONCE))))


def _largest(values: FloatArray) -> NDArray[np.int64]:
    """Columns of the 10 largest values of each row, (rows, 10), in no order; of equal ones any.

    They lie in the 10 strides with the largest maxima, which leaves a few columns to partition instead of thousands.
    """
    rows, columns = values.shape
    strides = columns // _STRIDE
    if strides <= NEIGHBOURS:
        return np.argpartition(values, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS:]
    maxima = values[:, : strides * _STRIDE].reshape(rows, _STRIDE, strides).max(axis=1)
    best = np.argpartition(maxima, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS:]
    kept = (best[:, None, :] + strides * np.arange(_STRIDE)[:, None]).reshape(rows, -1)
    rest = np.broadcast_to(np.arange(strides * _STRIDE, columns), (rows, columns - strides * _STRIDE))
    kept = np.concatenate([kept, rest], axis=1)
    chosen = np.argpartition(np.take_along_axis(values, kept, axis=1), -NEIGHBOURS, axis=1)[:, -NEIGHBOURS:]
    return np.take_along_axis(kept, chosen, axis=1)


def _luma(image: UInt8Array) -> FloatArray:
    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.shape[2] == 3 else image[:, :, 0]
    shrinks = luma.size > _SIDE * _SIDE
    small = cv2.resize(luma, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(small, np.float32)


def _colours(image: UInt8Array) -> FloatArray:
    colour = image if image.shape[2] == 3 else np.repeat(image, 3, axis=2)
    lab = cv2.cvtColor(cv2.resize(colour, (_CELLS, _CELLS), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2LAB)
    colours: FloatArray = ((np.asarray(lab, np.float32).ravel() - 128) / 255).astype(np.float32)
    return colours
