"""The private places of DVC that flows/ stands on. If one fails after an upgrade of DVC, look at flows/stages.py."""

import inspect

import dvc.repo.reproduce
import dvc.rwlock
import dvc.stage.run
from dvc.lock import Lock, LockBase
from dvc.repo import Repo
from dvc.stage import Stage
from dvc.stage.decorators import unlocked_repo


def test_a_stage_command_goes_through_the_function_that_flows_replace() -> None:
    assert str(inspect.signature(dvc.stage.run._run)) == "(executable, cmd, **kwargs)"
    assert "_run" in dvc.stage.run.cmd_run.__code__.co_names  # looked up in the module at each call
    assert inspect.getmodule(dvc.stage.run.cmd_run) is dvc.stage.run
    assert list(inspect.signature(dvc.stage.run._make_cmd).parameters) == ["executable", "cmd"]


def test_reproduce_takes_a_hook_per_stage() -> None:
    hook = inspect.signature(dvc.repo.reproduce._reproduce).parameters["repro_fn"]
    assert hook.default is dvc.repo.reproduce._reproduce_stage
    assert str(inspect.signature(dvc.repo.reproduce._reproduce_stage)).startswith("(stage: 'Stage', **kwargs)")
    assert "kwargs" in inspect.signature(Repo.reproduce).parameters


def test_the_lock_is_an_attribute_with_four_members() -> None:
    members = {name for name in vars(LockBase) if not name.startswith("_")}
    assert members == {"lock", "unlock", "is_locked", "lockfile"}
    assert issubclass(Lock, LockBase)
    assert {"repo", "lock", "unlock"} <= set(inspect.getclosurevars(unlocked_repo).unbound | set(_names(unlocked_repo)))
    assert callable(Repo._reset)


def test_a_stage_holds_its_params_files_for_reading_until_dvc_has_written_them_down() -> None:
    assert str(inspect.signature(dvc.rwlock.rwlock)) == "(tmp_dir, fs, cmd, read, write, hardlink)"
    source = inspect.getsource(Stage)
    assert '@rwlocked(read=["deps"], write=["outs"])\n    def reproduce(' in source


def _names(function: object) -> list[str]:
    (inner,) = [const for const in function.__code__.co_consts if inspect.iscode(const)]  # type: ignore[attr-defined]
    return list(inner.co_names)
