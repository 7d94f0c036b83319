"""`deepcv search`: what it prints and writes, and that the train stage repeats its best trial bit for bit."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import toys
import yaml

from deepcv import tracking
from deepcv.files import sha256
from deepcv.nn.spec import NetworkSpec, SpecError
from deepcv.nn.spec import load as load_network
from deepcv.params.search import SearchParams
from deepcv.params.train import TrainParams
from deepcv.params.whole import load
from deepcv.search import objective
from deepcv.search.channel import Channel
from deepcv.search.experiment import Status, TrialResult
from deepcv.search.manager import SearchError
from deepcv.search.objective import _train
from deepcv.search.run import as_csv, best_of, search, table
from deepcv.search.snapshot import DATA, network_copy, weights_copy
from deepcv.search.snapshot import SHARDS as SHARDS_FOLDER

REPOSITORY = Path(__file__).parents[2]
PARAMS = SearchParams.model_validate(
    {"space": {"train.lr": {"uniform": [0.0001, 1.0]}, "train.optimizer": {"choice": ["adamw", "sgd"]}}}
)


def trial(
    number: int, status: Status, final: float | None, steps: list[float], log: Path = Path("none")
) -> TrialResult:
    return TrialResult(number, f"id{number}", {"train.lr": 0.1 + 0.2, "train.optimizer": 1}, status, steps, final, log)


TRIALS = [
    trial(0, "succeeded", 0.5, [0.4, 0.5]),
    trial(1, "succeeded", 0.8, [0.9, 0.8]),
    trial(2, "early_stopped", None, [0.99]),
    trial(3, "early_stopped", 0.95, [0.95, 0.95]),  # stopped when it had just reported
    trial(4, "succeeded", 0.8, [0.1, 0.8]),
    trial(5, "failed", None, []),
]


def test_the_best_is_the_first_best_final_value_of_those_that_ran_to_their_end() -> None:
    assert best_of(TRIALS).number == 1


def test_no_trial_at_its_end_is_an_error_that_shows_why(tmp_path: Path) -> None:
    log = tmp_path / "trial.stderr"
    log.write_text("Traceback\nthe reason")
    failed = [TRIALS[2], trial(6, "failed", None, [], log)]
    with pytest.raises(SearchError, match=r"(?s)no trial ran to its end: 1 of 2 failed.*the reason"):
        best_of(failed)


def test_the_csv_keeps_every_digit_and_the_table_marks_the_best() -> None:
    rows = list(csv.DictReader(as_csv(PARAMS, TRIALS).splitlines()))
    assert [row["status"] for row in rows] == [result.status for result in TRIALS]
    assert {float(row["train.lr"]) for row in rows} == {0.1 + 0.2}
    assert {row["train.optimizer"] for row in rows} == {"sgd"}
    assert [row["val_accuracy"] for row in rows] == ["0.5", "0.8", "0.99", "0.95", "0.8", ""]
    lines = table(PARAMS, TRIALS, TRIALS[1]).splitlines()
    assert len(lines) == 1 + len(TRIALS)
    assert [line.split()[0] for line in lines if line.endswith("<- best")] == ["1"]


def test_an_empty_space_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match=r"search\.space is empty"):
        search(SearchParams(), experiment="e", epochs=1, params_path=tmp_path / "p", apply=False, say=print)
    assert not list(tmp_path.iterdir())


SHARDS = """
from pathlib import Path
import numpy as np
from deepcv.data.shards import SPLITS, write_description, write_split

folder = Path("data/shards")
folder.mkdir(parents=True)
noise = np.random.default_rng(0)
for split, count in zip(SPLITS, (256, 150, 10)):
    labels = np.arange(count) % 2
    images = [noise.integers(0, 120 + 10 * label, (8, 8, 1), np.uint8) for label in labels]
    write_split(folder, split, images, labels, (count, 8, 8, 1))
recipe = {"height": 8, "width": 8, "channels": 1, "resize": "stretch"}
write_description(folder, name="noise", classes=("dark", "light"), test_digest="0", recipe=recipe)
"""
DVC_YAML = """
stages:
  preprocess:
    cmd: exec python shards.py
    deps: [shards.py]
    outs: [data/shards]
  train:
    cmd: exec python -m deepcv.stages.train
    params: [train]
    deps: [data/shards]
    outs: [data/model]
"""
# `break`: once the first trial has ended, the network file is no network until the search has ended.
SEARCH = """
import sys
import time
from pathlib import Path
from deepcv.params.whole import load
from deepcv.search.run import search

params = load()
network = Path(params.train.network)
content = network.read_text()

