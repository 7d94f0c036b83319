import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, PREFECT_HOME, temporary_settings
from prefect.testing.utilities import prefect_test_harness
from prefect_runs import Run, eventually

from flows.pipeline import pipeline


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A real Prefect server with an empty database."""
    settings = {PREFECT_HOME: tmp_path_factory.mktemp("prefect"), PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
    with temporary_settings(settings), prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="session")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project before any run; copy it, do not change it."""
    return tiny.create(tmp_path_factory.mktemp("untouched") / "project")


@pytest.fixture(scope="session")
def up_to_date(untouched: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project after `dvc repro`; copy it, do not change it."""
    project = tmp_path_factory.mktemp("up_to_date") / "project"
    shutil.copytree(untouched, project)
    (project.parent / "home").mkdir()
    tiny.command(project, "dvc", "repro", "-q")
    return project


def _copy(source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    project = folder / "project"
    shutil.copytree(source, project)
    (folder / "home").mkdir()
    monkeypatch.chdir(project)
    monkeypatch.setenv("DEEPCV_HOME", str(project / ".deepcv"))
    return project


@pytest.fixture
def fresh(untouched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tiny project that never ran; it is the working directory."""
    return _copy(untouched, tmp_path, monkeypatch)


@pytest.fixture
def done(up_to_date: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tiny project with every stage up to date; it is the working directory."""
    return _copy(up_to_date, tmp_path, monkeypatch)


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Callable[..., Run]:
    """Run the flow in the working directory; `stages`: how many task runs to expect."""

    request.getfixturevalue("prefect_server")

    def run(*, stages: int = 4, **parameters: Any) -> Run:
        result = Run(pipeline(**parameters, return_state=True))
        run_filter = FlowRunFilter(id=FlowRunFilterId(any_=[result.id]))

        def read() -> list[Any]:
            with get_client(sync_client=True) as client:
                return client.read_task_runs(flow_run_filter=run_filter)

        tasks = eventually(
            read, lambda runs: len(runs) == stages and all(task.state and task.state.is_final() for task in runs)
        )
        result.stages = {task.name: task.state_name for task in tasks}
        result.messages = {task.name: task.state.message or "" for task in tasks}
        return result

    return run
