"""The markdown artifact at the end of a run: stages, metrics, where to look next."""

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dvc.repo import Repo

from deepcv.home import project_dir
from deepcv.receipts import MODEL_TAG, RECEIPT, database_file
from flows.addresses import mlflow_address
from flows.stages import FAILED, Outcome

_RUN_OF_MODEL = """
SELECT runs.experiment_id, runs.run_uuid FROM runs JOIN tags ON tags.run_uuid = runs.run_uuid
WHERE tags.key = ? AND tags.value = ? AND runs.lifecycle_stage = 'active'
ORDER BY runs.start_time DESC LIMIT 1
"""


def markdown(repo: Repo, outcomes: Sequence[Outcome], failure: str) -> str:
    """Return the report as markdown; `failure` is empty where all stages are up to date.

    It shows the metrics and pages of the stages in `outcomes` only: those of others are of an earlier run.
    """
    current = {outcome.stage for outcome in outcomes if outcome.state != FAILED}
    parts = ["## Pipeline: " + ("failed" if failure else "up to date")]
    if failure:
        parts.append(_quoted(failure))
    parts.append(_table(("stage", "state"), [(outcome.stage, outcome.state) for outcome in outcomes]))
    metrics = list(_metrics(repo, current))
    if metrics:
        parts += ["### Metrics", _table(("metric", "value"), metrics)]
    parts += ["### Reports", "\n".join(f"- {line}" for line in _reports(repo, current, registered=not failure))]
    return "\n\n".join(parts) + "\n"


def _metrics(repo: Repo, stages: Set[str]) -> Iterator[tuple[str, str]]:
    """Yield (name, value) of all numbers that DVC knows as metrics of these stages in the working tree."""
    places = [Path(out.fs_path) for out in repo.index.outs if out.stage.addressing in stages]
    revisions = repo.metrics.show()
    for name, file in revisions.get("", {}).get("data", {}).items():
        path = Path(repo.root_dir, name)
        if "data" in file and any(path.is_relative_to(place) for place in places):
            yield from _leaves(Path(name).stem, file["data"])


def _leaves(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _leaves(f"{name}.{key}", below)
    elif isinstance(value, float):
        yield name, f"{value:.6g}"
    elif isinstance(value, int):
        yield name, str(value)


def _reports(repo: Repo, stages: Set[str], *, registered: bool) -> Iterator[str]:
    mlflow = mlflow_address()
    yield f"MLflow: <{mlflow}> (while `make ui` runs)"
    if registered:
        yield from (f"{label}: <{mlflow}/#/{page}>" for label, page in _registered(project_dir() / RECEIPT))
    for out in repo.index.outs:
        if out.stage.addressing not in stages:
            continue
        path = Path(out.fs_path)
        pages = [path] if path.suffix == ".html" else sorted([*path.glob("*.html"), *path.glob("*/index.html")])
        for page in pages:
            if page.is_file():
                address = page.resolve().as_uri()  # a browser opens it from its address bar only
                yield f"`{page.relative_to(repo.root_dir)}` (paste the address): <{address}>"


def _registered(receipt: Path) -> Iterator[tuple[str, str]]:
    """Yield (label, page of MLflow's UI) for the model that a registration's receipt names, and for its run.

    The run is found by the model's content. MLflow's database is asked itself: importing mlflow takes 3 s.
    """
    try:
        content = json.loads(receipt.read_text(encoding="utf-8"))
        name, digest = str(content["name"]), str(content["model_sha256"])
        yield f"registered model {name}", f"models/{quote(name)}"
        with contextlib.closing(sqlite3.connect(f"{database_file().as_uri()}?mode=ro", uri=True)) as store:
            rows = store.execute(_RUN_OF_MODEL, (MODEL_TAG, digest)).fetchall()
    except (OSError, ValueError, KeyError, TypeError, sqlite3.Error):  # a report does without it
        return
    yield from (("its run", f"experiments/{experiment}/runs/{run}") for experiment, run in rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _quoted(text: str) -> str:
    return "```text\n" + text.replace("```", "'''") + "\n```"
