"""The faults that `benchmarks.expectations` puts into CIFAR-10, in images that are drawn here."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.expectations import TELLS, Raw, faults, of, truncated, validate
from deepcv.data.findings import candidate
from deepcv.data.samples import Sample

CLASSES = ("ant", "bee", "cow", "dog")
COUNT = 2400  # four groups of images of which labels are compared


def drawn(count: int) -> list[Sample]:
    """JPEG files of 32×32, warm in colour; each class has a pattern, each image another one of its own beneath."""
    random = np.random.default_rng(0)
    smooth = random.normal(0, 30, (len(CLASSES) + count, 4, 4)).astype(np.float32)
    samples = []
    for number in range(count):
        luma = 110 + sum(
            cv2.resize(pattern, (32, 32), interpolation=cv2.INTER_CUBIC)
            for pattern in (1.5 * smooth[number % len(CLASSES)], smooth[len(CLASSES) + number])
        )
        bgr = np.clip(luma[:, :, None] + random.normal((-30, 0, 20), 4, (32, 32, 3)), 0, 255).astype(np.uint8)
        label = CLASSES[number % len(CLASSES)]
        samples.append(Sample(f"{label}/{number}.jpg", None, label, cv2.imencode(".jpg", bgr)[1].tobytes()))
    return samples


def test_each_fault_is_found_by_its_own_check_and_none_in_clean_images(tmp_path: Path) -> None:
    samples = drawn(COUNT)
    raw = Raw(tmp_path / "raw", samples, CLASSES)
    plain, _, looked = validate(raw, raw.rows, None, size=COUNT)
    reference = candidate(raw.rows, looked)
    clean, _, _ = validate(raw, raw.rows, reference, size=COUNT, seed=1)
    assert (of(plain), of(clean)) == (set(), set())
    tried = {"truncated": truncated(tmp_path / "truncated", samples[:200], CLASSES)[1]}
    for fault, rows in faults(raw):
        tried[fault] = of(validate(raw, rows, reference, size=COUNT if fault == "labels shuffled" else 0)[0])
    missed = [fault for fault, tell in TELLS.items() if tell not in tried[fault]]
    assert not missed, tried


@pytest.mark.parametrize("alone", [True, False])
def test_a_truncated_file_counts_as_found_where_it_alone_is_flagged(alone: bool, tmp_path: Path) -> None:
    samples = drawn(40)
    if not alone:
        samples[5] = samples[5]._replace(encoded=samples[5].encoded[:300])  # a second file that is none
    assert truncated(tmp_path / "t", samples, CLASSES)[1] == ({"unreadable"} if alone else set())
