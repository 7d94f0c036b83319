"""What is measured of a manifest before it is judged: one number per question, and the images that raise each.

Numbers are computed here, with numpy; whether they pass is Great Expectations' to say (`expectations`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from deepcv.data import copies
from deepcv.data.drift import compare_classes, compare_values
from deepcv.data.duplicates import Pairs
from deepcv.data.manifest import readable
from deepcv.data.neighbours import Agreement, p_value
from deepcv.data.notes import Notes
from deepcv.data.samples import DataError, no_images

REFERENCE_COLUMNS = (
    "label", "width", "height", "channels", "brightness", "contrast", "sharpness", "red_minus_blue", "label_agreement",
)  # fmt: skip
MIN_CHANNEL_SWAP = 0.1  # a KS distance, the smallest that counts as drift
_ONE_SHAPE = 0.95  # so many images share one shape: the others are odd
_RARE_MODE = 0.05  # a smaller share of the images has a mode that is odd
_PERMUTATIONS = 10_000
_LOSSES = {  # of a mode's parts, see `images.modes`
    "+dim": "its highest bits are not used: decoded, no level is above 63 of 255; scale the levels up",
    "+animated": "of its pictures the first is taken",
    "+pages": "of its pages the first is taken",
}
_SHOWN_PROBLEMS = 10
_ALONE = "the manifest has no column {}; run `dvc repro ingest`"


@dataclass(frozen=True)
class Limits:
    """What the data must hold to; see section `validate` of params.yaml."""

    min_images: int
    min_images_per_class: int
    max_class_ratio: float
    min_side: int
    max_side: int
    max_duplicate_share: float
    max_near_duplicate_share: float = 0.05
    max_leaks: int = 0
    max_near_leaks: int = 0
    min_contrast: float = 0.005
    max_uniform_share: float = 0.0
    min_sharpness: float = 1e-5
    max_blurred_share: float = 0.01
    max_contradicted_share: float = 0.05
    alpha: float = 0.001
    modes: Sequence[str] = ()  # none: any
    classes: Sequence[str] = ()  # none: any


@dataclass(frozen=True)
class Looked:
    """What needed pixels: positions in the manifest of near twins, of unreadable images, and how labels agree in a sample.

    `ended` says where the search for near twins ended, if before all were found.
    """

    twins: Pairs | None = None
    unreadable: Mapping[int, str] = field(default_factory=dict)
    sampled: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    agreement: Agreement | None = None
    skipped: Mapping[str, str] = field(default_factory=dict)
    ended: str = ""


@dataclass(frozen=True)
class Findings:
    """`numbers` is the dataset's row for Great Expectations; `flagged` has (check, position, reason); `skipped` says why."""

    numbers: Mapping[str, float]
    flagged: pd.DataFrame
    skipped: Mapping[str, str]
    words: Mapping[str, str] = field(default_factory=dict)  # what to say beside a number that fails
    sampled: int = 0  # images of which the labels were compared


def look(
    manifest: pd.DataFrame, classes: tuple[str, ...], limits: Limits, looked: Looked | None = None,
    reference: pd.DataFrame | None = None,
) -> Findings:  # fmt: skip
    """Measure everything that the manifest's columns, the pixels that were looked at and the reference allow.

    Of a file that `ingest` could not decode, nothing but `readable` is asked: its zeros are no measures.
    """
    looked = looked or Looked(skipped={"near_duplicates": "not looked for", "label_noise": "not looked for"})
    ids = manifest["id"].to_numpy()
    usable = readable(manifest)
    rows, place = np.flatnonzero(usable), np.cumsum(usable) - 1
    twins = None if looked.twins is None else place[looked.twins]
    of_usable = replace(looked, twins=twins, sampled=place[looked.sampled])
    notes = _measure(manifest[usable].reset_index(drop=True), classes, limits, of_usable, reference)
    notes.number_by(rows)
    notes.numbers["unreadable"] = len(looked.unreadable)
    notes.words["unreadable"] = _unreadable([f"{ids[at]}: {why}" for at, why in sorted(looked.unreadable.items())])
    for position, reason in looked.unreadable.items():
        notes.flag("readable", [position], reason)
    return Findings(notes.numbers, notes.table(), notes.skipped, notes.words, len(looked.sampled))


