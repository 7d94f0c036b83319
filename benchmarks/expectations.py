"""Does `validate` find faults put into CIFAR-10, leave the clean images alone, and what does it cost?

    python -m benchmarks.expectations --path cifar10-jpeg.tar.gz [--quick]

The clean images are packed and accepted as reference once; a fault changes rows and appends images to the same packed file, but
for the truncated file, which is packed as `ingest` would. A fault is found where the expectation that is made for it (`TELLS`) holds
for the clean images and fails, whatever its severity. Then a synthetic manifest of a million rows with random hashes, one in a hundred
near another: what `validate` computes from columns, and Great Expectations' verdict. Left out is what decodes images (agreement of
labels, pixels of near duplicates), what writes pages, and imports. `--quick`: 16,000 images, 100,000 rows, labels compared in the clean
and the shuffled set alone.
"""

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from benchmarks.manifest_scale import manifests
from benchmarks.result import cpu_s, emit
from deepcv.data import manifest, packing
from deepcv.data.duplicates import candidates
from deepcv.data.expectations import Verdict, judge
from deepcv.data.findings import Findings, Limits, Looked, candidate, look
from deepcv.data.inspection import inspect
from deepcv.data.measures import measure
from deepcv.data.samples import Sample
from deepcv.data.sources import open_source
from deepcv.data.splits import SplitRule
from deepcv.images import UInt8Array, decode
from deepcv.params.validate import ValidateParams

PARAMS = ValidateParams()
LIMITS = Limits(**{name: getattr(PARAMS, name) for name in Limits.__dataclass_fields__})
TELLS = {  # the column or number of the dataset whose expectation each fault is to fail
    "truncated": "unreadable", "channels swapped": "channel_swap", "wrong size": "odd_shapes", "label out of range": "label",
    "split leakage": "leaks", "duplicates": "duplicate_share", "class dropped": "classes_lost", "all black": "uniform_share",
    "brightness drift": "brightness_ks", "labels shuffled": "label_agreement_p",
}  # fmt: skip
_MAX_CPU_S, _MAX_ROWS_S = 60.0, 10.0
_ROWS_INCLUDE = (
    "measures of columns, near-duplicate candidates by hash, copies, drift from the reference, verdict and its page"
)
_ROWS_LEAVE_OUT = (
    "what decodes images (label_noise, readable, pixels of near_duplicates), flagged page, gallery, imports"
)


class Raw:
    """A packed dataset with measured columns, to which changed images can be appended."""

    def __init__(self, folder: Path, samples: Iterable[Sample], classes: tuple[str, ...]) -> None:
        self.folder, self.classes = folder, classes
        folder.mkdir(exist_ok=True)
        packing.pack(samples, classes, folder, name="cifar10", source="tar", rule=SplitRule(0.1, 0.2, 0))
        self.rows, _ = manifest.read(folder)
        self.random = np.random.default_rng(0)

    def some(self, share: float, split: str | None = None) -> np.ndarray:
        """Positions of a random share of the images."""
        among = np.flatnonzero((self.rows["split"] == split) | (split is None))
        return self.random.permutation(among)[: max(1, int(share * len(among)))]

    def changed(self, positions: np.ndarray, change: Callable[[UInt8Array], UInt8Array]) -> pd.DataFrame:
        """The rows with the images at these positions changed and encoded as PNG."""
        part = self.rows.iloc[positions].copy()
        images = [change(decode(encoded, 3)) for encoded in manifest.encoded_images(self.folder, part)]
        with (self.folder / "images.bin").open("ab") as blob:
            for place, image in enumerate(images):
                encoded = cv2.imencode(".png", np.ascontiguousarray(image[:, :, ::-1]))[1].tobytes()
                start = blob.tell()
                blob.write(encoded)
                values = (hashlib.sha256(encoded).hexdigest(), *image.shape[1::-1], start, len(encoded), "colour8")
                for name, value in zip(("sha256", "width", "height", "offset", "bytes", "mode"), values, strict=True):
                    part.iloc[place, part.columns.get_loc(name)] = value
        return pd.concat([self.rows.drop(index=part.index), measured(part, images)]).sort_index()


