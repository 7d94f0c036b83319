"""Does `validate` find faults put into CIFAR-10, leave the clean images alone, and what does it cost?

    python -m benchmarks.expectations --path cifar10-jpeg.tar.gz [--quick]

The clean images are packed and accepted as reference once; a fault changes rows and appends images to the same packed file.
A fault is found where an expectation that holds for the clean images fails, whatever its severity. Then a synthetic manifest of
a million rows, imports not counted. `--quick`: 16,000 images, 100,000 rows, labels compared in the clean and the shuffled set alone.
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
from deepcv.data.expectations import Verdict, judge
from deepcv.data.findings import Findings, Limits, Looked, candidate, look
from deepcv.data.inspection import inspect
from deepcv.data.measures import measure
from deepcv.data.samples import DataError, Sample
from deepcv.data.sources import open_source
from deepcv.data.splits import SplitRule
from deepcv.images import UInt8Array, decode
from deepcv.params.validate import ValidateParams

PARAMS = ValidateParams()
LIMITS = Limits(**{name: getattr(PARAMS, name) for name in Limits.__dataclass_fields__})
_MAX_CPU_S, _MAX_ROWS_S = 60.0, 10.0


class Raw:
    """A packed dataset with measured columns, to which changed images can be appended."""

    def __init__(self, folder: Path, samples: Iterable[Sample], classes: tuple[str, ...]) -> None:
        self.folder, self.classes = folder, classes
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
                values = (hashlib.sha256(encoded).hexdigest(), *image.shape[1::-1], start, len(encoded))
                for name, value in zip(("sha256", "width", "height", "offset", "bytes"), values, strict=True):
                    part.iloc[place, part.columns.get_loc(name)] = value
        return pd.concat([self.rows.drop(index=part.index), measured(part, images)]).sort_index()


def measured(rows: pd.DataFrame, images: list[UInt8Array]) -> pd.DataFrame:
    """Add the fields of Measures, where `ingest` does not."""
    table = pd.DataFrame([measure(image)._asdict() for image in images], index=rows.index)
    table = table.astype({name: "uint64" if name == "phash" else "float32" for name in table})
    return rows.drop(columns=[name for name in table if name in rows]).join(table)


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


def truncated_is_found(folder: Path, samples: list[Sample], classes: tuple[str, ...]) -> bool:
    """Whether `ingest` names a truncated file."""
    broken = samples[7]._replace(encoded=samples[7].encoded[: len(samples[7].encoded) // 2])
    folder.mkdir()
    try:
        packing.pack([*samples, broken], classes, folder, name="x", source="", rule=SplitRule(0.1, 0.2, 0))
    except DataError as error:
        return broken.id in str(error)
    return False


def of(verdict: Verdict) -> set[str]:
    """The columns whose expectations failed."""
    return {text.partition(":")[0] for text in (*verdict.failures, *verdict.warnings)}


def million(count: int) -> float:
    """Wall seconds for a manifest of so many rows, without pixels."""
    rows, _, _ = manifests(count)
    random = np.random.default_rng(0)
    for name in ("brightness", "contrast", "sharpness", "red_minus_blue"):
        rows[name] = random.random(count, np.float32)
    reference = rows.sample(frac=0.5, random_state=0)
    classes = tuple(sorted(rows["label"].unique()))
    start = time.perf_counter()
    judge(rows, classes, LIMITS, look(rows, classes, LIMITS, None, reference), PARAMS.severities)
    return time.perf_counter() - start


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
        found = {
            "truncated": ["ingest"] if truncated_is_found(Path(name) / "t", samples[:2000], source.classes) else []
        }
        severity = {"truncated": "fail"}
        for fault, rows in faults(raw):
            looks = size if fault == "labels shuffled" or not options.quick else 0
            verdict, numbers, _ = validate(raw, rows, reference, size=looks)
            found[fault] = sorted(of(verdict) - known)
            severity[fault] = "warn" if verdict.success else "fail"
            if fault == "labels shuffled":
                p_shuffled = [numbers.numbers["label_agreement_p"]]
                p_shuffled.append(validate(raw, rows, reference, size=size, seed=1)[1].numbers["label_agreement_p"])
    rows_s = million(100_000 if options.quick else 1_000_000)
    p_clean = [numbers.numbers["label_agreement_p"] for _, numbers, _ in again.values()]
    detected = sum(bool(columns) for columns in found.values())
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
    )  # fmt: skip


if __name__ == "__main__":
    main()