def _unreadable(problems: list[str]) -> str:
    more = [f"… and {len(problems) - _SHOWN_PROBLEMS} more"] if len(problems) > _SHOWN_PROBLEMS else []
    return "\n    ".join(
        [
            f"{no_images(len(problems))}; repair or remove each, list its sha256 in data/exclusions.txt, "
            "or leave it out with `validate.severity: {readable: quarantine}`:",
            *problems[:_SHOWN_PROBLEMS],
            *more,
        ]
    )


def _measure(
    manifest: pd.DataFrame, classes: tuple[str, ...], limits: Limits, looked: Looked, reference: pd.DataFrame | None
) -> Notes:
    notes = Notes(dict(looked.skipped))
    counts = manifest.groupby("label").size().reindex(list(classes), fill_value=0)
    notes.numbers |= {
        "images": len(manifest),
        "smallest_class": int(counts.min()),
        "class_ratio": float(counts.max() / max(1, counts.min())),
    }
    notes.words |= {"smallest_class": f"{counts.idxmin()}", "class_ratio": f"{counts.idxmax()} to {counts.idxmin()}"}
    _shapes(manifest, limits, notes)
    _modes(manifest, limits.modes, notes)
    notes.flag("labels", ~manifest["label"].isin(classes), "its label is none of the dataset's classes")
    if limits.classes:
        _class_names(manifest, classes, limits.classes, notes)
    copies.equal(manifest, notes)
    if looked.twins is not None:
        copies.nearly_equal(manifest, looked.twins, looked.ended, notes)
    _pixels(manifest, limits, notes)
    if looked.agreement is not None:
        _label_noise(looked.sampled, looked.agreement, reference, notes)
    if reference is None:
        needs = ("label_set", "class_shares", "brightness", "channel_order")[bool(limits.classes) :]
        notes.skipped |= dict.fromkeys(needs, "no reference is accepted (validate.reference)")
    else:
        _drift(manifest, classes, reference, limits.alpha, notes)
    return notes


def _class_names(manifest: pd.DataFrame, classes: tuple[str, ...], known: Sequence[str], notes: Notes) -> None:
    """Find classes that the dataset may not have, also where no image has them."""
    unknown = sorted({*classes, *manifest["label"].dropna()} - {*known, ""})
    notes.numbers["classes_unknown"] = len(unknown)
    notes.words["classes_unknown"] = ", ".join(unknown[:10])
    notes.flag("label_set", manifest["label"].isin(unknown), "validate.classes does not name its class")


def read_reference(path: Path) -> pd.DataFrame:
    """Read an accepted reference. Raises DataError."""
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected an accepted reference (validate.reference), found {error}") from error
    if "label" not in table:
        raise DataError(
            f"{path}: expected a column label, found {', '.join(map(str, table.columns))}; accept another file"
        )
    return table


def candidate(manifest: pd.DataFrame, looked: Looked) -> pd.DataFrame:
    """What a person can accept as reference: what the checks compare, a row per image, the sampled ones first."""
    first = np.asarray(looked.sampled, np.int64)
    rest = np.setdiff1d(np.flatnonzero(readable(manifest)), first)
    table = manifest.iloc[np.concatenate([first, rest])].reset_index(drop=True)
    table["label_agreement"] = np.float32(np.nan)
    if looked.agreement is not None:
        table.loc[: len(first) - 1, "label_agreement"] = looked.agreement.share
    return table[[column for column in REFERENCE_COLUMNS if column in table]]


def _shapes(manifest: pd.DataFrame, limits: Limits, notes: Notes) -> None:
    sides = manifest[["width", "height"]]
    wrong = (sides.min(axis=1) < limits.min_side) | (sides.max(axis=1) > limits.max_side)
    notes.flag("size", wrong, f"a side is outside {limits.min_side} to {limits.max_side} pixels")
    shape = manifest.groupby(["width", "height", "channels"]).ngroup()
    common = int(np.bincount(shape).argmax())
    odd = (shape != common).to_numpy()
    if odd.mean() > 1 - _ONE_SHAPE:
        notes.skipped["odd_shape"] = "the images have no common shape"
        return
    notes.numbers["odd_shapes"] = int(odd.sum())
    usual = manifest.iloc[int(np.flatnonzero(shape == common)[0])]
    wanted = f"{usual['width']}×{usual['height']}×{usual['channels']}"
    found = manifest[odd]
    notes.flag(
        "odd_shape",
        odd,
        [
            f"{w}×{h}×{c}, not {wanted}"
            for w, h, c in zip(found["width"], found["height"], found["channels"], strict=True)
        ],
    )