def say(text):
    print(text)
    if "break" in sys.argv:
        network.write_text("an edit that is not finished")

search(params.search, experiment="deepcv-noise", epochs=params.train.epochs, params_path=Path("params.yaml"),
       apply="apply" in sys.argv, say=say)
network.write_text(content)
"""
RUNS = """
import json
from deepcv import tracking
client = tracking.connect()
runs = client.search_runs([client.get_experiment_by_name("deepcv-noise").experiment_id])
curve = lambda run: [p.value for p in client.get_metric_history(run.info.run_id, "val_loss")]
print(json.dumps([[r.info.run_name, r.info.run_id, r.info.status, r.data.tags.get("mlflow.parentRunId"),
                   r.data.params, curve(r)] for r in runs]))
"""


@pytest.fixture
def project(tmp_path: Path, empty_store: Path) -> Path:
    """A DVC project of two stages: tiny shards, and the real train stage with its own params.yaml."""
    folder = tmp_path / "a project"
    shutil.copytree(REPOSITORY / "networks", folder / "networks")
    shutil.copytree(empty_store, folder / ".deepcv")
    shutil.copy(REPOSITORY / "versions.yaml", folder)
    text = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    text = re.sub(r"(?m)^  epochs: \d+", "  epochs: 3", text)
    text = text[: text.index("\nsearch:")] + (
        "\nsearch:  # ranges\n  trials: 2\n  concurrency: 1\n  seed: 1\n  space:\n"
        "    train.lr: {loguniform: [1.0e-5, 3.0e-2]}  # peak\n"
        "    train.batch_size: {quniform: [32, 64, 16]}\n"
    )
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    (folder / "dvc.yaml").write_text(DVC_YAML, encoding="utf-8")
    (folder / "shards.py").write_text(SHARDS, encoding="utf-8")
    return folder


def environment(project: Path) -> dict[str, str]:
    home = project.parent / "home"
    home.mkdir(exist_ok=True)
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(REPOSITORY),
        "DEEPCV_HOME": str(project / ".deepcv"),
        "DVC_NO_ANALYTICS": "true",
        "HOME": str(home),
    }


def python(project: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=project, env=environment(project), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


EDIT = """
from deepcv.params.edit import set_values
set_values("params.yaml", {"train.epochs": 5})
"""
WAIT = """
import time
from pathlib import Path
Path("begun").touch()
time.sleep(60)
"""


def test_an_edit_while_the_images_are_prepared_is_an_error(project: Path) -> None:
    """The trials would take another space than the one in which their numbers are read back."""
    (project / "shards.py").write_text(SHARDS + EDIT.replace('"params.yaml"', 'Path("params.yaml")'))
    python(project, "-m", "dvc", "init", "--no-scm", "-q")
    with pytest.raises(AssertionError, match=r"params\.yaml was edited while"):
        python(project, "-c", SEARCH)
    assert not (project / ".deepcv" / "search").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("depth: {choice: [4, 8]}", "networks/digits.yaml:.*unknown parameter 'depth'"),
        ("width: {choice: [8, wide]}", "networks/digits.yaml:.*width.*wide"),
    ],
)
def test_a_network_that_lacks_a_searched_parameter_is_an_error_before_any_work(
    line: str, message: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    params = Path("params.yaml")
    params.write_text(params.read_text() + f"    train.network_parameters.{line}\n")
    with pytest.raises(SpecError, match=message):  # there is no DVC repository: nothing was prepared
        search(load().search, experiment="e", epochs=1, params_path=params, apply=False, say=print)


def test_sigterm_while_the_images_are_prepared_leaves_dvc_no_lock(project: Path) -> None:
    (project / "shards.py").write_text(WAIT)
    python(project, "-m", "dvc", "init", "--no-scm", "-q")
    search = subprocess.Popen([sys.executable, "-c", SEARCH], cwd=project, env=environment(project))
    while not (project / "begun").exists():
        assert search.poll() is None
        time.sleep(0.05)
    search.terminate()
    assert search.wait(30) == 143
    assert json.loads((project / ".dvc/tmp/rwlock").read_text()) == {}


def test_a_trial_refuses_other_shards_than_the_search_began_with(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    python(project, "shards.py")
    description = (SHARDS_FOLDER / DATA).read_bytes()
    (project / DATA).write_bytes(description.replace(b'"noise"', b'"voice"'))
    channel = Channel("", "", 0, {})
    with pytest.raises(SearchError, match="has changed since the search began"):
        _train(TrainParams(network="networks/digits.yaml"), project, channel, "")


def test_a_trial_logs_the_digests_of_its_network_and_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the expanded network, with the parameters and choices of the trial, as the stage `train` logs them."""
    monkeypatch.chdir(tmp_path)
    network, weights = "networks/digits.yaml", toys.no_weights(tmp_path).relative_to(tmp_path)
    toys.write_shards(SHARDS_FOLDER)
    shutil.copy(SHARDS_FOLDER / DATA, tmp_path / DATA)
    copies = network_copy(tmp_path, network), weights_copy(tmp_path, str(weights))
    for copy, text in zip(copies, (toys.CHOICES, weights.read_text()), strict=True):
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(text)
    logged: dict[str, object] = {}
    monkeypatch.setattr(tracking, "log_params", lambda run_id, params: logged.update({run_id: params}))

    class Trained(Exception):  # noqa: N818  it is none
        pass

    def fit(spec: NetworkSpec, *_: object, **__: object) -> None:
        raise Trained(spec.sha256())

    monkeypatch.setattr(objective, "fit", fit)
    choices = {"mix.0": "small", "mix.1": "wide"}
    params = TrainParams(network=network, network_parameters={"width": 8}, network_choices=choices)
    with pytest.raises(Trained) as trained:
        _train(params, tmp_path, Channel("", "", 0, {}), "run")
    digest = load_network(copies[0], {"width": 8}, choices).sha256()
    assert logged == {"run": {"data_digest": sha256(SHARDS_FOLDER / DATA), "network_sha256": digest}}
    assert str(trained.value) == digest


