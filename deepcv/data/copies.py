"""Equal and nearly equal images of a manifest: copies, copies of other labels, and leaks between splits."""

import json

import numpy as np
import pandas as pd

from deepcv.data.duplicates import Pairs
from deepcv.data.notes import Notes


def equal(manifest: pd.DataFrame, notes: Notes) -> None:
    """Find files that repeat another one, byte for byte, those with another label than their copy, and those in several splits."""
    files, _ = pd.factorize(manifest["sha256"])  # once: to hash a million digests takes most of the time here
    is_first = np.diff(np.maximum.accumulate(files), prepend=-1) > 0  # files are numbered as they appear
    copies = ~is_first
    notes.numbers["duplicate_share"] = float(copies.mean())
    ids = manifest["id"].to_numpy()
    originals = np.flatnonzero(is_first)[files[copies]]
    notes.flag("duplicates", copies, [f"the same file as {name}" for name in ids[originals]])
    inside = manifest[np.bincount(files)[files] > 1]
    _conflicts(inside, notes)
    # Test images stay where they are, so that scores compare; what is trained on gives way.
    splits = manifest["split"].to_numpy()
    several = inside[inside.groupby("sha256")["split"].transform("nunique") > 1]
    leaks = []
    for _, group in several.groupby("sha256"):
        keep = min(map(str, group["split"]), key=_rank)
        leaks += [(position, keep) for position in group.index if splits[position] != keep]
    notes.numbers["leaks"] = len(leaks)
    notes.flag("leakage", [p for p, _ in leaks], [f"in {splits[p]} and in {keep}" for p, keep in leaks])


def _conflicts(several: pd.DataFrame, notes: Notes) -> None:
    """Find, of files that are there several times, what says different things: another class, or other classes of boxes or tags."""
    # A missing value is None or NaN, as the reader of the manifest has it.
    labels, texts = (
        several[column].astype(object).fillna("").tolist() if column in several else [""] * len(several)
        for column in ("label", "annotations")
    )
    told = [f"{label}{_classes(text)}" for label, text in zip(labels, texts, strict=True)]
    positions, files, ids = several.index.tolist(), several["sha256"].tolist(), several["id"].tolist()
    # Of each file, where each text stands first: one file may have as many copies as the dataset has images.
    firsts: dict[str, dict[str, int]] = {}
    for place, (file, said) in enumerate(zip(files, told, strict=True)):
        firsts.setdefault(file, {}).setdefault(said, place)
    conflicts: list[int] = []
    reasons: list[str] = []
    for place, (file, said) in enumerate(zip(files, told, strict=True)):
        other = next((first for text, first in firsts[file].items() if text != said), None)  # the first or the second
        if other is not None:
            conflicts.append(positions[place])
            reasons.append(f"{said or 'no label'}, but {told[other] or 'no label'} as {ids[other]}")
    notes.numbers["label_conflicts"] = len(conflicts)
    notes.flag("label_conflict", conflicts, reasons)


def _classes(annotations: str) -> str:
    """The classes that annotations name, sorted, for comparison and for people; empty for none."""
    content = json.loads(annotations) if annotations else {}
    boxes = sorted({str(box.get("label", "")) for box in content.get("boxes", ())})
    tags = [f"{column}: {', '.join(sorted(names))}" for column, names in sorted(content.get("tags", {}).items())]
    return "".join(f" ({part})" for part in [", ".join(boxes), *tags] if part)


def _rank(split: str) -> int:
    return {"test": 0, "val": 1}.get(split, 2)


def nearly_equal(manifest: pd.DataFrame, twins: Pairs, ended: str, notes: Notes) -> None:
    """Note the pairs of nearly equal images, (n, 2), and those across splits; where the search `ended` early there may be more."""
    ids, splits = manifest["id"].to_numpy(), manifest["split"].to_numpy()
    number = len(np.unique(twins[:, 1]))
    notes.numbers["near_duplicate_share"] = number / max(1, len(manifest))
    notes.flag("near_duplicates", twins[:, 1], [f"nearly {ids[one]}" for one in twins[:, 0]])
    across = [
        (one, other) if _rank(splits[one]) > _rank(splits[other]) else (other, one)
        for one, other in twins.tolist()
        if splits[one] != splits[other]
    ]
    notes.numbers["near_leaks"] = len(across)
    notes.flag(
        "near_leakage", [p for p, _ in across],
        [f"in {splits[p]}, nearly {ids[other]} in {splits[other]}" for p, other in across],
    )  # fmt: skip
    if ended:
        least = {
            "near_duplicates_cut_short": f"{number} of {len(manifest)} images nearly repeat another one",
            "near_leaks_cut_short": f"{len(across)} pairs lie in two splits",
        }
        notes.numbers |= dict.fromkeys(least, 1)
        notes.words |= {name: f"at least {told}; the search ended at {ended}" for name, told in least.items()}