def _modes(manifest: pd.DataFrame, wanted: Sequence[str], notes: Notes) -> None:
    """Find files of other modes than wanted; where nothing is wanted, of rare modes and of those of which decoding loses much."""
    check = "mode" if wanted else "odd_mode"
    if "mode" not in manifest:
        notes.skipped[check] = _ALONE.format("mode")
        return
    modes = manifest["mode"]
    if wanted:
        others = ~modes.isin(wanted)
        notes.flag(check, others, [f"{mode}, not {' or '.join(wanted)}" for mode in modes[others]])
        return
    counts = Counter(modes.tolist())
    why = {mode: told for mode, count in counts.most_common() if (told := _why_odd(mode, count, len(modes)))}
    odd = modes.isin(list(why))
    notes.numbers["odd_modes"] = int(odd.sum())
    notes.words["odd_modes"] = ", ".join(f"{mode} {counts[mode]}" for mode in why)
    notes.flag(check, odd, [f"{mode}: {why[mode]}" for mode in modes[odd]])


def _why_odd(mode: str, count: int, total: int) -> str:
    """Say what is unusual; nothing where nothing is."""
    rare = [f"{count} of {total} images are"] * (count < _RARE_MODE * total)
    return "; ".join([*rare, *(text for part, text in _LOSSES.items() if part in mode)])


def _pixels(manifest: pd.DataFrame, limits: Limits, notes: Notes) -> None:
    for check, column, limit in (
        ("uniform", "contrast", limits.min_contrast),
        ("blurred", "sharpness", limits.min_sharpness),
    ):
        if column not in manifest:
            notes.skipped[check] = _ALONE.format(column)
            continue
        low = (manifest[column] < limit).to_numpy()
        notes.numbers[f"{check}_share"] = float(low.mean())
        notes.flag(check, low, [f"{column} {value:.2g}" for value in manifest[column][low]])


def _label_noise(
    sampled: NDArray[np.int64], agreement: Agreement, reference: pd.DataFrame | None, notes: Notes
) -> None:
    against = agreement.contradicted_by != ""
    notes.numbers["contradicted_share"] = float(against.mean())
    reasons = [f"images like it are {name}" for name in agreement.contradicted_by[against]]
    notes.flag("label_noise", sampled[against], reasons)
    if reference is not None and "label_agreement" in reference:
        p = p_value(reference["label_agreement"].dropna().to_numpy(np.float32), agreement.share)
        if not np.isnan(p):
            notes.numbers["label_agreement_p"] = p


def _drift(
    manifest: pd.DataFrame, classes: tuple[str, ...], reference: pd.DataFrame, alpha: float, notes: Notes
) -> None:
    """Compare with the reference; an effect that is not significant counts as 0."""
    before, after = (
        {str(name): int(count) for name, count in table["label"].value_counts().items()}
        for table in (reference, manifest)
    )
    new, gone = sorted({*after, *classes} - set(before)), sorted(set(before) - set(after))
    notes.numbers["classes_added"], notes.numbers["classes_lost"] = len(new), len(gone)
    notes.words |= {"classes_added": ", ".join(new[:10]), "classes_lost": ", ".join(gone[:10])}
    if len(set(before) | set(after)) > 1:
        shares = compare_classes(before, after, _PERMUTATIONS, 0)
        notes.numbers["class_shares_v"] = shares.effect if shares.p < alpha else 0.0
    for column in ("brightness", "red_minus_blue"):
        if column not in reference or column not in manifest:
            notes.skipped["brightness" if column == "brightness" else "channel_order"] = (
                f"the {'reference' if column in manifest else 'manifest'} has no column {column}"
            )
            continue
        old, now = (table[column].dropna().to_numpy(np.float64) for table in (reference, manifest))
        found = compare_values(column, old, now)
        effect = found.effect if found.p < alpha else 0.0
        if column == "brightness":
            notes.numbers["brightness_ks"] = effect
        else:  # swapped where the mirrored colours fit better than those that were found
            notes.numbers["channel_swap"] = effect - compare_values(column, old, -now).effect if effect else 0.0
