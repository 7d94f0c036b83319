"""How long a person waits for nothing: a first run in a fresh copy, `dvc repro` again, `deepcv --help`.

    python -m benchmarks.start_up [--quick]

Wall seconds, medians; `--quick` works on the project in the working directory and leaves the first run out.
"""

import argparse
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.checkouts import checkout, environment
from benchmarks.result import emit

_LIMITS_S = {"first_run": 90.0, "repro_again": 3.0, "help": 0.3, "python_only": 0.3}


def seconds(command: list[str], folder: Path, repeats: int) -> float:
    """Median wall seconds of a command."""
    times_s = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run(command, cwd=folder, env=environment(folder), check=True, capture_output=True)
        times_s.append(time.perf_counter() - start)
    return statistics.median(times_s)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="no first run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path.cwd()
        found: dict[str, float] = {}
        if not options.quick:
            folder = Path(name)
            checkout(folder)
            set_up = ["python", "-c", "from deepcv import tracking; tracking.connect()"]  # what `make setup` does last
            subprocess.run(set_up, cwd=folder, env=environment(folder), check=True, capture_output=True)
            start = time.perf_counter()
            for command in (["deepcv", "check"], ["dvc", "repro"]):
                subprocess.run(command, cwd=folder, env=environment(folder), check=True)
            found["first_run"] = time.perf_counter() - start
        found["repro_again"] = seconds(["dvc", "repro"], folder, 5)
        found["help"] = seconds(["deepcv", "--help"], folder, 11)
        found["python_only"] = seconds(["python", "-c", "import argparse, subprocess"], folder, 11)
    emit(
        "start-up", value=found["help"], baseline=found["python_only"],
        target="; ".join(f"{key} <= {_LIMITS_S[key]} s" for key in found),
        holds=all(value <= _LIMITS_S[key] for key, value in found.items()), n=11,
        **{f"{key}_s": round(value, 3) for key, value in found.items()},
    )  # fmt: skip


if __name__ == "__main__":
    main()
