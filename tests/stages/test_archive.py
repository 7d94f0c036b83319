"""The only copy of a training is never lost, wherever a process is killed; and what was copied comes back."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import kill_points
import pytest
import torch
import toys
from kill_points import FILES, FORMER, NAME, artifacts, new_run, read, write
from mlflow import MlflowClient
from test_cli import message
from toys import recorded

from deepcv import tracking
from deepcv.cli import main
from deepcv.errors import DeepcvError
from deepcv.stages import archive, train
from deepcv.stages.training_log import TrainingLog
from deepcv.tracking import RegistryError
from deepcv.training import hardware
from deepcv.training.history import EpochRecord


@pytest.mark.parametrize(
    ("every", "stored", "fetched"),
    [(4, 6, 3), pytest.param(1, 26, 13, marks=pytest.mark.acceptance)],  # all of them take a minute
)
def test_a_kill_at_any_point_loses_no_copy(store: Path, every: int, stored: int, fetched: int) -> None:
    """In a process of its own: its children are forks, and would have what other tests left running in this one."""
    command = [sys.executable, kill_points.__file__, str(every)]
    done = subprocess.run(command, env={**os.environ, "DEEPCV_HOME": str(store)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"killed at {stored} points of storing and {fetched} of fetching" in done.stdout, done.stdout


def test_what_reads_back_otherwise_is_not_proven(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id, folder = new_run(), write(archive.local_folder("key"), FILES)
    log_artifact = tracking.log_artifact

    def cut(run_id: str, file: Path, artifact_path: str) -> None:
        log_artifact(run_id, file, artifact_path)
        path = artifacts(store, run_id).parent / artifact_path / file.name
        path.write_bytes(path.read_bytes()[:-1])

    with monkeypatch.context() as patch:
        patch.setattr(tracking, "log_artifact", cut)
        with pytest.raises(
            DeepcvError, match=rf"{run_id}: checkpoints/best/epoch_0002\.pt is damaged: expected sha256"
        ):
            archive.store(run_id, folder)
        patch.setattr(tracking, "log_artifact", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(DeepcvError, match=r"state/checkpoints/key cannot be copied .* No space left; it stays"):
            archive.store(run_id, folder)
    with pytest.raises(RegistryError, match=f"{run_id} holds no checkpoints"):
        archive.fetch(run_id, archive.local_folder("other"))
    archive.store(run_id, folder)
    assert archive.fetch(run_id, archive.local_folder("other"))
    assert read(archive.local_folder("other")) == FILES


@pytest.mark.usefixtures("store")
def test_the_one_that_has_come_further_stays() -> None:
    run_id, folder = new_run(), archive.local_folder("key")
    archive.store(run_id, write(folder, FILES))
    shutil.rmtree(folder)
    write(folder, FORMER)  # of a machine that was left before the other went on
    with pytest.raises(DeepcvError, match=rf"{run_id} holds more of this training .* `deepcv resume {run_id}` fetches"):
        archive.store(run_id, folder)
    assert archive.fetch(run_id, folder)
    assert read(folder) == FILES
    write(folder, {"checkpoint_12.pt": b"twelve"})
    assert not archive.fetch(run_id, folder)
    assert (folder / "checkpoint_12.pt").exists()


@pytest.mark.parametrize("damage", [b"", b"[]", b"{", b"\xff"])
def test_a_manifest_that_cannot_be_read_proves_nothing(damage: bytes, store: Path) -> None:
    run_id, folder = new_run(), write(archive.local_folder("key"), FILES)
    archive.store(run_id, folder)
    (artifacts(store, run_id) / archive.MANIFEST).write_bytes(damage)
    archive.store(run_id, folder)
    assert archive.fetch(run_id, archive.local_folder("other"))
    (artifacts(store, run_id) / archive.MANIFEST).write_bytes(damage)
    with pytest.raises(RegistryError, match="holds no checkpoints"):
        archive.fetch(run_id, archive.local_folder("third"))


def test_a_damaged_copy_is_not_fetched(store: Path) -> None:
    run_id, folder = new_run(), write(archive.local_folder("key"), FILES)
    archive.store(run_id, folder)
    archive.remove(folder)
    content = bytearray(FILES["checkpoint_9.pt"])
    content[7] ^= 1
    (artifacts(store, run_id) / "checkpoint_9.pt").write_bytes(content)
    with pytest.raises(RegistryError, match=r"checkpoints/checkpoint_9\.pt is damaged"):
        archive.fetch(run_id, folder)
    assert not list(folder.parent.iterdir())
    (artifacts(store, run_id) / "checkpoint_9.pt").unlink()
    with pytest.raises(RegistryError, match=r"checkpoints/checkpoint_9\.pt cannot be read"):
        archive.fetch(run_id, folder)
    evil = {"../../../checkpoint_9.pt": "0" * 64}
    tracking.log_json(run_id, evil, "checkpoints/manifest.json")
    with pytest.raises(RegistryError, match="cannot be read"):
        archive.fetch(run_id, folder)


@pytest.fixture
def project(project: Path) -> Path:
    """The same with an epoch more, whose best epochs and checkpoints go to the run."""
    params = Path("params.yaml")
    params.write_text(params.read_text().replace("epochs: 3", "epochs: 4, keep_best: 2, archive: true"))
    return project


def train_until(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ctrl-C interrupts it."""
    told = TrainingLog.epoch

    def interrupt(log: TrainingLog, record: EpochRecord) -> None:
        told(log, record)
        if record.epoch == epoch:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLog, "epoch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train.main()


