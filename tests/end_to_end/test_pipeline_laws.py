"""`dvc repro` runs exactly what it must: the laws of the pipeline, on the real one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest_end_to_end import STAGES, Project, new_project

OTHER_VALUE = {
    "ingest": {"ingest__seed": 7},
    "validate": {"validate__min_images": 11},
    "preprocess": {"preprocess__resize": "pad"},
    "train": {"train__lr": 0.02},
    "evaluate": {"evaluate__worst": 9},
    "export": {"export__check_images": 8},
    "register": {"register__metric": "macro_f1"},
}
CHAMPION = """
from pathlib import Path
import pandas as pd
from deepcv import registry
from deepcv.data import manifest
rows, info = manifest.read(Path("data/raw"))
test = rows[rows["split"] == "test"]
model = registry.load("models:/deepcv-digits@champion")
found = model.predict(pd.DataFrame({"image": list(manifest.encoded_images(Path("data/raw"), test))}))["label"]
print(repr(float((found.to_numpy() == test["label"].to_numpy()).mean())))
"""
RUN = """
import json
from deepcv import registry, tracking
version = registry.champion_of("deepcv-digits")
client = tracking.connect()
run = client.get_run(version.run_id)
curve = client.get_metric_history(version.run_id, "val_accuracy")
print(json.dumps({"sha": version.tags["deepcv.model_sha256"], "test": run.data.metrics["test_accuracy"],
    "epochs": len(curve), "params": run.data.params["epochs"], "artifacts": len(client.list_artifacts(version.run_id, "evaluation"))}))
