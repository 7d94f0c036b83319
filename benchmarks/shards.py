"""Prepared images without DVC and its checks: `ingest` and `preprocess` alone, for a machine that has torch and OpenCV and little more.

python -m benchmarks.shards cifar10-jpeg.tar.gz SHARDS [--example cifar10-jpeg-gpu] [--val-fraction 0.2]
"""

import argparse
import os
import shutil
import tempfile
from pathlib import Path

from benchmarks.result import ROOT
from deepcv.params.edit import set_values
from deepcv.stages import ingest, preprocess

_READ = ("data/sources", "data/exclusions.txt", "versions.yaml")


def prepare(path: Path, out: Path, example: str, val_fraction: float | None = None) -> None:
    """Write the shards of a tar or folder to `out`, with an example's params. Changes the working folder for that long."""
    here, home = Path.cwd(), os.environ.get("DEEPCV_HOME")
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        for name in _READ:
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, project / name)
        shutil.copy(ROOT / f"examples/{example}.yaml", project / "params.yaml")
        changes: dict[str, object] = {"ingest.path": str(path.resolve())}
        if val_fraction is not None:
            changes["ingest.val_fraction"] = val_fraction
        set_values(project / "params.yaml", changes)
        target = out.resolve()
        os.chdir(project)
        os.environ["DEEPCV_HOME"] = str(project / "state")
        try:
            for stage in (ingest, preprocess):
                if stage is preprocess:  # which reads what `validate` would have quarantined: nothing
                    preprocess.QUARANTINE.parent.mkdir(parents=True)
                    preprocess.QUARANTINE.write_text("id\n", encoding="utf-8")
                if finish := stage.main():
                    finish()
        finally:
            os.chdir(here)
            os.environ.pop("DEEPCV_HOME")
            if home is not None:
                os.environ["DEEPCV_HOME"] = home
        shutil.move(project / preprocess.SHARDS, target)


def main() -> None:
    """Prepare what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="images: a tar or a folder")
    parser.add_argument("out", type=Path, help="the folder of shards to write")
    parser.add_argument("--example", default="cifar10-jpeg-gpu", help="whose params: a name of examples/")
    parser.add_argument("--val-fraction", type=float, help="instead of the example's")
    options = parser.parse_args()
    prepare(options.path, options.out, options.example, options.val_fraction)


if __name__ == "__main__":
    main()
