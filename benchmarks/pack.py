"""From a tar of images to packed arrays: DeepCV, which checks them too, against tar and torchvision, which do not.

    python -m benchmarks.pack --path cifar10-jpeg.tar.gz [--quick]

DeepCV: the stages ingest, validate and preprocess, a process each, as `dvc repro` starts them. Peer: `tar` unpacks, and
torchvision's ImageFolder (Pillow) behind a DataLoader with two workers fills one .npy of uint8 per split. Both from start to end of
their processes, in turn; `value` and `baseline` are images per second, medians. `tar` is not in the baseline: on one machine it wrote
the 60,000 files in 2 s and in 35 s (`unpack_s`, `ratio_with_tar`). `read_only` is the peer's rate without its imports too.
`noop_s`: `dvc repro preprocess` when nothing changed. Quick: every tenth image, once.
"""

import argparse
import io
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from benchmarks.checkouts import checkout, environment
from benchmarks.result import ROOT, cpu_s, emit
from deepcv.data.sources import open_source
from deepcv.params.edit import set_values

TARGET, NOOP_S = 1.6, 3.0
_STAGES = ("ingest", "validate", "preprocess")
_BATCH = 256


def write_part(tar: Path, part: Path, step: int) -> None:
    """Write a tar of every `step`-th image."""
    with tarfile.open(part, "w:gz") as packed:
        for sample in itertools.islice(open_source(tar, ROOT).samples(), 0, None, step):
            info = tarfile.TarInfo(sample.id)
            info.size = len(sample.encoded)
            packed.addfile(info, io.BytesIO(sample.encoded))


def peer(folder: Path) -> None:
    """Fill one array per split of `folder` and print the seconds that took."""
    import numpy as np
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import PILToTensor

    started, images = time.perf_counter(), 0
    for split in sorted(path for path in folder.iterdir() if path.is_dir()):
        dataset = ImageFolder(str(split), PILToTensor())
        channels, height, width = dataset[0][0].shape
        shape = (len(dataset), height, width, channels)
        array = np.lib.format.open_memmap(folder / f"{split.name}.npy", mode="w+", dtype=np.uint8, shape=shape)
        done = 0
        for batch, _ in DataLoader(dataset, batch_size=_BATCH, num_workers=2):
            array[done : done + len(batch)] = batch.permute(0, 2, 3, 1).numpy()
            done += len(batch)
        np.save(folder / f"{split.name}_labels.npy", np.array(dataset.targets))
        images += done
    print(json.dumps({"images": images, "images_per_s": images / (time.perf_counter() - started)}))


def run(words: list[str], folder: Path) -> tuple[float, float, str]:
    """Wall seconds, CPU seconds and standard output of a command."""
    started, spent = time.perf_counter(), cpu_s()
    done = subprocess.run(
        words, cwd=folder, env=environment(folder), check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )  # fmt: skip
    return time.perf_counter() - started, cpu_s() - spent, done.stdout


def torchvision_side(tar: Path, parent: Path) -> tuple[float, float, float, float]:
    """Wall and CPU seconds without unpacking, images per second of the reading alone, wall seconds of unpacking."""
    folder = parent / "unpacked"
    folder.mkdir()
    unpack_s, _, _ = run(["tar", "xf", str(tar), "-C", str(folder)], ROOT)
    (top,) = [folder] if (folder / "train").is_dir() else list(folder.iterdir())
    read_s, read_cpu_s, told = run([sys.executable, "-m", "benchmarks.pack", "--peer", str(top)], ROOT)
    shutil.rmtree(folder)
    return read_s, read_cpu_s, json.loads(told)["images_per_s"], unpack_s


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, help="a tar of train and test images in class folders")
    parser.add_argument("--quick", action="store_true", help="a tenth of the images, once")
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        peer(options.peer)
        return
    if not options.path:
        parser.error("--path is needed")
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        tar, project = options.path.resolve(), Path(name, "project")
        if options.quick:
            tar = Path(name, "part.tar.gz")
            write_part(options.path, tar, 10)
        project.mkdir()
        checkout(project)
        (project / "dvc.lock").unlink()
        shutil.copy(ROOT / "examples/cifar10-jpeg.yaml", project / "params.yaml")
        set_values(project / "params.yaml", {"ingest.path": str(tar)})
        images = open_source(tar, ROOT).count
        ours, theirs, by_stage = [], [], []
        for _ in range(1 if options.quick else 3):
            parts = [run([sys.executable, "-m", f"deepcv.stages.{stage}"], project)[:2] for stage in _STAGES]
            by_stage.append([round(wall_s, 2) for wall_s, _ in parts])
            ours.append((sum(wall_s for wall_s, _ in parts), sum(spent_s for _, spent_s in parts)))
            theirs.append(torchvision_side(tar, Path(name)))
        run(["dvc", "repro", "preprocess"], project)
        noop_s = statistics.median(run(["dvc", "repro", "preprocess"], project)[0] for _ in range(3))
    wall = [statistics.median(side[0] for side in sides) for sides in (ours, theirs)]
    unpack_s = statistics.median(side[3] for side in theirs)
    emit(
        "pack", value=round(images / wall[0]), baseline=round(images / wall[1]), n=len(ours),
        target=f">= {TARGET} x images/s of ImageFolder and Pillow with 2 workers; no-op <= {NOOP_S:g} s",
        holds=wall[1] / wall[0] >= TARGET and noop_s <= NOOP_S, images=images, wall_s=[round(s, 2) for s in wall],
        side_cpu_s=[round(statistics.median(side[1] for side in sides), 2) for sides in (ours, theirs)],
        stages_s=by_stage, read_only=round(statistics.median(side[2] for side in theirs)), unpack_s=round(unpack_s, 2),
        ratio_with_tar=round((wall[1] + unpack_s) / wall[0], 2), noop_s=round(noop_s, 2),
    )  # fmt: skip


if __name__ == "__main__":
    main()