def test_a_search_nests_its_trials_and_the_train_stage_repeats_the_best_one(project: Path) -> None:
    before = (project / "params.yaml").read_text(encoding="utf-8")
    python(project, "-m", "dvc", "init", "--no-scm", "-q")
    printed = python(project, "-c", SEARCH, "break")
    assert printed.count(" s left") == 2
    assert "<- best" in printed
    assert "failed" not in printed
    assert (project / "params.yaml").read_text(encoding="utf-8") == before

    state = project / ".deepcv" / "search"
    printed = python(project, "-c", SEARCH, "apply")
    assert "no new search" in printed
    assert "<- best" not in printed
    assert len(list(state.glob("*/best.yaml"))) == 1

    best: dict[str, Any] = yaml.safe_load((state / "best.yaml").read_text(encoding="utf-8"))
    rows = list(csv.DictReader((state / "trials.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 2
    (chosen,) = (row for row in rows if float(row["train.lr"]) == best["train.lr"])
    ended = [float(row["val_accuracy"]) for row in rows if row["status"] == "succeeded"]
    assert float(chosen["val_accuracy"]) == max(ended)

    after = (project / "params.yaml").read_text(encoding="utf-8")
    changed = [new for old, new in zip(before.splitlines(), after.splitlines(), strict=True) if old != new]
    assert {"lr"} <= {line.split(":")[0].strip() for line in changed} <= {"batch_size", "lr"}
    applied = yaml.safe_load(after)["train"]
    assert {f"train.{key}": applied[key] for key in ("lr", "batch_size")} == best

    python(project, "-m", "dvc", "repro")
    runs = json.loads(python(project, "-c", RUNS).splitlines()[-1])
    (parent,) = (run for run in runs if run[0] == "search")
    trials = [run for run in runs if run[3] == parent[1]]
    assert parent[2] == "FINISHED"
    assert parent[4]["best.train.lr"] == str(best["train.lr"])
    assert sorted(run[2] for run in trials) == sorted(
        {"succeeded": "FINISHED", "early_stopped": "KILLED"}[row["status"]] for row in rows
    )
    (same,) = (run for run in trials if run[4]["train.lr"] == str(best["train.lr"]))
    (trained,) = (run for run in runs if run[0] == "train")
    assert trained[5] == same[5]  # every epoch's val loss, to the last bit
    assert all(trained[4][name] == same[4][name] for name in ("data_digest", "network_sha256"))
    last = (project / "data/model/history.csv").read_text(encoding="utf-8").splitlines()[-1]
    assert chosen["val_accuracy"] in last.split(",")
    assert not (project.parent / "home" / "nni-experiments").exists()

    printed = python(project, "-c", SEARCH, "apply")  # applying has changed params.yaml: this is another search
    assert "no new search" not in printed
    assert "<- best" in printed
    assert len(list(state.glob("*/best.yaml"))) == 2
    best = yaml.safe_load((state / "best.yaml").read_text(encoding="utf-8"))
    applied = yaml.safe_load((project / "params.yaml").read_text(encoding="utf-8"))["train"]
    assert {f"train.{key}": applied[key] for key in ("lr", "batch_size")} == best
