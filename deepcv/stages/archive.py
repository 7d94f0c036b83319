"""A training's folder (checkpoints, models of its best epochs) in its MLflow run: copied and proven to be there, and fetched back.

It becomes the run's artifacts `checkpoints/`. `manifest.json` among them is written last and holds the sha256 of every file: what
it names has been read back.
"""

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from deepcv import tracking
from deepcv.errors import DeepcvError
from deepcv.files import atomic_folder, sha256
from deepcv.home import state_dir
from deepcv.tracking import RegistryError

FOLDER = PurePosixPath("checkpoints")  # `training/` is `lineage.write_training`'s
MANIFEST = "manifest.json"
_CHECKPOINT = re.compile(r"checkpoint_(\d+)\.pt")


def local_folder(key: str) -> Path:
    """Where the stage `train` keeps the checkpoints of the training with this key."""
    return state_dir() / "checkpoints" / key


def lock(key: str) -> Path:
    """The lock of the training with this key, which who holds its folder has: beside it, as that one is removed."""
    return local_folder(key).with_suffix(".lock")


def steps(names: Iterable[str]) -> int:
    """The iteration of the newest checkpoint among these files of a training's folder, 0 where there is none."""
    return max((int(found[1]) for name in names if (found := _CHECKPOINT.fullmatch(name))), default=0)


def files_of(folder: Path) -> list[str]:
    """The whole files of a training's folder, by their names in it; none where there is no folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.pt"))


def store(run_id: str, folder: Path) -> None:
    """Copy a training's folder to its run and prove by reading all of it back; the folder itself stays as it is.

    Of what an earlier call left in the run, only what this folder has too stays. Raises DeepcvError, also where the run holds more
    of this training than the folder does.
    """
    try:
        digests = {name: sha256(folder / name) for name in files_of(folder)}
        if steps(_manifest(run_id)) > steps(digests):
            raise DeepcvError(
                f"MLflow run {run_id} holds more of this training than {folder}: `deepcv resume {run_id}` fetches it"
            )
        for name in digests:
            tracking.log_artifact(run_id, folder / name, str((FOLDER / name).parent))
        for name, digest in digests.items():
            _check(run_id, name, tracking.artifact_file(run_id, str(FOLDER / name)), digest)
        tracking.log_json(run_id, digests, str(FOLDER / MANIFEST))
        if _manifest(run_id) != digests:
            raise RegistryError(f"MLflow run {run_id}: {FOLDER / MANIFEST} reads back as something else")
        for path in tracking.artifact_files(run_id, str(FOLDER)):
            if str(PurePosixPath(path).relative_to(FOLDER)) not in {*digests, MANIFEST}:
                tracking.delete_artifact(run_id, path)
    except (tracking.TrackingError, OSError) as error:
        raise DeepcvError(
            f"{folder} cannot be copied to MLflow run {run_id}: {tracking.reason(error)}; "
            "it stays where it is, and the next `dvc repro` tries again"
        ) from error


def remove(folder: Path) -> None:
    """Remove a training's folder, at once: what is left by a crash is not taken for the whole."""
    aside = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    shutil.rmtree(aside)


def fetch(run_id: str, folder: Path) -> bool:
    """Bring back what `store` copied, as `folder`; return whether it had to: one that is as far is left as it is.

    Raises RegistryError where the run holds nothing whole.
    """
    digests = _manifest(run_id)
    here = steps(files_of(folder))
    if here and here >= steps(digests):
        return False
    if not digests:
        raise RegistryError(
            f"MLflow run {run_id} holds no checkpoints (it gets them where train.archive is true, when the training ends "
            f"or is interrupted), and there are none in {folder}"
        )
    with atomic_folder(folder) as aside:
        for name, digest in digests.items():
            archived = tracking.artifact_file(run_id, str(FOLDER / name))
            (aside / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(archived, aside / name)
            _check(run_id, name, aside / name, digest)
    return True


def _manifest(run_id: str) -> Mapping[str, str]:
    """Sha256 of each file that the run is proven to hold; empty where there is none, or it cannot be read."""
    path = str(FOLDER / MANIFEST)
    if path not in tracking.artifact_files(run_id, str(FOLDER)):
        return {}
    try:
        content = json.loads(tracking.artifact_file(run_id, path).read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _check(run_id: str, name: str, path: Path, digest: str) -> None:
    if (found := sha256(path)) != digest:
        raise RegistryError(
            f"MLflow run {run_id}: {FOLDER / name} is damaged: expected sha256 {digest[:12]}…, got {found[:12]}…"
        )