"""


def changed(project: Project) -> set[str]:
    """Stages whose own inputs changed, as DVC sees it."""
    status = json.loads(project.run("dvc", "status", "--json").stdout)
    return set(status)


def accuracy(project: Project) -> float:
    return float(json.loads((project.root / "data/evaluation/metrics.json").read_text())["accuracy"])


def check_registered(project: Project, epochs: int = 3) -> None:
    """The champion is the model of the workspace, with its curve, metrics and files, and predicts as evaluate measured."""
    found = json.loads(project.python(RUN))
    files = sum(1 for _ in (project.root / "data/evaluation").iterdir())
    assert found["test"] == accuracy(project)
    assert found["epochs"] == epochs
    assert found["params"] == str(epochs)
    assert found["artifacts"] == files
    assert float(project.python(CHAMPION)) == accuracy(project)


def test_the_first_run_registers_a_champion_and_the_next_does_nothing(made: Project) -> None:
    check_registered(made)
    assert made.repro() == []
    assert changed(made) == set()


def test_a_model_is_found_from_an_image_that_it_was_trained_on(made: Project) -> None:
    first = "import pandas as pd; t = pd.read_parquet('data/raw/manifest.parquet'); print(*t[~t.sha256.duplicated(keep=False)]"
    for split, meaning in {"train": "): trained on it", "test": "): not trained on it"}.items():
        image = made.python(f"{first}.query('split == \"{split}\"').sha256.head(1))")
        told = made.run("deepcv", "data", "who-saw", image).stdout
        assert meaning in told
        assert "deepcv-digits version 1 @champion" in told
    assert made.run("deepcv", "data", "diff", "workspace", "workspace", "--exit-code").returncode == 0


def test_two_checkouts_end_with_the_same_lock(made: Project, tree: Path, tmp_path: Path) -> None:
    other = new_project(tree, tmp_path / "elsewhere")
    other.repro()
    assert other.lock() == made.lock()


def append(path: str) -> Callable[[Project], None]:
    def edit(project: Project) -> None:
        with (project.root / path).open("a") as file:
            file.write("\n# a comment\n")

    return edit


def edits() -> list[tuple[str, str, Callable[[Project], None]]]:
    cases: list[tuple[str, str, Callable[[Project], None]]] = []
    for stage in STAGES:
        cases.append((stage, "a parameter", lambda project, stage=stage: project.set(**OTHER_VALUE[stage])))
        cases.append((stage, "its module", append(f"deepcv/stages/{stage}.py")))
        cases.append((stage, "its params schema", append(f"deepcv/params/{stage}.py")))
    cases.append(("ingest", "a byte of the dataset's file", append("data/sources/digits.yaml")))
    cases.append(("ingest", "the list of excluded images", append("data/exclusions.txt")))
    cases.append(("train", "a byte of the network's file", append("networks/digits.yaml")))
    return cases


@pytest.mark.parametrize(("stage", "what", "edit"), edits(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_change_concerns_one_stage(made: Project, stage: str, what: str, edit: Callable[[Project], None]) -> None:
    before = {
        path: path.read_bytes()
        for path in made.root.rglob("*")
        if path.suffix in {".py", ".yaml", ".txt"} and ".deepcv" not in path.parts
    }
    try:
        edit(made)
        assert changed(made) == {stage}, what
    finally:
        for path, content in before.items():
            if path.read_bytes() != content:
                path.write_bytes(content)


def test_equal_outputs_stop_the_pipeline(project: Project) -> None:
    append("deepcv/stages/preprocess.py")(project)
    assert project.repro() == ["preprocess"]
    append("networks/digits.yaml")(project)
    assert project.repro() == ["train"]
    assert project.repro() == []


def test_a_new_champions_data_is_compared_with_once(project: Project) -> None:
    project.set(validate__reference="data/references/registered")
    assert project.repro() == ["validate"]  # the champion is there already, and nothing after it changes
    assert project.repro() == []
    reference = project.root / "data/references/registered/digits.parquet"
    assert reference.read_bytes() == (project.root / "data/validation/candidate.parquet").read_bytes()
    assert project.run("git", "status", "--porcelain", "data/references").stdout == ""
    reference.unlink()
    assert changed(project) == {"validate"}


def test_a_wiped_registry_is_filled_again(project: Project) -> None:
    shutil.rmtree(project.root / ".deepcv/mlflow")
    lock = project.lock()
    assert project.repro() == ["register"]
    assert project.lock() == lock
    check_registered(project)


def test_a_deleted_database_is_noticed_by_check(project: Project) -> None:
    (project.root / ".deepcv/mlflow/mlflow.db").unlink()
    project.run("deepcv", "check")
    assert project.repro() == ["register"]
    check_registered(project)


def test_parameters_set_back_restore_without_training(project: Project) -> None:
    lock, params = project.lock(), (project.root / "params.yaml").read_text()
    project.set(train__epochs=1, train__lr=1e-6)
    assert project.repro()[0] == "train"
    assert "challenger" in project.python(
        "from deepcv import tracking\nprint(tracking.connect().get_registered_model('deepcv-digits').aliases)"
    )
    (project.root / "params.yaml").write_text(params)
    assert "train" not in project.repro()
    assert project.lock() == lock
    check_registered(project)


def test_a_checkout_that_shares_the_cache_trains_nothing(made: Project, tree: Path, tmp_path: Path) -> None:
    other = new_project(tree, tmp_path / "second")
    other.run("dvc", "cache", "dir", "--local", str(made.root / ".dvc/cache"))
    shutil.copy(made.root / "dvc.lock", other.root / "dvc.lock")
    assert other.repro() == ["register"]
    assert other.lock() == made.lock()
    check_registered(other)


def test_a_moved_project_still_serves_its_champion(project: Project) -> None:
    moved = Project(project.root.with_name("moved here"))
    lock = project.lock()
    project.root.rename(moved.root)
    assert set(moved.repro()) <= {"register"}
    assert moved.lock() == lock
    check_registered(moved)


def test_an_experiment_moves_no_alias(project: Project) -> None:
    project.run("git", "add", "-A")
    project.run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "run")
    project.run("dvc", "exp", "run", "-S", "train.epochs=1", "-S", "train.network_parameters.width=8")
    assert yaml.safe_load((project.root / "params.yaml").read_text())["train"]["epochs"] == 1
    before = json.loads(project.python(RUN))
    assert before["epochs"] == 3  # the champion is still the one of three epochs
    project.run("deepcv", "check")
    assert project.repro() == ["register"]  # outside of the experiment its model may challenge the champion
    assert "train.epochs" in project.run("dvc", "params", "diff").stdout
    assert "accuracy" in project.run("dvc", "metrics", "diff").stdout
    assert "plots" in project.run("dvc", "plots", "diff").stdout
    assert "train" in project.run("dvc", "dag").stdout
