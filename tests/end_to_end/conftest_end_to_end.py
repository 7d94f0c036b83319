"""A project of its own for these tests: what git would give a new user, run once through the whole pipeline."""

import fcntl
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.checkouts import checkout
from deepcv.params.edit import set_values

STAGES = ("ingest", "validate", "preprocess", "train", "evaluate", "export", "register")


@dataclass(frozen=True)
class Project:
    """A checkout with its own cache and state."""

    root: Path

    def environment(self) -> dict[str, str]:
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("DVC_", "DEEPCV_", "PREFECT_", "MLFLOW_"))
        }
        return kept | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.root),  # the checkout's own code, not that of the environment's editable install
            "DVC_NO_ANALYTICS": "true",
            "DO_NOT_TRACK": "1",
            "HOME": str(self.root / "home"),  # nothing may be written there
        }

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            command, cwd=self.root, env=self.environment(), capture_output=True, text=True, check=False, timeout=900
        )
        assert not check or result.returncode == 0, f"{command}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
        return result

    def repro(self, *options: str) -> list[str]:
        """Run `dvc repro` and return the stages that ran (not those skipped or restored)."""
        output = self.run("dvc", "repro", *options).stdout
        return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]

    def python(self, script: str) -> str:
        return self.run(sys.executable, "-c", script).stdout.strip()

    def lock(self) -> str:
        return (self.root / "dvc.lock").read_text()

    def set(self, **values: object) -> None:
        set_values(self.root / "params.yaml", {key.replace("__", "."): value for key, value in values.items()})


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every file that git has or would take, as it was when the tests began."""
    folder = tmp_path_factory.mktemp("tree")
    checkout(folder)
    return folder


def new_project(tree: Path, folder: Path) -> Project:
    """Make a new repository of the tree, with one commit and a short training."""
    shutil.copytree(tree, folder)
    project = Project(folder)
    project.set(train__epochs=3)
    for command in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "all"],
    ):
        project.run("git", *command)
    return project


@pytest.fixture(scope="session")
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project after its first `dvc repro`. Tests that change it copy it first.

    One worker of xdist makes it, the others copy it: it takes most of a minute.
    """
    project = Project(tmp_path_factory.mktemp("made") / "project")
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return make(request.getfixturevalue("tree"), project)
    shared = tmp_path_factory.getbasetemp().parent / "made"  # the folder of all workers
    with shared.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if shared.exists():
            shutil.copytree(shared, project.root)
            return project
        make(request.getfixturevalue("tree"), project)
        copying = shared.with_suffix(".tmp")
        shutil.rmtree(copying, ignore_errors=True)  # of a worker that was killed
        shutil.copytree(project.root, copying)
        copying.rename(shared)
    return project


def make(tree: Path, project: Project) -> Project:
    new_project(tree, project.root)
    assert project.repro() == list(STAGES)
    return project


@pytest.fixture
def project(made: Project, tmp_path: Path) -> Project:
    """A copy of the made project that a test may change; its registry is its own."""
    copy = Project(tmp_path / "project")
    shutil.copytree(made.root, copy.root)
    return copy