def measured(rows: pd.DataFrame, images: list[UInt8Array]) -> pd.DataFrame:
    """Measure the changed images anew."""
    table = pd.DataFrame([measure(image)._asdict() for image in images], index=rows.index)
    table = table.astype({name: "uint64" if name == "phash" else "float32" for name in table})
    return rows.assign(**table)


def faults(raw: Raw) -> Iterator[tuple[str, pd.DataFrame]]:
    """The faults that a manifest can hold, one by one."""
    rows = raw.rows
    every = np.arange(len(rows))
    yield "channels swapped", raw.changed(every, lambda image: image[:, :, ::-1])
    yield "wrong size", raw.changed(raw.some(0.001), lambda image: cv2.resize(image, (48, 40)))
    strange = rows.copy()
    strange.loc[raw.some(0.0005), "label"] = "dragon"
    yield "label out of range", strange
    leaked = rows.loc[raw.some(0.01, "test")].assign(split="train")
    leaked["id"] = "leak/" + leaked["id"]
    yield "split leakage", pd.concat([rows, leaked], ignore_index=True)
    doubled = rows.loc[raw.some(0.1, "train")]
    yield "duplicates", pd.concat([rows, doubled.assign(id="copy/" + doubled["id"])], ignore_index=True)
    yield "class dropped", rows[rows["label"] != raw.classes[3]].reset_index(drop=True)
    yield "all black", raw.changed(raw.some(0.001), np.zeros_like)
    yield "brightness drift", raw.changed(every, lambda image: np.clip(image * 1.15, 0, 255).round().astype(np.uint8))
    yield "labels shuffled", shuffled(rows, 0.05)


def shuffled(rows: pd.DataFrame, share: float) -> pd.DataFrame:
    """Permute the labels of a share of the images among themselves."""
    random = np.random.default_rng(1)
    chosen = random.permutation(len(rows))[: int(share * len(rows))]
    labels = rows["label"].to_numpy(dtype=object).copy()
    labels[chosen] = labels[random.permutation(chosen)]
    return rows.assign(label=labels)


def validate(
    raw: Raw, rows: pd.DataFrame, reference: pd.DataFrame | None, *, size: int, seed: int = 0
) -> tuple[Verdict, Findings, Looked]:
    """What the stage does, from manifest to verdict."""
    looked = inspect(raw.folder, rows, size=size, seed=seed, min_contrast=LIMITS.min_contrast)
    found = look(rows, raw.classes, LIMITS, looked, reference)
    return judge(rows, raw.classes, LIMITS, found, PARAMS.severities), found, looked


