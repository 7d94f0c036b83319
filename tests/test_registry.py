import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import toys
from mlflow import MlflowClient

from deepcv import registry, tracking
from deepcv.files import sha256
from deepcv.images import ImageRecipe, encode_png
from deepcv.nn.classifier import ModelInfo, create
from deepcv.registry import Candidate, challenge, champion_of, register
from deepcv.serving import predictor
from deepcv.serving.onnx_export import export
from deepcv.serving.predictor import ExportInfo, Predictor
from deepcv.task import FurtherTarget, Task

NAME = "deepcv-toy"

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    torch.manual_seed(0)
    recipe = ImageRecipe(8, 8, 1)
    info = ModelInfo("toy", ("dark", "light"), vars(recipe), (0.5,), (0.2,))
    model = create(toys.network(folder).canonical(), info).eval()
    export(model, ExportInfo("toy", ("dark", "light"), recipe, "f" * 64), folder / "model.onnx")
    return folder / "model.onnx"


@pytest.fixture
def candidate(onnx_file: Path) -> Candidate:
    run_id = tracking.run_of_model(NAME, "m" * 64, {"lr": 0.1}, [])
    return Candidate(NAME, run_id, onnx_file, "m" * 64, sha256(onnx_file), "test-1", {"accuracy": 0.8, "macro_f1": 0.7})


def add(candidate: Candidate) -> str:
    return register(candidate, predictor.__name__, ["numpy"])


def with_accuracy(candidate: Candidate, accuracy: float, test_digest: str = "test-1") -> Candidate:
    """Another model: its content is told by its digest."""
    metrics = {"accuracy": accuracy, "macro_f1": 1 - accuracy}
    return replace(candidate, model_sha256=f"{accuracy}{test_digest}", metrics=metrics, test_digest=test_digest)


def no_rescore(uri: str) -> Mapping[str, float]:
    raise AssertionError(f"{uri} was judged on the same test images before")


def aliases() -> dict[str, str]:
    return {alias: str(version) for alias, version in MlflowClient().get_registered_model(NAME).aliases.items()}


def test_a_version_is_registered_once_per_content(candidate: Candidate) -> None:
    assert champion_of(NAME) is None
    assert add(candidate) == "1"
    assert add(candidate) == "1"
    assert add(replace(candidate, run_id="gone")) == "1"  # found by content, the run does not matter
    assert add(replace(candidate, test_digest="test-2")) == "2"
    assert add(replace(candidate, model_sha256="n" * 64)) == "3"
    assert add(replace(candidate, onnx_sha256="o" * 64)) == "4"
    assert len(MlflowClient().search_model_versions(f"name = '{NAME}'")) == 4


def test_a_version_whose_files_were_deleted_is_registered_anew(candidate: Candidate, store: Path) -> None:
    assert add(candidate) == "1"
    challenge(NAME, "1", candidate, "accuracy", no_rescore)
    shutil.rmtree(store / "mlflow/artifacts")
    assert add(candidate) == "2"
    assert challenge(NAME, "2", candidate, "accuracy", no_rescore)[0] == "champion"
    registry.load(f"models:/{NAME}@champion")


def test_a_version_that_is_measured_anew_is_compared_by_its_new_metrics(candidate: Candidate) -> None:
    challenge(NAME, add(candidate), candidate, "accuracy", no_rescore)
    assert add(replace(candidate, metrics={"accuracy": 0.4, "macro_f1": 0.3})) == "1"  # `evaluate` was changed
    other = with_accuracy(candidate, 0.5)
    assert challenge(NAME, add(other), other, "accuracy", no_rescore)[0] == "champion"


def test_a_version_belongs_to_its_run(candidate: Candidate) -> None:
    version = MlflowClient().get_model_version(NAME, add(candidate))
    assert version.run_id == candidate.run_id
    assert version.tags[tracking.MODEL_TAG] == candidate.model_sha256
    assert MlflowClient().get_run(candidate.run_id).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("metric", "accuracy", "alias"),
    [
        ("accuracy", 0.79, "challenger"),
        ("accuracy", 0.8, "champion"),
        ("accuracy", 0.81, "champion"),
        ("macro_f1", 0.81, "challenger"),  # 0.19 against 0.7
        ("macro_f1", 0.1, "champion"),
        ("accuracy", float("nan"), "challenger"),
    ],
)
def test_a_worse_candidate_does_not_replace_the_champion(
    metric: str, accuracy: float, alias: str, candidate: Candidate
) -> None:
    first = add(candidate)
    assert challenge(NAME, first, candidate, metric, no_rescore)[0] == "champion"
    other = with_accuracy(candidate, accuracy)
    second = add(other)
    found, reason = challenge(NAME, second, other, metric, no_rescore)
    assert found == alias
    assert (
        f"{metric} {other.metrics[metric]:.4f} against {candidate.metrics[metric]:.4f} of version 1 on the same test images"
        in reason
    )
    assert "may have been" not in reason
    champion = champion_of(NAME)
    assert champion is not None
    assert str(champion.version) == (second if alias == "champion" else first)
    assert aliases() == ({"champion": second} if alias == "champion" else {"champion": first, "challenger": second})


