"""One image replaced in a folder of 60,000: which stages run again, and what `deepcv data diff` shows.

    python -m benchmarks.one_image --path cifar10-jpeg.tar.gz [--quick]

The tar is unpacked, the pipeline run for one epoch and committed, one training image replaced by its mirror image, and the
pipeline run again. `value` is the number of images that the diff shows, `baseline` the one replaced. Quick: 2,000 images.
"""

import argparse
import itertools
import json
import re
import subprocess
import tempfile
from pathlib import Path

import cv2

from benchmarks.checkouts import checkout, environment
from benchmarks.result import ROOT, emit
from deepcv.data.sources import open_source
from deepcv.params.edit import set_values

_STAGES = ["ingest", "validate", "preprocess", "train", "evaluate", "export", "register"]
_QUICK = 30  # every thirtieth image


def command(folder: Path, *words: str) -> str:
    """Standard output of a command in the folder."""
    return subprocess.run(
        words, cwd=folder, env=environment(folder), check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def unpack(tar: Path, folder: Path, step: int) -> None:
    """Write every `step`-th image of the tar as a file, in folders of splits and classes."""
    for sample in itertools.islice(open_source(tar, ROOT).samples(), 0, None, step):
        path = folder / (sample.split or "") / sample.label / Path(sample.id).name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample.encoded)


def mirror(path: Path) -> None:
    """Replace an image by its mirror image."""
    cv2.imwrite(str(path), cv2.imread(str(path))[:, ::-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        project, images = Path(name, "project"), Path(name, "images")
        project.mkdir()
        checkout(project)
        (project / "dvc.lock").unlink()
        (project / "params.yaml").write_text((ROOT / "examples/cifar10-jpeg.yaml").read_text())
        unpack(options.path, images, _QUICK if options.quick else 1)
        set_values(project / "params.yaml", {"ingest.path": str(images), "train.epochs": 1})
        command(project, "dvc", "repro")
        command(project, "git", "add", "-A")
        command(project, "git", "-c", "user.name=b", "-c", "user.email=b@example.org", "commit", "-qm", "before")
        files = sorted(path for path in images.rglob("*.*") if path.is_file() and "test" not in path.parts)
        changed = files[len(files) // 2]
        mirror(changed)
        ran = re.findall(r"Running stage '(\w+)'", command(project, "dvc", "repro"))
        again = re.findall(r"Running stage '(\w+)'", command(project, "dvc", "repro"))
        told = json.loads(command(project, "deepcv", "data", "diff", "HEAD", "--json"))
    emit(
        "one-image", value=sum(told["counts"].values()), baseline=1, target="only ingest and its downstream; the diff shows that image",
        holds=ran[:1] == ["ingest"] and ran == [s for s in _STAGES if s in ran] and not again
        and sum(told["counts"].values()) == 1 and changed.name in json.dumps(told), n=1,
        stages=ran, images=told["after"]["images"], counts=told["counts"],
    )  # fmt: skip


if __name__ == "__main__":
    main()
