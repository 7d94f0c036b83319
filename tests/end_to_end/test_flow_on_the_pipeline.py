"""The Prefect flow on the real pipeline: the same stages, and `dvc repro` and the flow leave each other nothing to do."""

import contextlib
import json
import sqlite3
import sys

from conftest_end_to_end import STAGES, Project


def run_flow(project: Project, *options: str) -> dict[str, str]:
    """Run the flow as a person would and return each stage's state name in its newest run."""
    project.run(sys.executable, "-m", "flows.pipeline", *options)
    with contextlib.closing(sqlite3.connect(project.root / ".deepcv/prefect/prefect.db")) as database:
        newest = "SELECT id FROM flow_run ORDER BY created DESC LIMIT 1"
        rows = database.execute(f"SELECT name, state_name FROM task_run WHERE flow_run_id = ({newest})").fetchall()  # noqa: S608 - a constant
    return dict(rows)


def report(project: Project) -> str:
    with contextlib.closing(sqlite3.connect(project.root / ".deepcv/prefect/prefect.db")) as database:
        (data,) = database.execute(
            "SELECT data FROM artifact WHERE key = 'pipeline-report' ORDER BY created DESC LIMIT 1"
        ).fetchone()
    return str(json.loads(data)) if data.startswith('"') else str(data)


def test_flow_and_dvc_leave_each_other_nothing_to_do(project: Project) -> None:
    assert run_flow(project) == dict.fromkeys(STAGES, "Cached")
    assert "registered model deepcv-digits" in report(project)
    assert "data/validation/data_docs.html" in report(project)
    assert "accuracy" in report(project)

    states = run_flow(project, "-S", "train.epochs=2")
    assert [states[stage] for stage in STAGES] == ["Cached"] * 3 + ["Ran"] * 4
    assert project.repro() == []

    project.set(train__epochs=3)
    assert project.repro() == ["register"]  # the others come back from DVC's run cache
    assert run_flow(project) == dict.fromkeys(STAGES, "Cached")
    assert not (project.root / "home/.prefect").exists()
