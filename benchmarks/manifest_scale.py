"""How long a diff of two manifests and the search for one image take at a million images.

    python -m benchmarks.manifest_scale [--quick]

Wall seconds, medians, imports not counted, from parquet files in a folder laid out as DVC's cache. `baseline` is the floor
of a diff: to read the columns that it compares. `--quick` takes a tenth of the images.
"""

import argparse
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.result import emit
from deepcv.data import diff, revisions, sightings
from deepcv.data.revisions import Snapshot
from deepcv.data.sightings import Recorded

_LIMIT_S = 10.0
_CLASSES = 100
_REPEATS = 3


def manifests(count: int) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """Two manifests, and how many images were changed between them in each way."""
    random = np.random.default_rng(0)
    hexadecimal = random.bytes(32 * (count + count // 20)).hex()
    digests = np.array([hexadecimal[n : n + 64] for n in range(0, len(hexadecimal), 64)], object)
    labels = random.integers(0, _CLASSES, count)
    size = 20_000
    sides = random.integers(1, 200, (count, 4))
    before = pd.DataFrame(
        {
            "id": [f"class_{label:03d}/{n:08d}.jpg" for n, label in enumerate(labels)],
            "split": random.choice(["train", "val", "test"], count, p=[0.7, 0.1, 0.2]),
            "label": [f"class_{label:03d}" for label in labels],
            "sha256": digests[:count],
            "width": 224, "height": 224, "channels": 3, "bytes": size,
            "offset": np.arange(count, dtype=np.int64) * size, "source": "images.tar",
            "annotations": [
                f'{{"boxes": [{{"label": "class_{label:03d}", "xyxy": [{x}, {y}, {x + w}, {y + h}]}}]}}'
                for label, (x, y, w, h) in zip(labels, sides.tolist(), strict=True)
            ],
        }
    )  # fmt: skip
    share = count // 100
    removed, relabelled, changed, moved, renamed, reannotated = random.permutation(count)[: 6 * share].reshape(6, share)
    after = before.copy()
    after.loc[relabelled, "label"] = "class_new"
    after.loc[changed, "sha256"] = digests[count : count + share]
    after.loc[moved, "split"] = after.loc[moved, "split"].map({"train": "val", "val": "test", "test": "train"})
    after.loc[renamed, "id"] = after.loc[renamed, "id"] + ".new"
    after.loc[reannotated, "annotations"] = '{"boxes": []}'
    added = before.iloc[:share].assign(
        id=[f"added/{n}.jpg" for n in range(share)], sha256=digests[count + share : count + 2 * share]
    )
    after = pd.concat([after.drop(index=removed), added], ignore_index=True).sample(frac=1, random_state=0)
    kinds = ("added", "removed", "relabelled", "changed", "moved", "renamed", "reannotated")
    return before, after, dict.fromkeys(kinds, share)


def keep(cache: Path, rows: pd.DataFrame) -> str:
    """Put a dataset without its images where DVC would, and return the md5 of its folder."""
    listed = []
    aside = cache / "aside"
    for name in ("dataset.json", "images.bin", "manifest.parquet"):
        if name == "manifest.parquet":
            rows.to_parquet(aside, index=False)
        else:
            aside.write_text(json.dumps({"name": "synthetic", "classes": [], "test_digest": ""}))
        listed.append({"md5": store(cache, aside.read_bytes(), ""), "relpath": name})
    return store(cache, json.dumps(listed).encode(), ".dir")


def store(cache: Path, content: bytes, suffix: str) -> str:
    """Write a file under its md5, as DVC does, and return that name."""
    name = hashlib.md5(content, usedforsecurity=False).hexdigest() + suffix
    path = cache / "files" / "md5" / name[:2] / name[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return name


def snapshot(cache: Path, folder: str) -> Snapshot:
    """Open a dataset that was put there."""
    found = revisions.cached(cache, folder, folder)
    if found is None:
        raise SystemExit(f"{folder} is not whole in {cache}")
    return found


def seconds(work: Callable[[], object]) -> float:
    """Median wall seconds."""
    times_s = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        work()
        times_s.append(time.perf_counter() - start)
    return statistics.median(times_s)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100,000 images")
    options = parser.parse_args()
    count = 100_000 if options.quick else 1_000_000
    with tempfile.TemporaryDirectory() as name:
        cache = Path(name)
        before, after, expected = manifests(count)
        image = str(before["sha256"].iloc[count // 2])
        folders = [keep(cache, rows) for rows in (before, after)]
        del before, after
        old, new = (snapshot(cache, folder) for folder in folders)
        found = diff.report(old, new)
        counts = {key: len(table) for key, (_, table) in found.diff.sections.items()}
        if counts != expected:
            raise SystemExit(f"expected {expected}, found {counts}")
        datasets = [Recorded(folder) for folder in folders]
        taken_s = {
            "read": seconds(lambda: [side.rows(diff.COLUMNS, diff.OPTIONAL) for side in (old, new)]),
            "diff": seconds(lambda: diff.report(old, new)),
            "diff_as_text": seconds(lambda: diff.as_text(found)),
            "who_saw": seconds(lambda: sightings.search(image, datasets, cache)),
            "who_saw_prefix": seconds(lambda: sightings.search(image[:16], datasets, cache)),
        }
    emit(
        "manifest-scale", value=taken_s["diff"], baseline=taken_s["read"],
        target=f"diff and who-saw <= {_LIMIT_S:g} s each", n=_REPEATS, images=count,
        holds=max(value for key, value in taken_s.items() if key != "read") <= _LIMIT_S,
        **{f"{key}_s": round(value, 3) for key, value in taken_s.items()},
    )  # fmt: skip


if __name__ == "__main__":
    main()
