"""The part of the checks that looks at pixels: a sample's labels, what cannot be read, what is nearly the same."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from deepcv.data.duplicates import Pairs, alike, candidates, picture
from deepcv.data.findings import Looked
from deepcv.data.manifest import encoded_images, readable
from deepcv.data.neighbours import NEIGHBOURS, agree, describe, sample
from deepcv.images import DecodeError, UInt8Array, decode

_AT_ONCE = 1000


def inspect(raw: Path, manifest: pd.DataFrame, *, size: int, seed: int, min_contrast: float) -> Looked:
    """Decode a sample of `size` images and the candidates for near duplicates. Raises DataError where data/raw is damaged."""
    usable = readable(manifest)
    unreadable = _problems(raw, manifest, np.flatnonzero(~usable))
    skipped: dict[str, str] = {}
    drawn = np.flatnonzero(usable)[sample(manifest["sha256"][usable], size, seed)]
    features: list[NDArray[np.float32]] = []
    for start in range(0, len(drawn), _AT_ONCE):
        images = [image for _, image in _decoded(raw, manifest, drawn[start : start + _AT_ONCE], unreadable)]
        if images:
            features.append(describe(images))
    drawn = drawn[~np.isin(drawn, list(unreadable))]
    agreement = None
    if len(drawn) > NEIGHBOURS:
        agreement = agree(np.concatenate(features), manifest["label"].iloc[drawn])
    else:
        skipped["label_noise"] = f"expected more than {NEIGHBOURS} sampled images (validate.sample), found {len(drawn)}"
    twins, ended = None, ""
    if missing := [column for column in ("phash", "contrast") if column not in manifest]:
        skipped["near_duplicates"] = f"the manifest has no column {missing[0]}; run `dvc repro ingest`"
    else:
        twins, ended = _twins(raw, manifest, min_contrast, unreadable)
    return Looked(twins, unreadable, drawn, agreement, skipped, ended)


def _problems(raw: Path, manifest: pd.DataFrame, positions: NDArray[np.int64]) -> dict[int, str]:
    """Say why each of these files, which `ingest` could not decode, is no image."""
    found: dict[int, str] = {}
    for position, _ in _decoded(raw, manifest, positions, found):
        found[position] = "`ingest` could not decode it; run `dvc repro --force ingest`"
    return found


def _twins(raw: Path, manifest: pd.DataFrame, min_contrast: float, unreadable: dict[int, str]) -> tuple[Pairs, str]:
    """Pairs of nearly equal images, and where the search ended early; what repeats a file or shows nothing is another check's."""
    shows = readable(manifest) & (manifest["contrast"] >= min_contrast)
    looked_at = np.flatnonzero(shows & ~manifest["sha256"].duplicated())
    found, ended = candidates(manifest["phash"].to_numpy(np.uint64)[looked_at])
    pairs = looked_at[found]
    needed = np.unique(pairs)
    pictures = {position: picture(image) for position, image in _decoded(raw, manifest, needed, unreadable)}
    kept = [one in pictures and other in pictures and alike(pictures[one], pictures[other]) for one, other in pairs]
    confirmed: Pairs = pairs[np.array(kept, bool)]
    return confirmed, ended


def _decoded(
    raw: Path, manifest: pd.DataFrame, positions: NDArray[np.int64], unreadable: dict[int, str]
) -> Iterator[tuple[int, UInt8Array]]:
    """Position and pixels of each image that can be read; the others are noted."""
    for position, encoded in zip(positions, encoded_images(raw, manifest.iloc[positions]), strict=True):
        try:
            yield int(position), decode(encoded)
        except DecodeError as error:
            unreadable[int(position)] = str(error)
