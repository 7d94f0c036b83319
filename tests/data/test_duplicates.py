import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from deepcv.data import duplicates, manifest, packing
from deepcv.data.duplicates import RADIUS, alike, candidates, picture
from deepcv.data.expectations import Verdict, judge
from deepcv.data.findings import Limits, look
from deepcv.data.inspection import inspect
from deepcv.data.samples import Sample
from deepcv.data.splits import SplitRule


def test_candidates_are_all_pairs_within_the_radius() -> None:
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64, 300, np.uint64)
    for row, bits in enumerate([1, 2, 3, 4, 0], start=100):
        hashes[row] = hashes[row - 100] ^ np.uint64(sum(1 << int(bit) for bit in random.permutation(64)[:bits]))
    distance = np.bitwise_count(hashes[:, None] ^ hashes)
    expected = {(int(a), int(b)) for a, b in np.argwhere(distance <= RADIUS) if a < b}
    pairs, ended = candidates(hashes)
    assert {tuple(pair) for pair in pairs.tolist()} == expected
    assert ended == ""
    assert len(expected) == 4


def test_equal_hashes_are_paired_with_the_first() -> None:
    assert candidates(np.full(4, 7, np.uint64))[0].tolist() == [[0, 1], [0, 2], [0, 3]]
    assert candidates(np.empty(0, np.uint64))[0].shape == (0, 2)


@pytest.mark.parametrize(
    ("hashes", "images"), [(np.arange(60_000), 55_000), (np.arange(150_000) // 3, 99_999), (np.zeros(150_000), 100_000)]
)
def test_of_too_many_pairs_those_of_many_images_are_given(hashes: np.ndarray, images: int) -> None:
    pairs, ended = candidates(hashes.astype(np.uint64))
    assert ended == "100000 pairs of nearly equal hashes"
    assert len(np.unique(pairs, axis=0)) == len(pairs) == 100_000
    assert len(np.unique(pairs[:, 1])) >= images
    assert (pairs[:, 0] < pairs[:, 1]).all()
    near = hashes.astype(np.uint64)[pairs]
    assert (np.bitwise_count(near[:, 0] ^ near[:, 1]) <= RADIUS).all()


def test_a_quadratic_search_ends_with_what_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**48, 3000, np.uint64)  # equal in one band, as of pictures with one border
    hashes[1] = hashes[0] ^ np.uint64(1)
    assert [found if isinstance(found, str) else found.tolist() for found in candidates(hashes)] == [[[0, 1]], ""]
    monkeypatch.setattr(duplicates, "_MAX_COMPARISONS", 1_000_000)
    pairs, ended = candidates(hashes)
    assert ended == "1000000 comparisons of hashes"
    assert pairs.tolist() == [[0, 1]]


@pytest.mark.parametrize("severity", ["fail", "warn"])
def test_very_many_near_duplicates_are_told_and_not_let_pass(
    severity: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    files = [cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60 + n])[1].tobytes() for n in range(40)]
    samples = [Sample(f"{n}.jpg", None, "ab"[n % 2], file) for n, file in enumerate(files)]
    packing.pack(samples, ("a", "b"), tmp_path, name="video", source="tar", rule=SplitRule(0.2, 0.2, 0))
    rows, info = manifest.read(tmp_path)
    limits = Limits(10, 2, 2.0, 4, 100, 0.1, max_near_duplicate_share=1, max_near_leaks=1000)
    severities = {"near_duplicates": severity, "near_leakage": "warn"}

    def verdict() -> Verdict:
        looked = inspect(tmp_path, rows, size=0, seed=0, min_contrast=0.005)
        found = look(rows, info.classes, limits, looked)
        assert "near_duplicates" not in found.skipped
        return judge(rows, info.classes, limits, found, severities)

    assert (verdict().failures, verdict().warnings) == ((), ())  # all found, and as many are allowed
    monkeypatch.setattr(duplicates, "_MAX_PAIRS", 20)
    told = (*verdict().failures, *verdict().warnings)
    assert told[0] == (
        "near_duplicates_cut_short is 1, expected at most 0 (at least 20 of 40 images nearly repeat another one; "
        "the search ended at 20 pairs of nearly equal hashes)"
    )
    assert re.match(
        r"near_leaks_cut_short is 1, .*\(at least \d+ pairs lie in two splits; the search ended at 20", told[1]
    )
    assert verdict().success == (severity == "warn")


def test_alike_ignores_brightness_and_not_content() -> None:
    image = np.random.default_rng(0).integers(0, 200, (32, 32, 3)).astype(np.uint8)
    assert alike(picture(image), picture((image // 2 + 60).astype(np.uint8)))
    assert not alike(picture(image), picture(image[::-1].copy()))
