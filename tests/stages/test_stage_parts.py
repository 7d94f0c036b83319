import json
import os
import time
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest
import torch
import toys
from mlflow import MlflowClient

from deepcv import lineage, network_registry, registry, tracking
from deepcv.data import manifest, packing
from deepcv.data.augmentation import Recipe
from deepcv.data.augmentation.policies import Operation
from deepcv.data.shards import Dataset
from deepcv.data.sources import open_source
from deepcv.data.splits import SplitRule
from deepcv.files import sha256
from deepcv.images import ImageRecipe, decode, grid
from deepcv.locks import locked
from deepcv.nn import classifier, spec
from deepcv.nn.classifier import ModelInfo, create
from deepcv.nn.module import DeepcvModule
from deepcv.nn.weights import of_recipe
from deepcv.params.train import TrainParams
from deepcv.params.validate import REGISTERED
from deepcv.receipts import RECEIPT, drop_orphan
from deepcv.serving import predictor
from deepcv.serving.onnx_export import export
from deepcv.serving.predictor import ExportInfo, Predictor
from deepcv.stages import archive, evaluate, register, train
from deepcv.training.config import TrainConfig
from deepcv.training.hardware import Hardware

TWO_OUTPUTS = """\
  - {id: near, op: linear, features: 6, from: pool}
  - {id: other, op: linear, features: 6, from: pool}
outputs: {logits: head, near: near, other: other}
"""


@pytest.mark.parametrize("count", [0, 1, 5, 99])
def test_the_worst_mistakes_are_drawn(count: int, tmp_path: Path) -> None:
    shards = toys.shards(tmp_path / "shards")
    logits = np.zeros((8, 2), np.float32)
    evaluate.draw_mistakes(tmp_path / "mistakes.png", shards, logits, count)
    assert decode((tmp_path / "mistakes.png").read_bytes()).size


def test_the_worst_mistake_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = toys.shards(tmp_path / "shards")  # labels 0, 1, 0, 1, …
    logits = np.zeros((8, 2), np.float32)
    logits[:, 0] = [0, 3, 5, 1, -9, 0, 0, 0]  # image 4 is a 0 and gets the least; then images 1 and 3, which are 1
    drawn: list[np.ndarray] = []
    monkeypatch.setattr(evaluate, "grid", lambda images, *_rest, **_options: drawn.append(images) or images[0])
    evaluate.draw_mistakes(tmp_path / "mistakes.png", shards, logits, 3)
    assert np.array_equal(drawn[0], shards.test.images_nhwc[[4, 1, 3]])


