"""The images that `validate` tells the later stages to leave out."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np

from deepcv.data import manifest
from deepcv.data.samples import DataError
from deepcv.task import CLASSIFICATION, Task

Counts = Counter[tuple[str, str]]  # images of each (split, label)


def read(path: Path) -> frozenset[str]:
    """Return the ids in the quarantine file. Raises DataError."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            if "id" not in (rows.fieldnames or ()):
                raise ValueError("no column id")
            return frozenset(row["id"] for row in rows)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            f"{path}: expected the list of quarantined images, found {error}; run `dvc repro validate`"
        ) from error


def check_enough_is_left(before: Counts, after: Counts) -> None:
    """Raise DataError where no image is left of train, val or test, or of a class in train."""
    lost = [f"split {split}" for split in {split for split, _ in before} - {split for split, _ in after}]
    lost += [f"class {label} of train" for split, label in before.keys() - after.keys() if split == "train"]
    if lost:
        raise DataError(
            f"nothing is left of {', '.join(sorted(lost))} after quarantine; "
            "look at data/validation/flagged.html and let the check warn (validate.severity)"
        )


def digest_of_kept_test_images(raw: Path, quarantined: frozenset[str], task: Task = CLASSIFICATION) -> str:
    """Digest of the test images that are left and what is learned of them.

    Of classes it is that of dataset.json where no image was left out; of labels and numbers it covers all annotations.
    """
    if not quarantined and task.kind == "classification":
        return manifest.read_info(raw).test_digest
    rows, info = manifest.read(raw)
    test = rows[rows["split"] == "test"]
    kept = test[~test["id"].isin(quarantined)]
    if len(kept) == len(test) and task.kind == "classification":
        return info.test_digest
    learned = kept["label" if task.kind == "classification" else "annotations"]
    names, labels = np.unique(learned.to_numpy(str), return_inverse=True)
    told = names.tolist() if task.kind == "classification" else [f"{task.of} of {name}" for name in names.tolist()]
    return manifest.digest_of_test_split(bytes.fromhex("".join(kept["sha256"])), labels, told)
