import numpy as np
import pytest

from deepcv.data.duplicates import RADIUS, alike, candidates, picture
from deepcv.data.samples import DataError


def test_candidates_are_all_pairs_within_the_radius() -> None:
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64, 300, np.uint64)
    for row, bits in enumerate([1, 2, 3, 4, 0], start=100):
        hashes[row] = hashes[row - 100] ^ np.uint64(sum(1 << int(bit) for bit in random.permutation(64)[:bits]))
    distance = np.bitwise_count(hashes[:, None] ^ hashes)
    expected = {(int(a), int(b)) for a, b in np.argwhere(distance <= RADIUS) if a < b}
    assert {tuple(pair) for pair in candidates(hashes).tolist()} == expected
    assert len(expected) == 4


def test_equal_hashes_are_paired_with_the_first() -> None:
    assert candidates(np.full(4, 7, np.uint64)).tolist() == [[0, 1], [0, 2], [0, 3]]
    assert candidates(np.empty(0, np.uint64)).shape == (0, 2)


def test_a_quadratic_search_is_refused() -> None:
    with pytest.raises(DataError, match="comparisons, more than"):
        candidates(np.arange(60_000, dtype=np.uint64))


def test_alike_ignores_brightness_and_not_content() -> None:
    image = np.random.default_rng(0).integers(0, 200, (32, 32, 3)).astype(np.uint8)
    assert alike(picture(image), picture((image // 2 + 60).astype(np.uint8)))
    assert not alike(picture(image), picture(image[::-1].copy()))
