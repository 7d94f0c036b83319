"""Stage `ingest`: the raw dataset into one manifest and one packed file."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

from deepcv.data import exclusions, packing
from deepcv.data.labels import relabelled
from deepcv.data.samples import DataError, no_images
from deepcv.data.sources import open_source
from deepcv.data.splits import SplitRule
from deepcv.files import atomic_folder
from deepcv.home import state_dir
from deepcv.params.base import load_section
from deepcv.params.ingest import IngestParams
from deepcv.stages import entry

RAW = Path("data/raw")


def main() -> None:
    """Read `ingest.path`, write data/raw."""
    params = load_section(IngestParams)
    rule = SplitRule(
        params.val_fraction, params.test_fraction, params.seed, params.split, params.group_by, params.folds, params.fold
    )
    listed = exclusions.read(exclusions.FILE)
    with _alone():
        source = relabelled(open_source(Path(params.path), state_dir() / "downloads"), params.labels)
        kept = exclusions.Kept(
            tqdm(source.read(), total=source.count, desc="ingest", unit="image", mininterval=0.5), listed
        )
        with atomic_folder(RAW) as folder:
            images = packing.pack(
                source.check(kept), source.classes, folder, name=params.dataset, source=Path(params.path).name, rule=rule,
                processes=len(os.sched_getaffinity(0)),
            )  # fmt: skip
    unreadable = images.pop("unreadable", 0)
    counts = ", ".join(f"{count} {split}" for split, count in sorted(images.items(), key=lambda item: -item[1]))
    if kept.left_out:
        print(f"{exclusions.FILE}: {kept.left_out} images left out")
    if unreadable:
        print(f"{no_images(unreadable)}; each is packed as it is for `validate`, which judges it (readable)")
    print(f"{params.dataset}: {sum(images.values())} images of {len(source.classes)} classes: {counts}")


@contextmanager
def _alone() -> Iterator[None]:
    """Keep a second `ingest` out of this project: DVC's lock does it under `dvc repro`, nothing does where a person runs one."""
    RAW.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(RAW.parent, os.O_RDONLY)  # its lock needs no file of its own and goes with the process
    try:
        with suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataError(
                    f"another ingest writes {RAW} of this project; wait until it has ended, then run this again"
                ) from None
        yield
    finally:
        os.close(folder)


if __name__ == "__main__":
    entry.run(main)
