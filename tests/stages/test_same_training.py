"""Two experiments that train the same at once, in copies of the project that share its folder of state, as DVC runs them."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import toys
from mlflow import MlflowClient
from test_train import runs

from deepcv import tracking
from deepcv.files import sha256
from deepcv.locks import locked
from deepcv.stages import archive, ended, train

EPOCHS = 60  # so that the first is stopped before its end


def start(project: Path, state: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "deepcv.stages.train"], cwd=project, text=True, stderr=(project / "said").open("w"),
        env={**os.environ, "PYTHONPATH": str(toys.REPOSITORY), "GLOO_SOCKET_IFNAME": "lo", "DEEPCV_HOME": str(state)},
    )  # fmt: skip


def with_children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    leader = psutil.Process(process.pid)
    return [leader, *leader.children(recursive=True)]


@pytest.mark.parametrize(
    ("first_is", "processes"),
    [
        ("continued", 1),
        pytest.param("killed", 1, marks=pytest.mark.acceptance),  # each starts two trainings
        pytest.param("continued", 2, marks=pytest.mark.acceptance),
        pytest.param("killed", 2, marks=pytest.mark.acceptance),
    ],
)
def test_the_second_waits_and_there_is_one_run(first_is: str, processes: int, project: Path, tmp_path: Path) -> None:
    Path("dvc.yaml").write_text("stages:\n  train: {cmd: '', params: [train], deps: [data/shards]}\n")
    toys.network(tmp_path, toys.NETWORK.replace("  - {id: drop, op: dropout, p: 0.3}\n", ""))
    params = Path("params.yaml")
    params.write_text(params.read_text().replace("epochs: 3", f"epochs: {EPOCHS}, processes: {processes}"))
    copies = [tmp_path / "copies" / name for name in ("first", "second")]
    for copy in copies:
        shutil.copytree(tmp_path, copy, ignore=shutil.ignore_patterns("copies", project.name))
    state = project
    first = start(copies[0], state)
    while not list(state.glob("checkpoints/*/*.pt")):
        assert first.poll() is None, (copies[0] / "said").read_text()
        time.sleep(0.01)
    stopped = with_children(first)
    for process in stopped:
        process.suspend()
    second = start(copies[1], state)
    while "another process trains the same" not in (copies[1] / "said").read_text():
        assert second.poll() is None, (copies[1] / "said").read_text()
        time.sleep(0.1)
    assert len(list(state.glob("checkpoints/*.lock"))) == 1
    for process in stopped:
        process.resume() if first_is == "continued" else process.kill()
    said = (copies[1] / "said").read_text
    assert second.wait(120) == 0, said()
    assert said().count("another process trains the same; this one waits until it has ended") == 1
    assert "Traceback" not in said()
    tracking.connect()  # else the client is that of the test before
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert run.data.tags[tracking.MODEL_TAG] == sha256(copies[1] / train.MODEL / "model.pt")
    epochs = [point.step for point in MlflowClient().get_metric_history(run.info.run_id, "val_loss")]
    assert epochs == list(range(1, EPOCHS + 1))
    assert not list((state / "checkpoints").iterdir())
    if first_is == "continued":
        assert first.wait(60) == 0, (copies[0] / "said").read_text()
        assert "this training has ended: its outputs are written again" in said()
        for path in (copies[0] / train.MODEL).iterdir():
            assert path.read_bytes() == (copies[1] / train.MODEL / path.name).read_bytes()


def test_who_waited_for_one_that_was_interrupted_goes_on_with_its_checkpoints(store: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert not train.has_ended("key", waited=True)
    toys.recorded()
    ended.keep("key", tmp_path / "model")
    assert train.has_ended("key", waited=False)
    toys.recorded()
    assert not train.has_ended("key", waited=False)
    assert train.has_ended("key", waited=True)
    folder = train.checkpoint_folder("key")
    assert not train.has_ended("key", waited=True)
    with locked(archive.lock("key")):  # who restores it does so now
        ended.sweep()
    assert ended.is_kept("key")
    ended.sweep()
    assert not ended.is_kept("key")
    assert [folder] == list((store / "checkpoints").iterdir())
