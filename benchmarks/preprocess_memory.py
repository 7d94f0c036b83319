"""Stage `preprocess` on CIFAR-10-JPEG: images per second, and memory that must not grow with the number of images.

    python -m benchmarks.preprocess_memory --path cifar10-jpeg.tar.gz [--quick]

The 60,000 images and ten times as many (the same ones, repeated in the manifest) go through `python -m deepcv.stages.preprocess`
in a project of their own; `value` and `baseline` are the peaks of anonymous resident memory (RssAnon, looked at every 10 ms)
of the two, in MB. Quick: 6,000 and 60,000 images.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from benchmarks.result import ROOT, cpu_s, emit
from deepcv.data import manifest, packing
from deepcv.data.sources import open_source
from deepcv.data.splits import SplitRule

TARGET = 1.2


def write_raw(tar: Path, folder: Path) -> pd.DataFrame:
    """Ingest the tar."""
    folder.mkdir(parents=True)
    source = open_source(tar, ROOT)
    packing.pack(source.samples(), source.classes, folder, name="cifar", source="tar", rule=SplitRule(0.1, 0.1, 0))
    return manifest.read(folder)[0]


def write_project(folder: Path, raw: Path, rows: pd.DataFrame) -> None:
    """Make a project whose manifest has these rows; the images are those of `raw`."""
    (folder / "data/raw").mkdir(parents=True)
    for name in ("images.bin", "dataset.json"):
        (folder / "data/raw" / name).symlink_to(raw / name)
    rows.to_parquet(folder / "data/raw/manifest.parquet", index=False)
    (folder / "data/validation").mkdir()
    (folder / "data/validation/quarantine.csv").write_text("id,check,reason\n")
    for name in ("dvc.yaml", "versions.yaml"):
        shutil.copy(ROOT / name, folder)
    shutil.copy(ROOT / "examples/cifar10-jpeg.yaml", folder / "params.yaml")
    # So that the stage finds its deps unchanged: it looks at them before and after.
    (folder / "deepcv").symlink_to(ROOT / "deepcv")


def preprocess(project: Path) -> tuple[float, float, float]:
    """Peak of anonymous memory in MB, wall seconds, CPU seconds of one run."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DEEPCV_HOME": str(project / ".deepcv")}
    started, spent, peak = time.monotonic(), cpu_s(), 0
    stage = subprocess.Popen([sys.executable, "-m", "deepcv.stages.preprocess"], cwd=project, env=environment)
    while stage.poll() is None:
        try:
            status = Path(f"/proc/{stage.pid}/status").read_text()
        except OSError:
            break
        peak = max([peak, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))])
        time.sleep(0.01)
    if stage.wait():
        sys.exit("the stage failed")
    return peak / 1024, time.monotonic() - started, cpu_s() - spent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the images, within 60 s")
    parser.add_argument("--path", type=Path, required=True, help="a tar of images")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        raw = Path(folder, "raw")
        rows = write_raw(options.path, raw)
        if options.quick:
            rows = rows.iloc[::10]
        repeated = pd.concat([rows.assign(id=f"{number}/" + rows["id"]) for number in range(10)], ignore_index=True)
        figures = {}
        for name, these in {"once": rows, "ten times": repeated}.items():
            project = Path(folder, name)
            write_project(project, raw, these)
            mb, wall_s, stage_cpu_s = preprocess(project)
            figures[name] = {
                "images": len(these), "rss_anon_mb": round(mb, 1), "images_per_s": round(len(these) / wall_s),
                "images_per_cpu_s": round(len(these) / stage_cpu_s),
            }  # fmt: skip
            print(name, figures[name], flush=True)
            shutil.rmtree(project)
    value, baseline = figures["ten times"]["rss_anon_mb"], figures["once"]["rss_anon_mb"]
    emit(
        "preprocess-memory", value=value, baseline=baseline, n=1, target=f"peak RssAnon of ten times the images <= {TARGET} x",
        holds=value / baseline <= TARGET, figures=figures,
    )  # fmt: skip


if __name__ == "__main__":
    main()
