"""The flow `pipeline`: the graph of dvc.yaml, one Prefect task per stage. It names no stage; dvc.yaml does."""

import argparse
import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import yaml
from dvc.exceptions import DvcException, ReproductionError
from dvc.repo import Repo, lock_repo
from prefect import flow, get_client, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Completed, Failed

from deepcv import recovery
from deepcv.home import project_dir
from deepcv.params.base import ParamsError
from deepcv.params.document import read
from deepcv.params.edit import set_values, with_values
from deepcv.params.whole import load
from deepcv.receipts import drop_orphan
from flows.addresses import running_server
from flows.locking import Patience
from flows.logs import StageLog, dvc_messages_to_run_log
from flows.processes import leave_nobody_behind
from flows.report import markdown
from flows.stages import CACHED, FAILED, Executor, Outcome, StageFailedError, UnknownStageError, check_targets

_RECORDS_S = 20.0
_PATIENCE_S = 12.0  # with what a killed run leaves: a trainer writes a checkpoint


@task(name="stage", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def _stage(name: str, reproduce: Callable[[], Outcome]) -> State[Any]:
    """Bring one stage up to date; the final state's name says what that took."""
    outcome = reproduce()
    if outcome.state == FAILED:
        return Failed(message=outcome.reason)
    return Completed(name=outcome.state, message=f"{name}: {outcome.state.lower()}")


@flow(name="pipeline")
def pipeline(
    targets: list[str] | None = None,
    force: bool = False,
    overrides: dict[str, Any] | None = None,
    lock_timeout_s: float = 600.0,
) -> State[Any]:
    """Bring the project up to date, as `dvc repro` does.

    Args:
        targets: Names of stages (each with what it needs); all stages if not given.
        force: Run the stages even where nothing changed.
        overrides: New values for params.yaml, such as `{"train.epochs": 2}`. They stay there, as with `dvc exp run -S`.
            They are written once no stage of another DVC process reads the file.
        lock_timeout_s: How long to wait for another DVC process that works in this project.
    """
    for told in recovery.mend():
        get_run_logger().warning(told)
    with contextlib.chdir(project_dir()), Repo() as repo, dvc_messages_to_run_log():
        try:
            if targets:
                check_targets(repo, targets)
            params = Path("params.yaml")
            if overrides:
                with_values(read(params), overrides)  # a mistake shows before any waiting
            else:
                load(params)
            executor = Executor(repo, Patience(lock_timeout_s, get_run_logger().warning))
            with lock_repo(repo):  # for the report too: DVC reads dvc.yaml again each time that it takes the lock
                if overrides:
                    executor.edit(project_dir() / params, partial(set_values, params, overrides))
                drop_orphan()  # a deleted MLflow database: its receipts must not keep `register` from running
                outcomes, failure = _reproduce(repo, executor, targets, force)
                report = markdown(repo, outcomes, failure)
        except (ParamsError, UnknownStageError, DvcException) as error:
            return Failed(message=str(error))
        create_markdown_artifact(report, key="pipeline-report")
    return Failed(message=failure) if failure else Completed(message=_summary(outcomes))


def _reproduce(repo: Repo, executor: Executor, targets: list[str] | None, force: bool) -> tuple[list[Outcome], str]:
    """Let DVC walk its graph with our hook; return what happened to each stage and why the walk ended early, or ""."""
    outcomes: list[Outcome] = []

    def hook(stage: Any, **kwargs: Any) -> Any:
        def reproduce() -> Outcome:
            log = StageLog(stage.addressing, commands=len(str(stage.cmd).splitlines()))
            outcome = executor.reproduce(stage, log, **kwargs)
            if outcome.state != FAILED:
                log.ran()
                for out in stage.outs:
                    if (path := Path(out.fs_path)).suffix == ".png" and path.is_file():
                        log.picture(path, name=str(out), again=outcome.state != CACHED)
            outcomes.append(outcome)
            return outcome

        _stage(stage.addressing, reproduce)  # not .submit: a signal ends a stage's process from the main thread only
        if outcomes[-1].state == FAILED:
            raise StageFailedError(f"stage {stage.addressing!r} failed: {outcomes[-1].reason}")
        return None if outcomes[-1].state == CACHED else stage

    try:
        repo.reproduce(targets or None, force=force, repro_fn=hook)
    except ReproductionError as error:
        if isinstance(error.__cause__, StageFailedError):
            return outcomes, str(error.__cause__)
        raise error.__cause__ or error from None
    return outcomes, ""


def _summary(outcomes: Sequence[Outcome]) -> str:
    counts = Counter(outcome.state for outcome in outcomes)
    return "stages: " + ", ".join(f"{count} {state.lower()}" for state, count in counts.items())


def _wait_for_records(run: UUID) -> None:
    """Wait until the server that ends with this process has noted how each task ended; it hears of it by events, late under load."""
    wanted, deadline = FlowRunFilter(id=FlowRunFilterId(any_=[run])), time.monotonic() + _RECORDS_S
    with get_client(sync_client=True) as client:
        while time.monotonic() < deadline:
            records = client.read_task_runs(flow_run_filter=wanted)
            if all(record.state and record.state.is_final() for record in records):
                return
            time.sleep(0.05)


def _override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    return key, yaml.safe_load(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the flow from a terminal; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m flows.pipeline", description="Run dvc.yaml's graph with Prefect.")
    parser.add_argument(
        "--targets",
        nargs="+",
        metavar="STAGE",
        help="bring these stages and what they need up to date (default: all): --targets train evaluate",
    )
    parser.add_argument("--force", action="store_true", help="run them even where nothing changed")
    parser.add_argument(
        "-S", "--set", dest="overrides", action="append", type=_override, default=[], metavar="KEY=VALUE",
        help="put a value into params.yaml first, where it stays; may be repeated: -S train.epochs=2 -S train.lr=0.02",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    settings: dict[Any, Any] = {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}  # its thread sleeps 1 s at the end of a run
    if api := running_server():
        settings[PREFECT_API_URL] = api
    leave_nobody_behind(patience_s=_PATIENCE_S)
    with temporary_settings(settings):
        state = pipeline(options.targets, options.force, dict(options.overrides), return_state=True)
        if not api and (run := state.state_details.flow_run_id):
            _wait_for_records(run)
    return 0 if state.is_completed() else 1


if __name__ == "__main__":
    sys.exit(main())
