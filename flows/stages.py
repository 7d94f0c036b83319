"""Run the stages of a DVC graph in this process, one callback per stage, with their output as it comes.

Two private places of DVC are used, both held by tests/flows/test_dvc_contract.py: `dvc.stage.run._run`, replaced for
the duration of a run, and the `repro_fn` argument that DVC's own `dvc exp run` hands to `Repo.reproduce`. The imports
that nothing here uses are those that DVC does at first use (0.3 s): so they are done before a run begins.
"""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol

import dvc.cachemgr
import dvc.data_cloud
import dvc.repo.graph
import dvc.repo.index
import dvc.repo.metrics.show
import dvc.repo.plots
import dvc.stage.run
import dvc.utils.strictyaml
import scmrepo.git  # noqa: F401
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.repo.reproduce import _reproduce_stage
from dvc.rwlock import rwlock
from dvc.stage.exceptions import StageCmdFailedError

from flows.locking import Patience, PatientLock
from flows.processes import Lines, run

CACHED, RESTORED, RAN, FAILED = "Cached", "Restored", "Ran", "Failed"
_TAIL_LINES = 5


@dataclass(frozen=True)
class Outcome:
    """What happened to a stage: `state` is one of the four above, `reason` says why where it failed."""

    stage: str
    state: str
    reason: str = ""


class StageFailedError(Exception):
    """A stage failed; the message is complete."""


class UnknownStageError(Exception):
    """A target is not in dvc.yaml; the message is complete."""


class Watcher(Protocol):
    """Is told what a running stage does."""

    def command(self) -> None:
        """A command of the stage starts."""

    def line(self, text: str) -> None:
        """The stage printed a line."""

    def progress(self, text: str) -> None:
        """The stage printed a line that the next one overwrites (a progress bar)."""


class Commands:
    """Runs the commands of one stage and passes their output on."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self.started = 0
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)  # the last lines printed, for the reason of a failure

    def run(self, executable: str | None, cmd: str, **popen: Any) -> None:
        """Run one command; the same signature and the same error as `dvc.stage.run._run`."""
        self.started += 1
        self._watcher.command()
        environment = dict(popen.pop("env"))
        # `python` in a stage's command is the Python that runs the flow, and its output is not held back.
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
        environment["PYTHONUNBUFFERED"] = "1"
        lines = Lines(self._line, self._watcher.progress)
        status = run(dvc.stage.run._make_cmd(executable, cmd), lines, env=environment, **popen)
        if status != 0:
            raise StageCmdFailedError(cmd, status)

    def _line(self, text: str) -> None:
        self.tail.append(text)
        self._watcher.line(text)


@contextmanager
def _dvc_runs(commands: Commands) -> Iterator[None]:
    """Let `commands` run what DVC would run in this process."""
    original = dvc.stage.run._run
    dvc.stage.run._run = commands.run
    try:
        yield
    finally:
        dvc.stage.run._run = original


def check_targets(repo: Repo, targets: list[str]) -> None:
    """Raise UnknownStageError for a target that is no stage of the project; the message has the closest one."""
    known = {stage.addressing for stage in repo.index.stages}
    known |= {name.partition("@")[0] for name in known}  # all of a foreach or matrix stage
    for target in targets:
        if target not in known:
            close = get_close_matches(target, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(sorted(known))}"
            raise UnknownStageError(f"no stage {target!r} in dvc.yaml; {hint}")


class Executor:
    """Reproduces stage after stage for `Repo.reproduce`; waits for other DVC processes."""

    def __init__(self, repo: Repo, patience: Patience) -> None:
        self._repo = repo
        self._patience = patience
        self._waited = False
        repo.lock = PatientLock(repo.lock, patience)

    def reproduce(self, stage: Any, watcher: Watcher, **kwargs: Any) -> Outcome:
        """Run, restore or skip a stage; never raises a DvcException, it becomes a Failed outcome."""
        name = str(stage.addressing)
        commands = Commands(watcher)

        def attempt() -> Any:
            # Who held the stage may have written dvc.lock: what we read before is out of date for all later stages.
            current = self._repo.stage.collect(name)[0] if self._waited else stage
            return _reproduce_stage(current, **kwargs)

        try:
            with _dvc_runs(commands):
                changed = self._patience.keep_trying(attempt, _first_lines, self._pause)
        except DvcException as error:
            return Outcome(name, FAILED, "\n".join([str(error), *commands.tail]))
        if changed is None:
            return Outcome(name, CACHED)
        return Outcome(name, RESTORED if stage.cmd and not commands.started else RAN)

    def edit(self, path: Path, change: Callable[[], None]) -> None:
        """Call `change`, which edits the file `path` (absolute), once no stage of another DVC process depends on it.

        DVC reads a stage's params when its command has ended, to write them into dvc.lock: an edit while the command
        runs would be taken for what it ran with. The repository lock must be held.
        """
        hardlink = self._repo.config["core"].get("hardlink_lock", False)

        def attempt() -> None:
            with rwlock(self._repo.tmp_dir, self._repo.fs, " ".join(sys.argv), [], [str(path)], hardlink):
                change()

        self._patience.keep_trying(attempt, _first_lines, self._pause)
        self._repo._reset()  # dvc.yaml takes values from params.yaml

    def _pause(self, seconds: float) -> None:
        """Wait without the repository lock: its owner needs it to finish, and waits 3 s for it only."""
        self._waited = True
        self._repo.lock.unlock()
        try:
            time.sleep(seconds)
        finally:
            self._repo.lock.lock()
            self._repo._reset()


def _first_lines(error: Exception) -> str:
    """DVC says who is in the way and then how to delete its lock file by hand: the latter is no advice here."""
    return " ".join(str(error).partition("\n\n")[0].split())
