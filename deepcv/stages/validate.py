"""Stage `validate`: Great Expectations judges the data; a failed expectation stops the pipeline."""

import gc
import json
import os
from dataclasses import fields
from functools import partial
from pathlib import Path

import pandas as pd

from deepcv.data import findings, flagged_page, gallery, gallery_page, gallery_picture, manifest
from deepcv.data.inspection import inspect
from deepcv.errors import DeepcvError
from deepcv.files import write_text
from deepcv.parallel import meanwhile
from deepcv.params.base import load_section
from deepcv.params.validate import NO_REFERENCE, REGISTERED, ValidateParams
from deepcv.stages import entry

RAW = Path("data/raw")
OUT = Path("data/validation")
DATA_DOCS = OUT / "data_docs.html"
FLAGGED = OUT / "flagged.html"
QUARANTINE = OUT / "quarantine.csv"
CANDIDATE = OUT / "candidate.parquet"
VERDICT = OUT / "verdict.json"
GALLERY = Path("reports/data/index.html")
PICTURE = Path("reports/data/gallery.png")


def main() -> None:
    """Read data/raw, write reports and, if all expectations hold, the verdict and quarantine that `preprocess` waits for."""
    params = load_section(ValidateParams)
    limits = findings.Limits(**{field.name: getattr(params, field.name) for field in fields(findings.Limits)})
    look = partial(_look, params.sample, params.seed, params.min_contrast)
    with meanwhile(look, len(os.sched_getaffinity(0))) as looking:
        gc.disable()  # thousands of classes come and none goes: a sixth of the time
        # Here, so that what looks at pixels need not wait for it.
        from deepcv.data import expectations

        gc.enable()
        rows, info = manifest.read(RAW)
        looked = looking()
    found = findings.look(rows, info.classes, limits, looked, read_reference(params.reference, info.name))
    own = [expectations.Own(**entry) for entry in params.expectations]
    verdict = expectations.judge(rows, info.classes, limits, found, params.severities, own)
    write_text(DATA_DOCS, verdict.html)
    findings.candidate(rows, looked).to_parquet(CANDIDATE, index=False)
    outcomes = {"fail": verdict.failures, "warn": verdict.warnings}
    flagged_page.write(FLAGGED, RAW, rows, found, params.severities, outcomes, verdict.limits, name=info.name)
    shown = gallery.collect(RAW, rows, info, verdict.quarantined["position"].to_numpy("int64"))
    gallery_page.write(GALLERY, shown)
    gallery_picture.write(PICTURE, shown)
    out = verdict.quarantined.assign(id=rows["id"].to_numpy()[verdict.quarantined["position"].astype("int64")])
    out = out.sort_values(["position", "check"], kind="stable")[["id", "check", "reason"]]
    for warning in verdict.warnings:
        print(f"warning: {warning}")
    for why in dict.fromkeys(found.skipped.values()):
        print(f"not checked: {', '.join(check for check, reason in found.skipped.items() if reason == why)}: {why}")
    print(flagged_page.headline(found.flagged, FLAGGED))
    if not verdict.success:
        raise DeepcvError(
            f"the data fails {len(verdict.failures)} expectations (section validate of params.yaml; report: {DATA_DOCS})\n  "
            + "\n  ".join(verdict.failures)
        )
    write_text(QUARANTINE, out.to_csv(index=False, lineterminator="\n"))
    write_text(VERDICT, json.dumps({"success": True}) + "\n")
    print(
        f"{info.name}: {len(rows)} images hold to every expectation of severity fail, {out['id'].nunique()} are quarantined; "
        f"gallery: {GALLERY}, report: {DATA_DOCS}, what was flagged: {FLAGGED}"
    )
    if params.reference != REGISTERED:
        print(how_to_accept(info.name))


def read_reference(choice: str, dataset: str) -> pd.DataFrame | None:
    """Read what `validate.reference` names; None where that is nothing, or no champion's data is there yet. Raises DataError."""
    if choice == NO_REFERENCE:
        return None
    if choice != REGISTERED:
        return findings.read_reference(Path(choice))
    path = Path(choice, f"{dataset}.parquet")
    if path.exists():
        return findings.read_reference(path)
    print(f"{path}: not there, as no champion of {dataset} is registered yet; this data is compared with none")
    return None


def how_to_accept(dataset: str) -> str:
    """Say how a person makes this data the reference that later data is compared with."""
    accepted = Path(NO_REFERENCE).with_name(f"{dataset}.parquet")
    return f"to have later data compared with this: `cp {CANDIDATE} {accepted}`, then `validate.reference: {accepted}`, and commit both"


def _look(size: int, seed: int, min_contrast: float) -> findings.Looked:
    rows, _ = manifest.read(RAW)
    return inspect(RAW, rows, size=size, seed=seed, min_contrast=min_contrast)


if __name__ == "__main__":
    entry.run(main)
