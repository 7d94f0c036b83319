"""Test accuracy of a params file, over seeds, through the pipeline itself.

    python -m benchmarks.accuracy params.yaml --seeds 0 1 2 --target 0.985
    python -m benchmarks.accuracy examples/cifar10-jpeg.yaml --path /data/cifar10-jpeg.tar.gz --target 0.85 --max-cpu-s 600

Each run is `dvc repro evaluate` in a copy of the checkout in a temporary folder; CPU seconds are those of all its processes.
On a shared machine one computation takes more CPU seconds at one hour than at another: `run_gflops` is the speed of a small
matrix product on one core, the median over the run, so that a slow hour can be told from slow code.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkouts import checkout, environment
from benchmarks.result import cpu_s, emit
from deepcv.params.edit import set_values

_SPEED_PERIOD_S = 10
_PRODUCTS = 12


def measure(folder: Path) -> tuple[float, float, float]:
    """Run the pipeline up to `evaluate`; return accuracy, CPU seconds and the machine's GFLOPS meanwhile."""
    gflops()  # the first product is slower
    before = cpu_s()
    command = [sys.executable, "-m", "dvc", "repro", "evaluate"]
    speeds, ended = [gflops()], threading.Event()

    def watch() -> None:
        while not ended.wait(_SPEED_PERIOD_S):
            speeds.append(gflops())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        subprocess.run(command, cwd=folder, env=environment(folder), check=True, stdout=sys.stderr)
    finally:
        ended.set()
        watcher.join()
    metrics = json.loads((folder / "data/evaluation/metrics.json").read_text())
    return float(metrics["accuracy"]), cpu_s() - before, statistics.median(speeds)


def gflops() -> float:
    """Speed of a matrix product that fits the core's own cache, on one thread, by CPU time (about 20 ms)."""
    torch.set_num_threads(1)  # OpenMP keeps this by thread
    matrix = torch.ones(384, 384)
    start = time.thread_time()
    for _ in range(_PRODUCTS):
        matrix @ matrix
    return _PRODUCTS * 2 * 384**3 / (time.thread_time() - start) / 1e9


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("params", type=Path)
    parser.add_argument("--path", type=Path, help="where the dataset is, instead of the file's ingest.path")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--target", type=float, required=True, help="least mean accuracy")
    parser.add_argument("--max-cpu-s", type=float, help="most CPU seconds of the first run, data included")
    parser.add_argument("--quick", action="store_true", help="one epoch of the first seed")
    options = parser.parse_args()
    seeds = options.seeds[:1] if options.quick else options.seeds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkout(folder)
        (folder / "params.yaml").write_text(options.params.read_text())
        runs = []
        for seed in seeds:
            changes: dict[str, Any] = {"train.seed": seed}
            if options.path:
                changes["ingest.path"] = str(options.path.resolve())
            if options.quick:
                changes["train.epochs"] = 1
            set_values(folder / "params.yaml", changes)
            runs.append(measure(folder))
    accuracies, cpu, speeds = zip(*runs, strict=True)
    mean = statistics.mean(accuracies)
    holds = mean >= options.target and (options.max_cpu_s is None or cpu[0] <= options.max_cpu_s)
    emit(
        f"accuracy-{options.params.stem}", value=mean, baseline=options.target,
        target=f"accuracy >= {options.target}" + (f" in <= {options.max_cpu_s:.0f} CPU-s" if options.max_cpu_s else ""),
        holds=holds, n=len(runs), accuracies=accuracies, run_cpu_s=[round(c, 1) for c in cpu],
        run_gflops=[round(speed, 1) for speed in speeds], seeds=seeds,
    )  # fmt: skip


if __name__ == "__main__":
    main()
