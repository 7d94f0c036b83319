import importlib
import re
import shutil
from pathlib import Path

import pytest
import sqlalchemy
from histories import History
from mlflow import MlflowClient
from toys import picture

from deepcv import provenance, tracking
from deepcv.cli import main
from deepcv.data import exclusions, sightings
from deepcv.images import encode_png

NAME = "deepcv-pets"


@pytest.fixture(autouse=True)
def _project_with_a_store(history: History, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.is_dir()
    monkeypatch.chdir(history.root)


def image_in(history: History, split: str) -> str:
    """Sha256 of an image that the workspace's dataset has in this split."""
    rows = history.manifest()
    return str(rows[(rows["split"] == split) & ~rows["sha256"].duplicated(keep=False)]["sha256"].iloc[0])


def trained(history: History, image: str, model: str) -> str:
    """Write the run and the registered version of a training on the workspace's dataset."""
    found = sightings.find(image, history.root)
    run_id = tracking.run_of_model(NAME, model, {"data_digest": found.sightings[0].data_digests[0]}, [])
    client = MlflowClient()
    if not client.search_registered_models(f"name = '{NAME}'"):
        client.create_registered_model(NAME)
    client.create_model_version(NAME, "file:///nowhere", run_id, tags={tracking.MODEL_TAG: model})
    return run_id


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(["data", *arguments])
    return capsys.readouterr().out


def test_who_saw(history: History, capsys: pytest.CaptureFixture[str]) -> None:
    image = image_in(history, "train")
    run_ids = [trained(history, image, model) for model in ("first", "second")]
    other = tracking.run_of_model(NAME, "third", {"data_digest": "e" * 64}, [])
    MlflowClient().set_registered_model_alias(NAME, "champion", "2")
    MlflowClient().delete_run(run_ids[0])  # its model is still registered

    text = told(capsys, "who-saw", image[:16])
    assert f"sha256 {image}\n" in text
    assert re.search(r"dataset [0-9a-f]{12}, recorded by the workspace\n  train: ", text)
    assert re.search(
        rf"run {run_ids[1]} \({NAME}, 2.*, FINISHED\): trained on it\n    {NAME} version 2 @champion\n", text
    )
    assert re.search(rf"run {run_ids[0]} \({NAME}, 2.*, deleted\): trained on it\n    {NAME} version 1\n", text)
    assert other not in text

    assert "not trained on it; its test scores count it" in told(capsys, "who-saw", image_in(history, "test"))
    assert "not trained on it; its val scores" in told(capsys, "who-saw", image_in(history, "val"))

    plan = told(capsys, "forget", image)
    row = history.manifest().reset_index().set_index("sha256").loc[image]
    assert (
        f"images (ingest.path): to be rid of the image itself, delete these files (their names at the last ingest)\n   {row['id']}\n"
        in plan
    )
    assert "registered versions: 2, runs: 2\n" in plan
    assert f"   {NAME} version 2 @champion\n" in plan
    assert "4. Train then without it\n   dvc repro\n" in plan
    assert f"these stay in use:\n     {NAME} version 2 @champion\n" in plan

    plan = told(capsys, "forget", image_in(history, "test"))
    assert "registered versions: 0, runs: 0\n   not trained on it, with it in val or test only: runs: 2\n" in plan
    assert "stay in use" not in plan


def test_a_trial_of_a_search_is_found(history: History, capsys: pytest.CaptureFixture[str]) -> None:
    image = image_in(history, "train")
    (digest, *_) = sightings.find(image, history.root).sightings[0].data_digests
    search = tracking.start_search_run(NAME, {"trials": 1})
    trial = tracking.start_trial_run(NAME, search, {"train.lr": 0.1})
    tracking.log_params(trial, {"data_digest": digest})
    tracking.finish(trial)
    text = told(capsys, "who-saw", image)
    assert re.search(
        rf"run {trial} \({NAME}, 2.*, FINISHED, a search's trial, which kept no model\): trained on it\n", text
    )
    assert search not in text
    assert f"   run {trial} (" in told(capsys, "forget", image)


def test_an_image_that_nothing_was_trained_on(history: History, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(history.root / "images/dog/late.png")
    assert "no run in MLflow is known to have used this dataset" in told(capsys, "who-saw", path)


def test_an_image_of_former_datasets(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    former = tmp_path / "former.png"
    former.write_bytes(encode_png(picture(18)))
    text = told(capsys, "who-saw", str(former))
    assert "held by 1 of 4 recorded datasets" in text
    assert re.search(r"recorded by commit [0-9a-f]+ dataset one\n  \w+: dog/18.png, label dog\n", text)
    plan = told(capsys, "forget", str(former))
    assert "nothing to remove, the workspace's dataset does not hold it" in plan
    assert "4. Nothing has to be trained again" in plan


def test_without_a_database(history: History, capsys: pytest.CaptureFixture[str], store: Path) -> None:
    shutil.rmtree(store / "mlflow")
    text = told(capsys, "who-saw", image_in(history, "train"))
    assert "There is no MLflow database (" in text
    assert not (store / "mlflow").exists()  # asking creates none


def test_a_database_that_does_not_answer(history: History, store: Path) -> None:
    image = image_in(history, "train")
    (store / "mlflow/mlflow.db").write_bytes(b"no database at all, but long enough to be looked at" * 20)
    with pytest.raises(SystemExit) as exited:
        main(["data", "who-saw", image])
    assert "MLflow does not answer" in str(exited.value.code)


@pytest.mark.parametrize("command", ["who-saw", "forget"])
def test_an_unknown_image(command: str) -> None:
    for image, expected in {
        "f" * 64: "none of the 4 recorded datasets holds this image",
        "no.png": "expected an image file",
    }.items():
        with pytest.raises(SystemExit) as exited:
            main(["data", command, image])
        assert expected in str(exited.value.code)


def test_forget_lists_the_image_only_where_it_is_told_to(history: History, capsys: pytest.CaptureFixture[str]) -> None:
    image, listed = image_in(history, "train"), history.root / "data/exclusions.txt"
    try:
        assert f"1. `deepcv data forget {image[:12]} --apply` lists it" in told(capsys, "forget", image)
        assert not listed.exists()
        for _ in range(2):
            assert "1. data/exclusions.txt lists it" in told(capsys, "forget", image[:16], "--apply")
            assert exclusions.read(listed) == {image}
            assert listed.read_text().count(image) == 1
        assert "1. data/exclusions.txt lists it" in told(capsys, "forget", image)
    finally:
        listed.unlink(missing_ok=True)  # the project is shared


def test_the_plan_names_the_pictures_that_may_show_the_image(
    history: History, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = image_in(history, "train")
    assert "6. Pictures of some images, this one perhaps among them: none were found" in told(capsys, "forget", image)
    run_id, other = (
        trained(history, image, "first"),
        tracking.run_of_model(NAME, "third", {"data_digest": "e" * 64}, []),
    )
    sheets = {"preview/batch.png", "data/gallery.png", "evaluation/mistakes.png", "evaluation/confident_mistakes.png"}
    for name in sheets | {"evaluation/curves.png"}:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encode_png(picture(1)))
        for run in (run_id, other):
            tracking.log_artifact(run, tmp_path / name, name.partition("/")[0])
    Artifact = importlib.import_module("prefect.server.database.orm_models").Artifact  # noqa: N806
    (store / "prefect").mkdir()
    engine = sqlalchemy.create_engine(f"sqlite:///{store}/prefect/prefect.db")
    with engine.begin() as database:
        database.execute(sqlalchemy.schema.CreateTable(Artifact.__table__))
        for key, kind in (
            ("stage-validate-gallery", "image"),
            ("stage-validate-gallery", "image"),
            ("report", "markdown"),
        ):
            database.execute(Artifact.__table__.insert().values(key=key, type=kind))
    (store / "preprocess/0123").mkdir(parents=True)
    pages = [history.root / name for name in ("reports/data/diff/index.html", "data/validation/flagged.html")]
    try:
        for page in pages:
            page.parent.mkdir(parents=True)
            page.write_text("<img>")
        plan = told(capsys, "forget", image)
    finally:
        for folder in ("reports", "data/validation"):
            shutil.rmtree(history.root / folder)  # the project is shared
    artifacts = store / "mlflow/artifacts" / NAME / run_id / "artifacts"
    listed = plan.partition("delete those that no `dvc repro` writes anew\n")[2].splitlines()
    assert sorted(listed[:-1]) == sorted(
        f"   {place}"
        for place in (
            *(artifacts / name for name in sheets), *pages, store / "preprocess/0123",
            f"{store}/prefect/prefect.db: image artifacts: 2 (while `make ui` runs: `prefect artifact delete stage-validate-gallery`)",
        )
    )  # fmt: skip
    assert all(Path(line.strip()).exists() for line in listed[:4])
    (store / "prefect/prefect.db").write_bytes(b"no database at all, but long enough to be looked at" * 20)
    assert "prefect.db: image artifacts, if it has any (it cannot be read" in told(capsys, "forget", image)


def test_how_images_leave_each_kind_of_source(tmp_path: Path) -> None:
    assert "delete these files" in "".join(provenance._removal(tmp_path, ["a"]))
    assert "pack it again" in "".join(provenance._removal(tmp_path / "images.tar.gz", ["a"]))
    assert "not in DVC's cache" in "".join(provenance._removal(tmp_path, [], is_known=False))
    assert "keeps the image itself" in "".join(provenance._removal(tmp_path / "digits.yaml", ["a"]))
