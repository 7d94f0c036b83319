"""The report's links, with MLflow's real database outside the project."""

import json
import shutil
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
from dvc.repo import Repo

from deepcv import tracking
from deepcv.receipts import RECEIPT
from flows.addresses import forget_servers, record_servers
from flows.report import markdown
from flows.stages import CACHED, FAILED, RAN, Outcome


def test_links_lead_to_the_registered_model_its_run_and_the_pages(
    done: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = done.parent / "state elsewhere"
    shutil.copytree(empty_store, state)
    monkeypatch.setenv("DEEPCV_HOME", str(state))
    run = tracking.start_run("deepcv-toy", "train", {}, {tracking.MODEL_TAG: "abc"})
    tracking.start_run("deepcv-toy", "train", {}, {tracking.MODEL_TAG: "another"})
    (done / RECEIPT).parent.mkdir(parents=True)
    (done / RECEIPT).write_text(json.dumps({"name": "deepcv-toy", "model_sha256": "abc"}))

    report = markdown(Repo(), [Outcome("page", CACHED)], "")
    assert "registered model deepcv-toy: <http://127.0.0.1:5000/#/models/deepcv-toy>" in report
    experiment = tracking.open_experiment("deepcv-toy")
    assert f"its run: <http://127.0.0.1:5000/#/experiments/{experiment}/runs/{run}>" in report
    assert report.count("its run") == 1
    (page,) = (line for line in report.splitlines() if line.startswith("- `data/report/index.html`"))
    address = urlsplit(page.partition("<")[2].rstrip(">"))
    assert address.scheme == "file"
    assert Path(url2pathname(address.path)).read_text() == "<p>ONE"


def test_without_a_registry_there_is_still_a_report(done: Path) -> None:
    outcomes = [Outcome("page", CACHED)]
    report = markdown(Repo(), outcomes, "")
    assert "registered model" not in report
    assert "data/report/index.html" in report
    (done / RECEIPT).parent.mkdir(parents=True, exist_ok=True)
    (done / RECEIPT).write_text("no receipt")
    assert markdown(Repo(), outcomes, "") == report


@pytest.mark.usefixtures("done")
def test_what_earlier_runs_left_is_not_shown_as_this_runs() -> None:
    whole = markdown(Repo(), [Outcome("score", RAN), Outcome("page", RAN)], "")
    assert "metrics.accuracy" in whole
    assert "data/report/index.html" in whole
    failed = markdown(Repo(), [Outcome("page", RAN), Outcome("score", FAILED)], "stage 'score' failed")
    assert "metrics.accuracy" not in failed
    assert "data/report/index.html" in failed
    assert "data/report/index.html" not in markdown(Repo(), [Outcome("score", RAN)], "")


@pytest.mark.usefixtures("done")
def test_links_lead_to_the_port_that_make_ui_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPCV_MLFLOW_PORT", "5001")
    assert "<http://127.0.0.1:5001>" in markdown(Repo(), [], "")
    record_servers(4300, 5300)
    assert "<http://127.0.0.1:5300>" in markdown(Repo(), [], "")
    forget_servers()
    assert "<http://127.0.0.1:5001>" in markdown(Repo(), [], "")
