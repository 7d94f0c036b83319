from pathlib import Path

import pytest
import voluptuous
import yaml
from dvc.schema import COMPILED_LOCKFILE_SCHEMA

from deepcv import recovery

REPOSITORY = Path(__file__).parents[1]
CONFLICT = "schema: '2.0'\n<<<<<<< HEAD\nstages: {}\n=======\nstages:\n>>>>>>> other\n"


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEEPCV_HOME", raising=False)
    monkeypatch.setattr(recovery, "_WRITING_S", 0.0)
    return tmp_path / "dvc.lock"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "stages: {}",
        "schema",
        "schema: '2.0'\nstages:\n  a:\n    deps:\n    - pa",
        "schema: '2.0\n",
        "\x00\x00",
    ],
)
def test_a_half_written_lock_is_moved_and_named(lock: Path, text: str) -> None:
    lock.write_text(text)
    told = recovery.set_aside_damaged_lock()
    assert not lock.exists()
    kept = lock.parent / ".deepcv" / "dvc.lock.damaged"
    assert kept.read_text() == text
    assert str(kept) in told


def test_whatever_dvc_refuses_of_a_half_written_lock_is_moved(lock: Path) -> None:
    """Cut anywhere in the first stage and the beginning of the next."""
    whole = (REPOSITORY / "dvc.lock").read_text()
    cuts = range(whole.index("\n  validate:") + 300)
    missed, refused = [], 0
    for end in cuts:
        try:
            COMPILED_LOCKFILE_SCHEMA(yaml.load(whole[:end], yaml.CSafeLoader))
        except (voluptuous.Invalid, yaml.YAMLError):
            refused += 1
            lock.write_text(whole[:end])
            if not recovery.set_aside_damaged_lock():
                missed.append(whole[:end][-60:])
    assert not missed
    assert refused > 1000


@pytest.mark.parametrize("text", ["schema: '2.0'\n", CONFLICT, (REPOSITORY / "dvc.lock").read_text(), None])
def test_a_whole_lock_and_a_merge_conflict_stay(lock: Path, text: str | None) -> None:
    if text is not None:
        lock.write_text(text)
    assert recovery.set_aside_damaged_lock() == ""
    assert (lock.read_text() if lock.exists() else None) == text


def test_a_lock_that_is_being_written_is_left_alone(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock.write_text("")
    monkeypatch.setattr(recovery.time, "sleep", lambda _: lock.write_text("schema: '2.0'\n"))
    assert recovery.set_aside_damaged_lock() == ""
    assert lock.read_text() == "schema: '2.0'\n"


@pytest.mark.parametrize(
    ("text", "stays"), [("", False), ('{"write": {', False), ("\x00", False), ('{"read": {}}', True)]
)
def test_a_half_written_list_of_used_files_is_removed(lock: Path, text: str, stays: bool) -> None:
    rwlock = lock.parent / ".dvc/tmp/rwlock"
    assert recovery.mend() == []
    rwlock.parent.mkdir(parents=True)
    rwlock.write_text(text)
    told = recovery.mend()
    assert rwlock.exists() == stays
    assert told == (
        [] if stays else [f"{rwlock} was half-written, as by a killed DVC; it is removed, nothing depends on it"]
    )


def test_a_list_that_is_being_written_is_left_alone(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rwlock = lock.parent / ".dvc/tmp/rwlock"
    rwlock.parent.mkdir(parents=True)
    rwlock.write_text("")
    monkeypatch.setattr(recovery.time, "sleep", lambda _: rwlock.write_text("{}"))
    assert recovery.mend() == []
    assert rwlock.read_text() == "{}"