def test_further_targets_that_the_champion_answers_and_the_candidate_does_not_are_named(candidate: Candidate) -> None:
    age, weather = FurtherTarget(Task("numbers.age"), ("age",)), FurtherTarget(Task("tags.w, x"), ("a", "b"))
    several = replace(candidate, further=(age, weather))
    challenge(NAME, add(several), several, "accuracy", no_rescore)
    said = {}
    for accuracy, further in ((0.5, (age, weather)), (0.6, (weather,)), (0.7, ()), (0.9, (age,)), (0.95, ())):
        other = replace(with_accuracy(candidate, accuracy), further=further)
        said[accuracy] = challenge(NAME, add(other), other, "accuracy", no_rescore)
    assert [alias for alias, _ in said.values()] == [*["challenger"] * 3, *["champion"] * 2]
    lost = {accuracy: reason.partition("its predictions have no ")[2] for accuracy, (_, reason) in said.items()}
    assert lost == {
        0.5: "",
        0.6: "numbers.age, which those of version 1 have",
        0.7: "numbers.age, tags.w, x, tags.w, x.probabilities, which those of version 1 have",
        0.9: "tags.w, x, tags.w, x.probabilities, which those of version 1 have",
        0.95: "numbers.age, which those of version 5 have",
    }


def test_the_champion_stays_what_it_is_when_it_comes_again(candidate: Candidate) -> None:
    version = add(candidate)
    challenge(NAME, version, candidate, "accuracy", no_rescore)
    assert challenge(NAME, version, candidate, "accuracy", no_rescore) == (
        "champion", "already the champion, accuracy 0.8000",
    )  # fmt: skip


def test_a_challenger_that_wins_later_is_no_longer_challenger(candidate: Candidate) -> None:
    challenge(NAME, add(candidate), candidate, "accuracy", no_rescore)
    other = with_accuracy(candidate, 0.6)  # macro F1 0.4
    second = add(other)
    challenge(NAME, second, other, "accuracy", no_rescore)
    assert aliases() == {"champion": "1", "challenger": "2"}
    better = replace(other, metrics={"accuracy": 0.9})
    assert challenge(NAME, second, better, "accuracy", no_rescore)[0] == "champion"
    assert aliases() == {"champion": "2"}


@pytest.mark.parametrize(("champions_score", "alias"), [(0.85, "challenger"), (0.6, "champion")])
def test_on_other_test_images_the_champion_is_judged_again(
    champions_score: float, alias: str, candidate: Candidate
) -> None:
    challenge(NAME, add(candidate), candidate, "accuracy", no_rescore)
    other = with_accuracy(candidate, 0.7, "test-2")
    asked: list[str] = []

    def rescore(uri: str) -> Mapping[str, float]:
        asked.append(uri)
        return {"accuracy": champions_score}

    found, reason = challenge(NAME, add(other), other, "accuracy", rescore)
    assert found == alias
    assert reason.endswith("it was judged on others before and may have been trained on some of these")
    assert asked == [f"models:/{NAME}/1"]


def test_a_database_that_does_not_answer_is_not_taken_for_no_champion(
    candidate: Candidate, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    challenge(NAME, add(candidate), candidate, "accuracy", no_rescore)
    client = tracking.connect()
    monkeypatch.setattr(tracking, "connect", lambda: client)  # it answered a moment ago
    (store / "mlflow" / "mlflow.db").write_bytes(b"no database" * 99)
    with pytest.raises(tracking.TrackingError):
        champion_of(NAME)


@pytest.mark.parametrize("uri", ["models:/deepcv-nothing@champion", f"models:/{NAME}/7"])
def test_a_model_that_is_not_there_is_named(uri: str) -> None:
    with pytest.raises(tracking.RegistryError, match=rf"{uri} cannot be loaded"):
        registry.load(uri)


def test_a_new_process_loads_the_champion_and_predicts_the_same(
    candidate: Candidate, onnx_file: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    challenge(NAME, add(candidate), candidate, "accuracy", no_rescore)
    moved = tmp_path / "another place"
    store.rename(moved)  # the project folder was moved meanwhile
    monkeypatch.setenv("DEEPCV_HOME", str(moved))
    encoded = [encode_png(toys.picture(n, 5, 9)) for n in range(3)]
    for number, content in enumerate(encoded):
        (tmp_path / f"{number}.png").write_bytes(content)
    script = (
        "import sys; from pathlib import Path; import mlflow, pandas as pd; from deepcv import tracking\n"
        "tracking.connect()\n"
        f"model = mlflow.pyfunc.load_model('models:/{NAME}@champion')\n"
        "table = model.predict(pd.DataFrame({'image': [Path(p).read_bytes() for p in sys.argv[1:]]}))\n"
        "print(table['label'].tolist(), table['probabilities'].tolist(), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *(str(tmp_path / f"{n}.png") for n in range(3))],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    expected = Predictor(onnx_file).predict(pd.DataFrame({"image": encoded}))
    assert done.stdout.strip() == (
        f"{expected['label'].tolist()} {np.stack(expected['probabilities']).tolist()} False"
    ), done.stderr


def test_a_model_is_loaded_outside_any_project(candidate: Candidate, tmp_path: Path) -> None:
    challenge(NAME, add(candidate), candidate, "accuracy", no_rescore)
    (tmp_path / "dvc.yaml").unlink()  # DEEPCV_HOME alone says where the registry is
    model = registry.load(f"models:/{NAME}@champion")
    assert len(model.predict(pd.DataFrame({"image": [encode_png(toys.picture(0))]}))) == 1
