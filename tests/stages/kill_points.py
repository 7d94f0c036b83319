"""Kill what copies a training to its run, and what fetches it, before each of its changes of files: no copy is ever lost.

DEEPCV_HOME=STATE python tests/stages/kill_points.py EVERY      (a part of test_archive.py; STATE holds an empty store)

Only before every EVERY-th change; the sample must meet each state that `main` knows.
"""

import importlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deepcv import tracking
from deepcv.home import state_dir
from deepcv.stages import archive

NAME = "deepcv-toy"
FILES = {"checkpoint_9.pt": b"nine" * 5000, "best/epoch_0002.pt": b"second" * 5000}
FORMER = {"checkpoint_6.pt": b"six", "best/epoch_0001.pt": b"first", "best/epoch_0002.pt": FILES["best/epoch_0002.pt"]}
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.copyfile")


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """A training's folder, with what a killed process may have left in it."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / ".epoch_0003.pt.99.tmp").write_bytes(b"hal")
    return folder


def read(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in archive.files_of(folder)}


def artifacts(store: Path, run_id: str) -> Path:
    return store / "mlflow/artifacts" / NAME / run_id / "artifacts/checkpoints"


def new_run() -> str:
    return tracking.start_run(NAME, "train", {}, {tracking.TRAINING_TAG: "key"})


def end(run_id: str, folder: Path) -> None:
    """What the stage `train` does at the end of a training."""
    archive.store(run_id, folder)
    tracking.finish(run_id)
    archive.remove(folder)


def killed_at(point: int, work: Callable[[], Any]) -> bool:
    """Do `work` in a process that kills itself before its change number `point` of files; whether it came that far.

    Point 0 kills nothing.
    """

    def run() -> None:
        left = point

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            if event in CHANGES or (event == "open" and "checkpoints" in str(arguments[0])):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        tracking.connect()
        sys.addaudithook(count)
        work()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(60)
    assert process.exitcode in ((0, -signal.SIGKILL) if point else (0,)), process.exitcode
    return process.exitcode != 0


def reset(store: Path, before: Path) -> None:
    shutil.rmtree(store)
    shutil.copytree(before, store)


def main(store: Path, aside: Path, every: int) -> None:
    """At the end of a training that was interrupted once, so that its run holds an earlier state; then fetch it."""
    folder = archive.local_folder("key")

    def interrupted() -> None:
        (aside / "run_id").write_text(run_id := new_run())
        archive.store(run_id, write(folder, FORMER))

    killed_at(0, interrupted)
    run_id = (aside / "run_id").read_text()
    there = artifacts(store, run_id)
    shutil.rmtree(folder)
    write(folder, FILES)
    shutil.copytree(store, before := aside / "before")

    stored = []
    states = set()
    while killed_at(point := every * (len(stored) + 1), lambda: end(run_id, folder)):
        here = folder.exists()
        assert not here or read(folder) == FILES
        assert here or read(there) == FILES
        states.add((here, read(there) == FILES))
        if here:
            killed_at(0, lambda: end(run_id, folder))
        assert not folder.exists()
        assert read(there) == FILES  # what was of the earlier state only is gone
        reset(store, before)
        stored.append(point)
    assert states == {(True, False), (True, True), (False, True)}, states

    shutil.rmtree(before)
    shutil.copytree(store, before)
    fetched = []
    while killed_at(point := every * (len(fetched) + 1), lambda: archive.fetch(run_id, folder)):
        assert read(there) == FILES
        assert not folder.exists() or read(folder) == FILES
        killed_at(0, lambda: archive.fetch(run_id, folder))
        assert read(folder) == FILES
        reset(store, before)
        fetched.append(point)
    assert read(folder) == FILES
    print(f"killed at {len(stored)} points of storing and {len(fetched)} of fetching")


if __name__ == "__main__":
    for module in ("tracking", "model_registry"):  # which MLflow imports late: once for all children
        importlib.import_module(f"mlflow.store.{module}.sqlalchemy_store")
    with tempfile.TemporaryDirectory() as name:
        main(state_dir(), Path(name), int(sys.argv[1]))
