"""CIFAR-10-JPEG on two CPU cores by the fast recipe: the mean test accuracy of three seeds, and the CPU seconds of each.

    python -m benchmarks.cifar_cpu --path TAR [--quick]

It is `benchmarks.accuracy` of `examples/cifar10-jpeg-fast.yaml` with the targets of that recipe.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.result import ROOT

_ACCURACY, _CPU_S, _SEEDS = 0.905, 1800, (0, 1, 2)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, required=True, help="the tar of CIFAR-10 as JPEG files")
    parser.add_argument("--seeds", type=int, nargs="+", default=_SEEDS)
    parser.add_argument("--quick", action="store_true", help="one epoch of the first seed")
    options = parser.parse_args()
    command = [
        sys.executable, "-m", "benchmarks.accuracy", "examples/cifar10-jpeg-fast.yaml", "--path", str(options.path.resolve()),
        "--target", str(_ACCURACY), "--max-cpu-s", str(_CPU_S), "--seeds", *map(str, options.seeds),
    ]  # fmt: skip
    sys.exit(subprocess.run([*command, *(["--quick"] if options.quick else [])], cwd=ROOT, check=False).returncode)


if __name__ == "__main__":
    main()
