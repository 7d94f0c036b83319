"""The images that `validate` tells the later stages to leave out."""

from pathlib import Path

import pandas as pd

from deepcv.data.samples import DataError


def without_quarantine(manifest: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Drop the rows whose id stands in the quarantine file. Raises DataError where none is left of train, val or test."""
    try:
        ids = pd.read_csv(path, dtype=str, keep_default_na=False)["id"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{path}: expected the list of quarantined images, found {error}; run `dvc repro validate`"
        ) from error
    kept = manifest[~manifest["id"].isin(ids)]
    lost = [f"split {split}" for split in set(manifest["split"]) - set(kept["split"])]
    lost += [f"class {label} of train" for label in sorted(_trained(manifest) - _trained(kept))]
    if lost:
        raise DataError(
            f"{path}: nothing is left of {', '.join(sorted(lost))} after quarantine; "
            "look at data/validation/flagged.html and let the check warn (validate.severity)"
        )
    return kept


def _trained(manifest: pd.DataFrame) -> set[str]:
    return set(manifest.loc[manifest["split"] == "train", "label"])