@pytest.mark.parametrize(("most", "shown"), [(1000, range(8)), (3, [0, 2, 5])])
def test_images_of_the_whole_test_split_are_laid_out(
    most: int, shown: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = toys.shards(tmp_path / "shards")
    info = ModelInfo(shards.name, shards.classes, shards.recipe, shards.mean, shards.std)
    model = create(toys.network(tmp_path).canonical(), info).eval()
    drawn: list[tuple[np.ndarray, ...]] = []
    monkeypatch.setattr(evaluate, "_EMBEDDED", most)
    monkeypatch.setattr(evaluate.plots, "draw_embedding", lambda *arguments: drawn.append(arguments))
    logits = np.tile(np.float32([[1, 0]]), (8, 1))  # all are taken for 0
    evaluate.draw_embedding(tmp_path / "x.png", model, shards, logits, 3)
    ((points, labels, wrong, *_),) = drawn
    assert points.shape == (len(shown), 2)
    assert labels.tolist() == [n % 2 for n in shown]
    assert wrong.tolist() == [n % 2 == 1 for n in shown]


def test_an_embedding_that_a_loss_trained_has_a_picture_of_its_own(project: Path, tmp_path: Path) -> None:
    assert project
    text = toys.NETWORK.replace("outputs: {logits: head}", TWO_OUTPUTS)
    toys.network(tmp_path, text)
    params = Path("params.yaml")
    losses = "losses: [{loss: cross_entropy}, {loss: triplet, output: near}, {loss: none, output: other}]"
    params.write_text(params.read_text().replace("precision: fp32", f"precision: fp32, {losses}") + "evaluate: {}\n")
    finish = train.main()
    assert finish is not None
    finish()
    evaluate.main()
    drawn = {path.name for path in evaluate.EVALUATION.glob("embedding*")}
    assert drawn == {"embedding.png", "embedding_of_near.png"}


@pytest.mark.parametrize(("count", "shown"), [(0, 0), (1, 1), (99, 4)])
def test_confident_mistakes_are_mistakes_alone(
    count: int, shown: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = toys.shards(tmp_path / "shards")  # labels 0, 1, 0, 1, …
    logits = np.log(np.array([[0.9, 0.1], [0.8, 0.2], [0.9, 0.1], [0.98, 0.02]] * 2, np.float32))
    drawn: list[tuple[np.ndarray, list[tuple[str, ...]]]] = []

    def watched(images: np.ndarray, captions: list[tuple[str, ...]], columns: int) -> np.ndarray:
        drawn.append((images, captions))
        return grid(images, captions, columns)

    monkeypatch.setattr(evaluate, "grid", watched)
    evaluate.draw_confident_mistakes(tmp_path / "sure.png", shards, logits, count)
    ((images, captions),) = drawn
    assert np.array_equal(images, shards.test.images_nhwc[[3, 7, 1, 5][:shown]])
    said = [("as dark", f"p={p}", "is light") for p in ("0.980", "0.980", "0.800", "0.800")]
    assert captions == said[:shown]
    assert decode((tmp_path / "sure.png").read_bytes()).size


def test_no_mistake_is_an_empty_picture(tmp_path: Path) -> None:
    shards = toys.shards(tmp_path / "shards")
    right = np.eye(2, dtype=np.float32)[shards.test.labels]
    evaluate.draw_confident_mistakes(tmp_path / "sure.png", shards, right, 9)
    assert (decode((tmp_path / "sure.png").read_bytes()) == 255).all()


def test_mistakes_are_said_in_words() -> None:
    assert evaluate.caption(("cat", "dog"), 1, 0, float(np.log(0.125))) == ("is dog", "as cat", "p=0.125")


def train_params(**changes: object) -> TrainParams:
    return TrainParams.model_validate({"network": "network.yaml", **changes})


def key(params: TrainParams, shards: Dataset, precision: Literal["fp32", "bf16"] = "fp32") -> str:
    hardware = Hardware("cpu", precision, channels_last=True, threads=1)
    return train.training_key(params, spec.load(Path(params.network)), hardware, shards)


def test_the_training_key_holds_all_that_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    toys.network(tmp_path)
    weights = toys.no_weights(tmp_path)
    Path("versions.yaml").write_text('torch: "1"\n')
    one, two = toys.shards(tmp_path / "one"), toys.shards(tmp_path / "two", train=16)
    keys = [key(train_params(), one)]
    assert key(train_params(), one) == keys[0]
    assert key(train_params(precision="fp32", channels_last=True, threads=1, device="cpu", processes=1), one) == keys[0]
    keys += [key(train_params(lr=0.5), one), key(train_params(), two)]
    Path("versions.yaml").write_text('torch: "2"\n')
    keys.append(key(train_params(), one))
    toys.network(tmp_path, toys.NETWORK.replace("channels: 4", "channels: 5"))
    keys.append(key(train_params(), one))
    keys.append(key(train_params(), one, precision="bf16"))
    weights.write_text("source: timm\nname: resnet18.a1_in1k\n")
    keys += [key(train_params(), one), key(train_params(freeze=["stem"]), one)]
    assert len(set(keys)) == 8


def test_params_become_the_configuration_of_a_training() -> None:
    values = {"policy": "augmix", "operations": [{"name": "flip", "probability": 0.5}], "mixup": {"probability": 0.2}}
    params = train_params(lr=0.5, augmentation=values)
    config = TrainConfig.of(params.configuration())
    assert config.lr == 0.5
    assert config.augmentation.operations == (Operation("flip", probability=0.5),)
    assert (config.augmentation.policy, config.augmentation.mixup.probability) == ("augmix", 0.2)
    plain = TrainConfig.of(train_params().configuration())
    assert plain.augmentation == Recipe()


def test_forgotten_checkpoints_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPCV_HOME", str(tmp_path))
    now = time.time()
    for days, key in enumerate(["today", "yesterday"]):
        os.utime(train.checkpoint_folder(key), (now - days * 86_400,) * 2)
    for key in ("forgotten", "forgotten but busy"):
        os.utime(train.checkpoint_folder(key), (now - 40 * 86_400,) * 2)
    with locked(archive.lock("forgotten but busy")):
        for path in (archive.lock("killed long ago"), archive.lock("forgotten but busy")):
            path.touch()
            os.utime(path, (now - 40 * 86_400,) * 2)
        train.checkpoint_folder("new")
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["forgotten but busy", "new", "today", "yesterday"]


def accuracy_curve(run_id: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in MlflowClient().get_metric_history(run_id, "val_accuracy")]


@pytest.fixture
def outputs(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the stages before `register` leave, in small; the working directory."""
    assert store
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    names = [f"{c}/{n}.png" for c in ("dark", "light") for n in range(6)]
    source = open_source(toys.write_images(tmp_path / "pets", names), tmp_path)
    register.RAW.mkdir(parents=True)
    packing.pack(
        source.samples(), source.classes, register.RAW, name="toy", source="pets",
        rule=SplitRule(0.2, 0.5, 0),
    )  # fmt: skip
    register.QUARANTINE.parent.mkdir()
    register.QUARANTINE.write_text("id,check,reason\n")
    register.CANDIDATE.write_bytes(b"data one")
    register.PICTURE.parent.mkdir(parents=True)
    register.PICTURE.write_bytes(b"PNG")
    register.MODEL.mkdir()
    (register.MODEL / "history.csv").write_text("epoch,val_accuracy\n1,0.5\n2,0.75\n")
    training = {
        "dataset": "toy",
        "data_digest": "d",
        "network_sha256": "n",
        "params": {"lr": 0.1},
        "hardware": {"threads": 1},
    }
    (register.MODEL / "training.json").write_text(json.dumps(training))
    register.EVALUATION.mkdir()
    (register.EVALUATION / "metrics.json").write_text(json.dumps({"accuracy": 0.5, "macro_f1": 0.5, "images": 6}))
    torch.manual_seed(0)
    recipe = ImageRecipe(8, 8, 1)
    info = ModelInfo("toy", ("dark", "light"), vars(recipe), (0.5,), (0.2,))
    canonical = toys.network(tmp_path).canonical()
    model = create(canonical, info).eval()
    classifier.save(register.MODEL / "model.pt", model, canonical, info)
    export(model, ExportInfo("toy", ("dark", "light"), recipe, sha256(register.MODEL / "model.pt")), register.ONNX_FILE)
    return tmp_path


def test_an_evaluation_is_logged_once_per_content(outputs: Path) -> None:
    assert outputs
    run_id = lineage.write_evaluation(register.MODEL, register.EVALUATION)
    assert lineage.write_evaluation(register.MODEL, register.EVALUATION) == run_id
    found = MlflowClient().get_run(run_id)
    assert found.data.params == {"lr": "0.1", "hardware.threads": "1", "data_digest": "d", "network_sha256": "n"}
    assert found.data.metrics["test_accuracy"] == 0.5
    assert accuracy_curve(run_id) == [(1, 0.5), (2, 0.75)]
    assert [a.path for a in MlflowClient().list_artifacts(run_id, "evaluation")] == ["evaluation/metrics.json"]
    (register.EVALUATION / "metrics.json").write_text(json.dumps({"accuracy": 0.75}))
    lineage.write_evaluation(register.MODEL, register.EVALUATION)
    assert MlflowClient().get_run(run_id).data.metrics["test_accuracy"] == 0.75


def test_a_run_that_is_written_again_says_how_its_batches_were_divided(outputs: Path) -> None:
    assert outputs
    path = register.MODEL / "training.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pieces": 4}))
    run_id = lineage.run_of(register.MODEL)
    assert MlflowClient().get_run(run_id).data.tags["deepcv.pieces"] == "4"


def test_the_gallerys_picture_is_logged_once_per_content(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (outputs / "reports/data/drift.json").write_text("{}")  # of another command: stays where it is
    logged: list[str] = []
    log_artifacts = tracking.log_artifacts
    monkeypatch.setattr(tracking, "log_artifacts", lambda *given: (logged.append(given[2]), log_artifacts(*given)))
    run_id = lineage.run_of(register.MODEL)
    register.write_picture(run_id)
    register.write_picture(run_id)
    assert logged == ["data"]
    assert [a.path for a in MlflowClient().list_artifacts(run_id, "data")] == ["data/gallery.png"]
    register.PICTURE.write_bytes(b"another PNG")
    register.write_picture(run_id)
    assert logged == ["data", "data"]
    assert Path(MlflowClient().download_artifacts(run_id, "data/gallery.png")).read_bytes() == b"another PNG"


def test_a_trained_network_comes_out_of_the_registry(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the model's name, with its spec and the weights that were exported; its files are logged once per content."""
    (outputs / "params.yaml").write_bytes((toys.REPOSITORY / "params.yaml").read_bytes())
    logged: list[str] = []
    log_artifacts = tracking.log_artifacts
    monkeypatch.setattr(tracking, "log_artifacts", lambda *given: (logged.append(given[2]), log_artifacts(*given)))
    register.main()
    register.main()
    assert logged.count("training") == 1
    network = network_registry.network("models:/deepcv-toy@champion")
    trained, info = classifier.load(register.MODEL / "model.pt")
    assert isinstance(network, DeepcvModule)
    assert network.spec.sha256() == toys.network(outputs).sha256()
    assert not network.training
    state = trained.network.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    weights = network_registry.weights("models:/deepcv-toy/1")
    assert weights.state.keys() == state.keys()
    assert weights.preprocessing == of_recipe(info.mean, info.std, info.recipe)


def test_a_version_of_a_former_run_gets_its_network_too(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an older DeepCV registered it, and the same bytes were then trained again."""
    (outputs / "params.yaml").write_bytes((toys.REPOSITORY / "params.yaml").read_bytes())
    with monkeypatch.context() as older:
        older.setattr(lineage, "write_training", lambda *_: None)
        register.main()
    first = lineage.run_of(register.MODEL)
    again = tracking.start_run("deepcv-toy", "train", {}, {tracking.MODEL_TAG: sha256(register.MODEL / "model.pt")})
    tracking.finish(again)
    assert lineage.run_of(register.MODEL) == again != first
    register.main()
    assert network_registry.network("models:/deepcv-toy@champion").blueprint.classes == 2


def test_register_leaves_a_receipt_of_content(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (outputs / "params.yaml").write_bytes((toys.REPOSITORY / "params.yaml").read_bytes())
    register.main()
    assert "deepcv-toy version 1 is champion: the first champion, accuracy 0.5000" in capsys.readouterr().out
    first = RECEIPT.read_bytes()
    assert json.loads(first) == {
        "name": "deepcv-toy", "model_sha256": sha256(register.MODEL / "model.pt"),
        "test_digest": manifest.read(register.RAW)[1].test_digest,
    }  # fmt: skip
    register.main()
    assert "version 1 is champion: already the champion" in capsys.readouterr().out
    assert RECEIPT.read_bytes() == first


def test_an_experiment_moves_no_alias(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (outputs / "params.yaml").write_bytes((toys.REPOSITORY / "params.yaml").read_bytes())
    monkeypatch.setenv("DVC_EXP_NAME", "try")
    register.main()
    assert "no alias is moved" in capsys.readouterr().out
    assert registry.champion_of("deepcv-toy") is None
    drop_orphan()
    assert RECEIPT.exists()  # within the experiment
    monkeypatch.delenv("DVC_EXP_NAME")
    drop_orphan()
    assert not RECEIPT.exists()  # after it, DVC lets the model challenge the champion


def test_register_puts_the_champions_data_where_validate_reads_it(
    outputs: Path, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (outputs / "params.yaml").write_bytes((toys.REPOSITORY / "params.yaml").read_bytes())
    assert Path(REGISTERED) == register.REGISTERED
    place = register.REGISTERED / "toy.parquet"

    def model(content: bytes, accuracy: float, data: bytes) -> None:
        with (register.MODEL / "model.pt").open("ab") as file:
            file.write(content)
        (register.EVALUATION / "metrics.json").write_text(json.dumps({"accuracy": accuracy}))
        register.CANDIDATE.write_bytes(data)
        register.main()

    with monkeypatch.context() as experiment:
        experiment.setenv("DVC_EXP_NAME", "try")
        register.main()
        assert not place.exists()
    register.main()
    assert place.read_bytes() == b"data one"
    model(b"worse", 0.4, b"data two")  # a challenger
    assert place.read_bytes() == b"data one"
    model(b"better", 0.9, b"data three")
    assert place.read_bytes() == b"data three"
    register.CANDIDATE.write_bytes(b"data three, looked at again")
    register.main()
    assert place.read_bytes() == b"data three, looked at again"
    MlflowClient().set_registered_model_alias("deepcv-toy", "champion", "1")  # by hand
    model(b"worse again", 0.3, b"data four")
    assert place.read_bytes() == b"data one"
    assert capsys.readouterr().out.count("is not known") == 0
    (kept,) = (path for path in store.rglob("reference/*/candidate.parquet") if path.read_bytes() == b"data one")
    kept.write_bytes(b"data 1")  # damaged
    register.put_reference("toy", "deepcv-toy")
    assert not place.exists()
    assert "what the champion's data looked like is not known" in capsys.readouterr().out
    register.main()  # of another version: version 1 stays without
    assert not place.exists()


def test_a_champion_is_judged_on_todays_test_images(outputs: Path) -> None:
    run_id = lineage.run_of(register.MODEL)
    candidate = registry.Candidate("deepcv-toy", run_id, register.ONNX_FILE, "m", "o", "old", {"accuracy": 0.0})
    version = registry.register(candidate, predictor.__name__, ["numpy"])
    rows, _ = manifest.read(register.RAW)
    test = rows[rows["split"] == "test"]
    images = pd.DataFrame({"image": list(manifest.encoded_images(register.RAW, test))})
    hits = Predictor(outputs / register.ONNX_FILE).predict(images)["label"].to_numpy() == test["label"].to_numpy()
    found = register.judge_on_current_test_images(Predictor(register.ONNX_FILE).info, f"models:/deepcv-toy/{version}")
    assert found["accuracy"] == hits.mean()
    assert 0 <= found["macro_f1"] <= 1


@pytest.mark.parametrize(
    ("takes_light_for", "accuracy", "macro_f1"),
    [("light", 1.0, 1.0), ("dark", 0.5, 1 / 3), ("a former class", 0.5, 1 / 2)],
)
def test_macro_f1_of_class_names_is_over_todays_classes(takes_light_for: str, accuracy: float, macro_f1: float) -> None:
    actual = pd.Series(["dark", "light"] * 3)
    found = register.scores_of(actual.replace({"light": takes_light_for}), actual, ("dark", "light", "none of these"))
    assert found == {"accuracy": accuracy, "macro_f1": pytest.approx(macro_f1)}
