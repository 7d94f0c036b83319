"""Waiting for DVC's locks, and what is said meanwhile."""

import pytest
from dvc.lock import LockError

from flows.locking import LockTimeoutError, Patience

REPOSITORY = "the DVC repository is locked by pid 71 (dvc repro)"
STAGE = "'data/raw' is busy, it is being blocked by: (PID 71): dvc repro"


def wait(patience: Patience, *clauses: str) -> None:
    """Meet each clause as an obstacle once, then succeed."""
    left = list(clauses)

    def attempt() -> None:
        if left:
            raise LockError(left.pop(0))

    patience.keep_trying(attempt, str, pause=lambda _: None)
    assert not left


def test_a_process_in_the_way_is_named_once() -> None:
    said: list[str] = []
    patience = Patience(60, said.append)
    wait(patience, REPOSITORY, REPOSITORY, STAGE)
    wait(patience, STAGE)
    assert said == [f"{REPOSITORY}; waiting for it, up to 60 s"]


def test_each_process_in_the_way_is_named() -> None:
    said: list[str] = []
    wait(Patience(60, said.append), STAGE, STAGE.replace("71", "72"), "somebody has it", "somebody has it")
    assert [line.partition(";")[0] for line in said] == [STAGE, STAGE.replace("71", "72"), "somebody has it"]


def test_what_is_free_is_taken_without_a_word() -> None:
    said: list[str] = []
    wait(Patience(0, said.append))
    assert said == []


def test_patience_ends() -> None:
    with pytest.raises(LockTimeoutError, match=r"gave up after 0 s: .*pid 71"):
        wait(Patience(0, lambda _: None), REPOSITORY)