def truncated(folder: Path, samples: list[Sample], classes: tuple[str, ...]) -> tuple[Verdict, set[str]]:
    """Pack the samples and half of a file. Returns what fails: `unreadable` where that file alone is flagged, and named."""
    whole = samples[0].encoded
    broken = samples[0]._replace(id=f"half of {samples[0].id}", encoded=whole[: len(whole) // 2])
    raw = Raw(folder, [*samples, broken], classes)
    verdict, found, _ = validate(raw, raw.rows, None, size=0)
    flagged = found.flagged.loc[found.flagged["check"] == "readable", "position"]
    named = [text for text in verdict.failures if broken.id in text]
    return verdict, {"unreadable"} if raw.rows["id"].iloc[flagged].tolist() == [broken.id] and named else set()


def of(verdict: Verdict) -> set[str]:
    """The columns and numbers whose expectations failed."""
    return {text.split()[0].rstrip(":") for text in (*verdict.failures, *verdict.warnings)}


def million(count: int) -> tuple[float, float]:
    """Wall seconds for a manifest of so many rows: of all that needs no pixels, and of the search for near duplicates in it."""
    rows, _, _ = manifests(count)
    random = np.random.default_rng(0)
    for name in ("brightness", "contrast", "sharpness", "red_minus_blue"):
        rows[name] = random.random(count, np.float32)
    phash = random.integers(0, 2**64, count, np.uint64)
    near, other = random.permutation(count)[: 2 * (count // 100)].reshape(2, -1)
    phash[near] = phash[other] ^ np.uint64(0b11)
    rows["phash"] = phash
    reference = rows.sample(frac=0.5, random_state=0)
    classes = tuple(sorted(rows["label"].unique()))
    start = time.perf_counter()
    looked = Looked(candidates(phash)[0], skipped={"label_noise": "needs pixels"})
    searched_s = time.perf_counter() - start
    judge(rows, classes, LIMITS, look(rows, classes, LIMITS, looked, reference), PARAMS.severities)
    return time.perf_counter() - start, searched_s


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, required=True, help="a tar of images")
    parser.add_argument("--quick", action="store_true", help="16,000 images, 100,000 rows")
    options = parser.parse_args()
    source = open_source(options.path, Path())
    samples = list(source.samples())
    if options.quick:
        samples = [samples[n] for n in np.random.default_rng(0).permutation(len(samples))[:16_000]]
    size = PARAMS.sample
    with tempfile.TemporaryDirectory() as name:
        raw = Raw(Path(name), samples, source.classes)
        start = cpu_s()
        plain, clean, looked = validate(raw, raw.rows, None, size=size)
        clean_cpu_s = cpu_s() - start
        reference = candidate(raw.rows, looked)
        again = {seed: validate(raw, raw.rows, reference, size=size, seed=seed) for seed in (0, 1)}
        known = of(again[0][0])
        some = [samples[n] for n in np.random.default_rng(1).permutation(len(samples))[:2000]]
        verdict, failed = truncated(Path(name) / "truncated", some, source.classes)
        found = {"truncated": sorted(failed)}
        severity = {"truncated": "warn" if verdict.success else "fail"}
        for fault, rows in faults(raw):
            looks = size if fault == "labels shuffled" or not options.quick else 0
            verdict, numbers, _ = validate(raw, rows, reference, size=looks)
            found[fault] = sorted(of(verdict) - known)
            severity[fault] = "warn" if verdict.success else "fail"
            if fault == "labels shuffled":
                p_shuffled = [numbers.numbers["label_agreement_p"]]
                p_shuffled.append(validate(raw, rows, reference, size=size, seed=1)[1].numbers["label_agreement_p"])
    rows_s, rows_search_s = million(100_000 if options.quick else 1_000_000)
    p_clean = [numbers.numbers["label_agreement_p"] for _, numbers, _ in again.values()]
    detected = sum(TELLS[fault] in columns for fault, columns in found.items())
    no_failure = plain.success and all(verdict.success for verdict, _, _ in again.values())
    emit(
        "expectations", value=detected, baseline=len(found),
        target=f"{len(found)} faults found; clean: no fail; shuffle p < 1e-3 in two samples; <= {_MAX_CPU_S:g} CPU-s; "
        f"a million rows <= {_MAX_ROWS_S:g} s",
        holds=detected == len(found) and no_failure and max(p_shuffled) < 1e-3 <= min(p_clean)
        and clean_cpu_s <= _MAX_CPU_S and rows_s <= _MAX_ROWS_S,
        n=len(found), images=len(raw.rows), found=found, severity=severity, clean_warnings=list(plain.warnings),
        clean_near_leaks=clean.numbers["near_leaks"], clean_contradicted=round(clean.numbers["contradicted_share"], 4),
        clean_cpu_s=round(clean_cpu_s, 2), p_shuffled=p_shuffled, p_clean=p_clean, rows_s=round(rows_s, 2),
        rows_search_s=round(rows_search_s, 2), rows_include=_ROWS_INCLUDE, rows_leave_out=_ROWS_LEAVE_OUT,
    )  # fmt: skip


if __name__ == "__main__":
    main()