def train_to_its_end() -> None:
    finish = train.main()
    assert finish is not None
    finish()


def only_run() -> str:
    (run,) = MlflowClient().search_runs([tracking.open_experiment(NAME)])
    return str(run.info.run_id)


def test_an_interrupted_training_goes_on_by_its_run_id(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """On another machine, which has the store and not the checkpoints; it ends as one that was not interrupted."""
    train_to_its_end()
    whole = artifacts(project, only_run())
    shutil.move(whole, tmp_path / "whole")
    model = (train.MODEL / "model.pt").read_bytes()
    best = {name: content for name, content in read(tmp_path / "whole").items() if name.startswith("best/")}
    assert len(best) == 2
    assert (tmp_path / "whole/checkpoint_12.pt").exists()
    assert not list((project / "checkpoints").iterdir())
    MlflowClient().delete_run(only_run())
    recorded()

    train_until(2, monkeypatch)
    run_id = only_run()
    told = capsys.readouterr().err
    assert f"MLflow run {run_id} has the checkpoints: `deepcv resume {run_id}`" in told
    (folder,) = (project / "checkpoints").iterdir()
    here = read(folder)
    main(["resume", run_id])
    assert capsys.readouterr().out.startswith(f"nothing to fetch: {folder} is there")
    shutil.rmtree(folder)
    main(["resume", run_id])
    told_now = capsys.readouterr()
    assert told_now.out.startswith(f"fetched {folder}\n`dvc repro train` goes on after step 6, with")
    assert not told_now.err
    assert read(folder) == here

    train_to_its_end()
    assert only_run() == run_id
    assert tracking.read_run(run_id).info.status == "FINISHED"
    assert [point.step for point in MlflowClient().get_metric_history(run_id, "val_loss")] == [1, 2, 3, 4]
    assert (train.MODEL / "model.pt").read_bytes() == model
    archived = read(artifacts(project, run_id))
    assert {name: content for name, content in archived.items() if name.startswith("best/")} == best
    assert sorted(archived.keys() - best.keys()) == ["checkpoint_12.pt", "checkpoint_9.pt"]
    assert not list((project / "checkpoints").iterdir())

    recorded()
    (train.MODEL / "model.pt").unlink()  # where its outputs are lost, nothing is trained again
    main(["resume", run_id])
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", None)
        train_to_its_end()
    assert (train.MODEL / "model.pt").read_bytes() == model


def test_a_training_whose_copy_fails_stays_and_is_copied_by_the_next(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise tracking.TrackingError("the store is full")

    with monkeypatch.context() as patch:
        patch.setattr(tracking, "log_artifact", refuse)
        train_until(2, monkeypatch)
        assert "cannot be copied" in capsys.readouterr().err
        with pytest.raises(
            DeepcvError, match=r"the store is full; it stays where it is, and the next `dvc repro` tries"
        ):
            train_to_its_end()
    (folder,) = (project / "checkpoints").iterdir()
    here = read(folder)
    assert "checkpoint_12.pt" in here
    train_to_its_end()
    assert read(artifacts(project, only_run())) == here
    assert not list((project / "checkpoints").iterdir())


def test_a_copy_that_takes_too_long_is_cut_off_and_nothing_is_lost(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who is told to end has five seconds; here half of one."""
    begun: list[Path] = []
    ended: list[Path] = []

    def copy(_run: str, file: Path, _to: str) -> None:
        begun.append(file)
        time.sleep(120)
        ended.append(file)

    with monkeypatch.context() as patch:
        patch.setattr(train, "_GRACE_S", 0.5)
        patch.setattr(tracking, "log_artifact", copy)
        train_until(2, monkeypatch)
    assert len(begun) == 1
    assert not ended
    assert "has the checkpoints" not in capsys.readouterr().err
    (folder,) = (project / "checkpoints").iterdir()
    assert "checkpoint_6.pt" in read(folder)
    assert not artifacts(project, only_run()).exists()
    train_to_its_end()
    assert "checkpoint_12.pt" in read(artifacts(project, only_run()))


def test_without_archive_nothing_goes_to_mlflow(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And it may be switched on for a training that has begun."""
    logs: list[TrainingLog] = []
    monkeypatch.setattr(train, "TrainingLog", lambda *given: logs.append(TrainingLog(*given)) or logs[-1])
    params = Path("params.yaml")
    params.write_text(params.read_text().replace("keep_best: 2, archive: true", "archive: false"))
    train_until(2, monkeypatch)
    run_id = logs[0].run_id()  # its thread lives on here
    assert not artifacts(project, run_id).exists()
    main(["resume", run_id])
    assert capsys.readouterr().out.startswith("nothing to fetch")
    params.write_text(params.read_text().replace("archive: false", "archive: true"))
    train_until(3, monkeypatch)
    assert only_run() == run_id
    assert "checkpoint_9.pt" in read(artifacts(project, run_id))


def test_resume_says_what_is_different_now(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_until(2, monkeypatch)
    params = Path("params.yaml")
    params.write_text(
        params.read_text().replace(
            "archive: true", "archive: true, lr: 0.5, schedules: {momentum: {kind: linear, end: 0.5}}"
        )
    )
    capsys.readouterr()
    main(["resume", only_run()])
    told = capsys.readouterr().err.splitlines()
    assert "warning: train.lr is 0.01 in the run, 0.5 in params.yaml" in told
    assert "warning: train.schedules.momentum.kind is unset in the run, linear in params.yaml" in told
    assert all("momentum" in line or "lr" in line for line in told)
    assert project.exists()


def test_resume_names_other_data_and_another_network(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    train_until(2, monkeypatch)
    capsys.readouterr()
    toys.write_shards(train.SHARDS, train=16)
    toys.network(tmp_path, toys.NETWORK.replace("channels: 4", "channels: 5"))
    main(["resume", only_run()])
    assert capsys.readouterr().err.splitlines() == [
        "warning: train.network makes another network than the run has",
        "warning: data/shards holds other data than the run has",
    ]
    shutil.rmtree(train.SHARDS)  # as in a new clone
    main(["resume", only_run()])
    assert "data" not in capsys.readouterr().err
    assert project.exists()


def test_resume_on_other_hardware_says_which_params_make_it_go_on(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params = Path("params.yaml")
    params.write_text(params.read_text().replace("precision: fp32", "precision: auto, threads: auto"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    monkeypatch.setattr(hardware, "_multiplies_bf16", lambda _: True)
    train_until(2, monkeypatch)
    run_id = only_run()
    (folder,) = (project / "checkpoints").iterdir()
    shutil.rmtree(folder)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(hardware, "_multiplies_bf16", lambda _: False)
    assert message(capsys, "resume", run_id) == (
        f"deepcv: MLflow run {run_id} has precision bf16, threads 1, and this would be precision fp32, threads 2 here: another "
        "training would begin. Nothing is fetched; set train.precision: bf16, train.threads: 1 in params.yaml and resume again"
    )
    assert not folder.exists()
    pinned = "precision: bf16, threads: 1, channels_last: true, processes: 1"
    params.write_text(params.read_text().replace("precision: auto, threads: auto", pinned))
    capsys.readouterr()
    main(["resume", run_id])
    assert not capsys.readouterr().err
    train_to_its_end()
    assert only_run() == run_id
    assert [point.step for point in MlflowClient().get_metric_history(run_id, "val_loss")] == [1, 2, 3, 4]


def test_no_other_device_goes_on(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert project.exists()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_gpu = {"hardware": {"device": "cuda", "precision": "bf16", "channels_last": True, "threads": 1, "processes": 1}}
    run_id = tracking.start_run(NAME, "train", on_gpu, {tracking.TRAINING_TAG: "key"})
    assert "trained on a GPU, and torch sees none here: no other device can go on" in message(capsys, "resume", run_id)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(hardware, "_multiplies_bf16", lambda device: device == "cuda")
    assert "set train.device: cuda, train.precision: bf16 in params" in message(capsys, "resume", run_id)
    params = Path("params.yaml")
    params.write_text(params.read_text().replace("device: cpu, precision: fp32", "device: auto, channels_last: false"))
    on_cpu = {"hardware": {**on_gpu["hardware"], "device": "cpu"}}
    run_id = tracking.start_run(NAME, "train", on_cpu, {tracking.TRAINING_TAG: "key"})
    told = message(capsys, "resume", run_id)
    assert "and this would be device cuda, precision fp32, channels_last false here" in told
    assert "set train.device: cpu, train.precision: bf16, train.channels_last: true in params.yaml" in told


def test_resume_of_what_is_no_training(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert project.exists()
    assert "Run with id=none not found; `make ui` shows" in message(capsys, "resume", "none")
    other = tracking.start_run(NAME, "search", {}, {})
    assert message(capsys, "resume", other) == f"deepcv: MLflow run {other} (search) is none of the stage `train`"
    assert "holds no checkpoints (it gets them where train.archive is true" in message(capsys, "resume", new_run())
