"""Stage `preprocess`: decode and prepare with OpenCV into memory-mapped shards; statistics of the train split."""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from tqdm import tqdm

from deepcv.data import manifest, packed, preparation, quarantine, shards
from deepcv.data.samples import DataError
from deepcv.data.targets import Targets
from deepcv.errors import DeepcvError
from deepcv.files import atomic_folder, sha256
from deepcv.home import state_dir
from deepcv.images import ImageRecipe
from deepcv.locks import locked
from deepcv.params.base import load_section
from deepcv.params.preprocess import PreprocessParams
from deepcv.stages import entry
from deepcv.task import FurtherTarget, Task

RAW = Path("data/raw")
QUARANTINE = Path("data/validation/quarantine.csv")
SHARDS = Path("data/shards")
_FORGOTTEN_S = 30 * 24 * 3600


def main() -> Callable[[], None]:
    """Read data/raw without what `validate` quarantined, write data/shards."""
    params = load_section(PreprocessParams)
    recipe = ImageRecipe(**params.model_dump(exclude={"store", "target", "further_targets"}))
    encoded = params.store == "encoded"
    info = manifest.read_info(RAW)
    left_out = quarantine.read(QUARANTINE)
    counts = preparation.count(RAW, left_out)
    if left_out:
        quarantine.check_enough_is_left(preparation.count(RAW), counts)
    targets = preparation.learned(RAW, Task(params.target), info.classes, left_out)
    further = [
        preparation.learned(RAW, Task(name), info.classes, left_out, "preprocess.further_targets")
        for name in params.further_targets
    ]
    described = [FurtherTarget(one.task, one.names) for one in further]
    check_columns(targets, described)
    with working_folder(params) as work:
        try:
            with tqdm(total=counts.total(), desc="preprocess", unit="image", mininterval=0.5) as bar:
                preparation.prepare_all(
                    RAW, work, recipe, targets, left_out, further=further,
                    encoded_train=encoded, processes=len(os.sched_getaffinity(0)), done=lambda n: bar.update(n),
                )  # fmt: skip
            for place, one in enumerate([targets, *further]):
                warn_of_unseen(one, work / shards.labels_file("train", place))
            with atomic_folder(SHARDS) as folder:
                if encoded:
                    files = preparation.encoded_images(RAW, "train", info.classes, left_out)
                    packed.write(folder / shards.TRAIN_FOLDER, files, info.classes)
                (work / preparation.FINISHED).unlink()  # from here on a killed run starts anew
                statistics = preparation.encoded_statistics(work, recipe) if encoded else None
                for path in sorted(work.glob("*.npy")):
                    shutil.move(path, folder / path.name)
                shards.write_description(
                    folder, name=info.name, classes=targets.names, task=targets.task,
                    test_digest=quarantine.digest_of_kept_test_images(RAW, left_out, targets.task),
                    recipe=recipe.stored(), statistics=statistics,
                    further=described,
                )  # fmt: skip
        except OSError as error:
            if error.errno not in entry.NO_SPACE:
                raise
            shutil.rmtree(work, ignore_errors=True)
            smaller = "store to pixels" if encoded else "height and width lower"
            raise DeepcvError(
                f"no room for the prepared images in {work} and {SHARDS} ({os.strerror(error.errno or 0)}); free space "
                f"(`dvc gc -w` drops data of other versions), or set preprocess.{smaller}"
            ) from error
    return lambda: _remove(work)


def check_columns(targets: Targets, further: Sequence[FurtherTarget]) -> None:
    """Raise DataError where two columns of a prediction would have one name: the later would hide the other."""
    owners: dict[str, list[str]] = {}
    columns = [(targets.task.of, targets.task.columns(targets.names)), *((one.of, one.columns) for one in further)]
    for of, names in columns:
        for name in names:
            owners.setdefault(name, []).append(of)
    if twice := [f"{name} (of {' and of '.join(of)})" for name, of in owners.items() if len(of) > 1]:
        raise DataError(
            f"preprocess.further_targets: a prediction would have two columns {', and two '.join(twice)}; rename a column of the table"
        )


def warn_of_unseen(targets: Targets, file: Path) -> None:
    """Say which labels no train image has, whose targets are in `file`."""
    if targets.task.kind == "multi_label":
        there = np.load(file, mmap_mode="r").any(axis=0)
        if unseen := [name for name, found in zip(targets.names, there, strict=True) if not found]:
            print(f"warning: no train image has {', '.join(unseen)}", file=sys.stderr)


@contextmanager
def working_folder(params: PreprocessParams) -> Iterator[Path]:
    """Yield this preparation's folder, locked; those that nobody took up again for a month are removed.

    It lies outside DVC's outputs, which DVC deletes before a stage runs. Its name is the digest of all that decides the
    result: params, manifest, quarantine, library versions and loaded code.
    """
    digest = hashlib.sha256(json.dumps(params.model_dump(), sort_keys=True).encode())
    sources = [module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "deepcv"]
    files = [RAW / "manifest.parquet", RAW / "dataset.json", QUARANTINE, Path("versions.yaml")]
    for path in [*files, *(Path(source) for source in sorted(source for source in sources if source))]:
        digest.update(bytes.fromhex(sha256(path)))
    folder = state_dir() / "preprocess" / digest.hexdigest()[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    for other in {path.with_suffix("") for path in folder.parent.iterdir()} - {folder}:
        with suppress(FileNotFoundError):  # another preparation may sweep it at the same time
            if not other.exists() or time.time() - other.stat().st_mtime > _FORGOTTEN_S:
                _remove(other)
    with locked(folder.with_suffix(".lock")):  # two experiments may prepare the same: the second one waits
        folder.mkdir(exist_ok=True)
        yield folder


def _remove(folder: Path) -> None:
    """Remove a working folder and its lock, unless another process works there."""
    with suppress(BlockingIOError), locked(folder.with_suffix(".lock"), wait=False):
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    entry.run(main)
