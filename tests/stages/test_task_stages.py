"""Stages where labels or numbers are learned: their reports, and how a champion is judged."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import toys
from mlflow.types import DataType
from mlflow.types.schema import Array
from test_tensorboard import shown

from deepcv import home, registry, tracking
from deepcv.data import manifest, packing, preparation, quarantine
from deepcv.data.samples import Sample
from deepcv.data.shards import Dataset, open_shards
from deepcv.data.splits import SplitRule
from deepcv.errors import DeepcvError
from deepcv.evaluation import metrics
from deepcv.evaluation.inference import outputs_of
from deepcv.images import ImageRecipe, decode, encode_png
from deepcv.nn.classifier import ModelInfo, create
from deepcv.serving import predictor
from deepcv.serving.onnx_export import check as onnx_check
from deepcv.serving.onnx_export import export
from deepcv.serving.predictor import ExportInfo, Predictor
from deepcv.stages import evaluate, register, train
from deepcv.stages import export as export_stage
from deepcv.task import CLASSIFICATION, FurtherTarget, Task
from deepcv.training.losses import Term

LABELS, NUMBERS = Task("tags.bright"), Task("numbers", (500.0, 500.0), (300.0, 300.0))


def test_the_report_of_labels(tmp_path: Path) -> None:
    shards = open_shards(toys.write_task_shards(tmp_path / "shards", LABELS))
    truth = np.array(shards.test.labels)
    logits = np.where(truth > 0, 2.0, -2.0).astype(np.float32)
    logits[0] = -logits[0]
    scores = evaluate.report_labels(tmp_path, shards, logits, 4)
    assert scores["accuracy"] == 1 - 2 / truth.size
    assert scores["exact_match"] == 1 - 1 / len(truth)
    assert 0.5 < scores["mean_average_precision"] < 1
    rows = (tmp_path / "predictions.csv").read_text().splitlines()
    said = [";".join(name for name, there in zip(("left", "right"), row, strict=True) if there) for row in truth]
    assert [row.split(",")[0] for row in rows] == ["actual", *said]
    assert [row.split(",")[1] for row in rows[2:]] == said[1:]
    assert rows[1].split(",")[1] != said[0]
    assert len((tmp_path / "per_label.csv").read_text().splitlines()) == 3
    assert decode((tmp_path / "mistakes.png").read_bytes()).size
    assert decode((tmp_path / "precision_recall.png").read_bytes()).std() > 1


def test_the_report_of_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = open_shards(toys.write_task_shards(tmp_path / "shards", Task("numbers")))
    answers = np.array(shards.test.labels) + np.float32([3, -4])
    answers[5] += 2000  # the worst
    drawn: list[np.ndarray] = []
    monkeypatch.setattr(evaluate, "grid", lambda images, *_rest, **_options: drawn.append(images) or images[0])
    scores = evaluate.report_numbers(tmp_path, shards, answers, 2)
    assert set(scores) == {"r2"}  # errors of two numbers have no one unit
    assert np.array_equal(drawn[0][0], shards.test.images_nhwc[5])
    table = (tmp_path / "per_number.csv").read_text().splitlines()
    assert table[0] == "number,mae,rmse,r2"
    assert float(table[1].split(",")[1]) == pytest.approx((15 * 3 + 2003) / 16, rel=1e-4)
    assert decode((tmp_path / "predictions.png").read_bytes()).std() > 1
    first, row = (tmp_path / "predictions.csv").read_text().splitlines()[:2]
    assert first == "actual left,actual right,predicted left,predicted right"
    assert [float(cell) for cell in row.split(",")] == [*shards.test.labels[0], *answers[0]]


def test_the_report_of_further_targets(tmp_path: Path) -> None:
    shards = open_shards(toys.write_several_shards(tmp_path / "shards"))
    (size, bright), truth = shards.further, shards.test.further
    outputs = {
        "size": np.array(truth[size.of]) + 3,
        "bright": np.where(truth[bright.of] > 0, 2.0, -2.0).astype(np.float32),
        "again": np.array(truth[size.of]) + 5,
    }
    further = {"size": size, "bright": bright, "again": size}
    scores = evaluate.report_further(tmp_path, shards, further, outputs)
    assert scores[size.of] == {"r2": pytest.approx(1, abs=1e-3), "mae": 3.0, "rmse": 3.0}
    assert scores[bright.of] == {"mean_average_precision": 1.0, "macro_f1": 1.0, "accuracy": 1.0}
    rows = [row.split(",") for row in (tmp_path / "further_targets.csv").read_text(encoding="utf-8").splitlines()]
    assert ",".join(rows[0]) == "target,output,name,r2,mae,rmse,precision,recall,f1,average_precision,support"
    assert [row[:3] for row in rows[1:]] == [
        ["numbers.größe/2", "size", "größe/2"], ["tags.bright", "bright", "left"], ["tags.bright", "bright", "right"],
        ["numbers.größe/2", "again", "größe/2"],
    ]  # fmt: skip
    assert [row[4] for row in rows[1:]] == ["3.0", "", "", "5.0"]
    assert rows[2][3:] == ["", "", "", "1.0", "1.0", "1.0", "1.0", str(int(truth[bright.of][:, 0].sum()))]
    assert rows[4][6:] == [""] * 5
    assert [path.name for path in tmp_path.glob("*.png")] == ["further_1.png"]  # labels have no scatter picture
    assert decode((tmp_path / "further_1.png").read_bytes()).std() > 1
    assert evaluate.report_further(tmp_path / "none", shards, {}, {}) == {}
    assert not (tmp_path / "none").exists()


PARAMS = """\
train:
  network: network.yaml
  epochs: 3
  batch_size: 8
  device: cpu
  precision: fp32
  losses:
  - {loss: cross_entropy}
  - {loss: mse, output: size, target: numbers.größe/2}
  - {loss: bce, output: bright, target: tags.bright}
evaluate: {batch_size: 5, worst: 4}
export: {tolerance: 1.0e-4}
"""


def several_targets_project(folder: Path, network: str = toys.THREE_HEADS, params: str = PARAMS) -> Dataset:
    shards = open_shards(toys.write_several_shards(train.SHARDS))
    toys.network(folder, network)
    toys.no_weights(folder)
    Path("versions.yaml").write_text('torch: "1"\n')
    Path("params.yaml").write_text(params)
    return shards


def test_further_targets_go_through_the_stages(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert store
    shards = several_targets_project(tmp_path)
    finish = train.main()
    assert finish is not None
    finish()
    evaluate.main()
    export_stage.main()
    said = capsys.readouterr().out
    assert "toy: 16 test images, accuracy " in said
    assert "\n  numbers.größe/2: r2 " in said
    assert "\n  tags.bright: mean average precision " in said
    scores = json.loads((evaluate.EVALUATION / "metrics.json").read_text())
    assert list(scores)[3:] == [
        "images", "numbers.größe/2.r2", "numbers.größe/2.mae", "numbers.größe/2.rmse",
        "tags.bright.mean_average_precision", "tags.bright.macro_f1", "tags.bright.accuracy",
    ]  # fmt: skip
    exported = Predictor(register.ONNX_FILE)
    assert exported.info.further == shards.further
    found = exported.run(np.array(shards.test.images_nhwc))["numbers.größe/2"]
    error = np.abs(found.astype(np.float64) - shards.test.further["numbers.größe/2"]).mean()
    assert scores["numbers.größe/2.mae"] == pytest.approx(error, rel=1e-4)
    client = tracking.connect()
    experiment = client.get_experiment_by_name(tracking.experiment_of("toy"))
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics[tracking.metric_name("test_numbers.größe/2.mae")] == scores["numbers.größe/2.mae"]
    judged = ["val_numbers.größe/2.r2", "val_tags.bright.accuracy"]
    rows = pd.read_csv(train.MODEL / "history.csv")
    assert list(rows) == ["epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", *judged]
    for name in judged:
        assert run.data.metrics[tracking.metric_name(name)] == rows[name].iloc[-1]
    (board,) = (home.state_dir() / "tensorboard").iterdir()
    assert shown(board).keys() == set(rows) - {"epoch"} | {"step/train_loss", "step/lr"}


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(("network", "params", "says"), [
    (toys.THREE_HEADS.replace("features: 2", "features: 1"), PARAMS, "it needs 2 values for 'tags.bright', the output has 1"),
    (toys.THREE_HEADS, PARAMS.replace("output: size", "output: logits"), "logits answers preprocess.target and cannot learn"),
    (toys.THREE_HEADS, PARAMS.split("  - {loss: bce")[0], "no term uses the network's output 'bright'"),
])  # fmt: skip
def test_losses_that_do_not_fit_open_no_run(network: str, params: str, says: str, tmp_path: Path) -> None:
    several_targets_project(tmp_path, network, params)
    with pytest.raises(DeepcvError, match=says):
        train.main()
    assert tracking.connect().get_experiment_by_name(tracking.experiment_of("toy")) is None


def test_further_targets_that_nothing_learns_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = open_shards(toys.write_several_shards(tmp_path / "shards"))
    losses = (Term("cross_entropy"), Term("mse", "size", "numbers.größe/2"), Term("none", "bright"))
    network = toys.network(tmp_path, toys.THREE_HEADS)
    train.check(network, None, toys.config(losses=losses), shards)
    assert capsys.readouterr().err == (
        "warning: the further targets tags.bright are in data/shards, and none of train.losses learns them\n"
    )
    train.check(network, None, toys.config(losses=(*losses[:2], Term("bce", "bright", "tags.bright"))), shards)
    assert capsys.readouterr().err == ""


def test_a_model_predicts_further_targets_as_its_signature_says(store: Path, tmp_path: Path) -> None:
    assert store
    shards = open_shards(toys.write_several_shards(tmp_path / "shards"))
    info = ModelInfo(
        "toy",
        shards.classes,
        toys.RECIPE,
        (0.5,),
        (0.5,),
        further={"size": shards.further[0], "bright": shards.further[1]},
    )
    model = create(toys.network(tmp_path, toys.THREE_HEADS).canonical(), info).eval()
    exported = ExportInfo("toy", info.classes, ImageRecipe(**toys.RECIPE), "m", info.task, shards.further)
    export(model, exported, tmp_path / "model.onnx")
    run_id = tracking.start_run(tracking.experiment_of("toy"), "train", {}, {})
    scores = {"accuracy": 0.5, "numbers.größe/2.r2": 0.25}
    candidate = registry.Candidate(
        tracking.experiment_of("toy"), run_id, tmp_path / "model.onnx", "m", "o", "d", scores, info.classes, info.task,
        shards.further,
    )  # fmt: skip
    version = registry.register(candidate, predictor.__name__, ["numpy"])
    assert registry.challenge(candidate.name, version, candidate, "accuracy", lambda _uri: {})[0] == "champion"
    files = [encode_png(np.array(image)) for image in shards.test.images_nhwc]
    found = registry.load(f"models:/{candidate.name}/{version}").predict(pd.DataFrame({"image": files}))
    names = ["numbers.größe/2", "tags.bright", "tags.bright.probabilities"]
    assert list(found) == ["label", "probability", "probabilities", *names]
    assert candidate.signature.outputs.input_names() == list(found)
    made = Predictor(tmp_path / "model.onnx").run(np.array(shards.test.images_nhwc))
    assert np.allclose(found[names[0]], made[names[0]][:, 0])
    assert np.allclose(found[names[2]].tolist(), made["tags.bright"])
    said = [";".join(n for n, p in zip(("left", "right"), row, strict=True) if p >= 0.5) for row in made["tags.bright"]]
    assert found["tags.bright"].tolist() == said


def test_labels_with_a_further_number_are_predicted_as_the_signature_says(tmp_path: Path) -> None:
    network = toys.THREE_HEADS.replace("  - {id: bright, op: linear, features: 2, from: hidden}\n", "")
    size = FurtherTarget(Task("numbers", (500.0, 2.0), (300.0, 0.5)), ("größe", "file"))
    spec = toys.network(tmp_path, network.replace(", bright: bright", "").replace("features: 1", "features: 2"))
    info = ModelInfo("toy", ("left", "right"), toys.RECIPE, (0.5,), (0.5,), "one", LABELS, {"size": size})
    model = create(spec.canonical(), info).eval()
    exported = ExportInfo("toy", info.classes, ImageRecipe(**toys.RECIPE), "m", LABELS, (size,))
    export(model, exported, tmp_path / "model.onnx")
    images = np.stack([toys.picture(number) for number in range(6)])
    assert onnx_check(model, tmp_path / "model.onnx", images, 1e-5) <= 1e-5
    found = Predictor(tmp_path / "model.onnx").predict(pd.DataFrame({"image": [encode_png(image) for image in images]}))
    candidate = registry.Candidate(
        "toy", "", tmp_path / "model.onnx", "m", "o", "d", {}, info.classes, LABELS, (size,)
    )  # fmt: skip
    assert list(found) == ["labels", "probabilities", "numbers.größe", "numbers.file"]
    assert candidate.signature.outputs.input_names() == list(found)
    number = DataType.double
    assert candidate.signature.outputs.input_types() == [DataType.string, Array(number), number, number]
    logits, numbers = outputs_of(model, images, ["logits", "size"], batch_size=4, device=torch.device("cpu"))
    assert np.allclose(found["probabilities"].tolist(), metrics.sigmoid(logits), atol=1e-6)
    assert np.allclose(found[["numbers.größe", "numbers.file"]], numbers, rtol=1e-5)
    assert [len(labels.split(";")) if labels else 0 for labels in found["labels"]] == (logits >= 0).sum(axis=1).tolist()


def annotated(number: int) -> Sample:
    image = toys.picture(number)
    left, right = (number % 2, number // 2 % 2)
    image[:, :4], image[:, 4:] = 255 * left, 255 * right
    image[0, 0] = number
    content = {
        "tags": {"bright": [name for name, there in (("left", left), ("right", right)) if there]},
        "numbers": {"left": 1000.0 * left, "right": 1000.0 * right},
    }
    split = ("train", "val", "test", "test")[number // 4 % 4]
    return Sample(f"{number:02d}.png", split, "image", encode_png(image), json.dumps(content))


@pytest.fixture(params=[LABELS, NUMBERS], ids=["labels", "numbers"])
def task(request: pytest.FixtureRequest, store: Path, tmp_path: Path) -> Task:
    """A project with data/raw and a model in data/export that was not trained."""
    assert store
    register.RAW.mkdir(parents=True)
    samples = [annotated(number) for number in range(48)]
    packing.pack(samples, ("image",), register.RAW, name="toy", source="toy", rule=SplitRule(0.2, 0.2, 0))
    register.QUARANTINE.parent.mkdir(parents=True)
    register.QUARANTINE.write_text("id,check,reason\n08.png,blurred,it is\n")
    info = ModelInfo("toy", ("left", "right"), toys.RECIPE, (0.5,), (0.5,), task=request.param)
    model = create(toys.network(tmp_path).canonical(), info).eval()
    export(model, ExportInfo("toy", info.classes, ImageRecipe(**toys.RECIPE), "m", info.task), register.ONNX_FILE)
    return info.task


def test_shards_have_what_is_learned(task: Task, tmp_path: Path) -> None:
    targets = preparation.learned(register.RAW, task, ("image",))
    folder = tmp_path / "shards"
    folder.mkdir()
    preparation.prepare_all(register.RAW, folder, ImageRecipe(8, 8, 1), targets, processes=1, done=lambda _count: None)
    train = np.load(folder / "train_labels.npy")
    halves = np.load(folder / "train_images.npy")[:, 4, [1, 6], 0] > 127
    assert train.dtype == np.float32
    assert np.array_equal(train, halves * (1 if task == LABELS else 1000))


def test_a_champion_is_judged_on_what_the_candidate_learns(task: Task) -> None:
    exported = Predictor(register.ONNX_FILE).info
    name = tracking.experiment_of("toy")
    run_id = tracking.start_run(name, "train", {}, {})
    candidate = registry.Candidate(
        name, run_id, register.ONNX_FILE, "m", "o", "old", {"r2": 0.0}, exported.classes, exported.task
    )
    uri = f"models:/{name}/{registry.register(candidate, predictor.__name__, ['numpy'])}"
    rows, _ = manifest.read(register.RAW)
    test = rows[(rows["split"] == "test") & (rows["id"] != "08.png")]
    said = Predictor(register.ONNX_FILE).answers_of_files(manifest.encoded_images(register.RAW, test))
    contents = [json.loads(text) for text in test["annotations"]]
    found = register.judge_on_current_test_images(exported, uri)
    if task == LABELS:
        truth = np.array([[name in content["tags"]["bright"] for name in ("left", "right")] for content in contents])
        assert found["accuracy"] == pytest.approx(((said >= 0.5) == truth).mean())
        assert 0 < found["mean_average_precision"] <= 1
    else:
        numbers = np.array([[content["numbers"][name] for name in ("left", "right")] for content in contents])
        wrong, spread = ((said - numbers) ** 2).sum(axis=0), ((numbers - numbers.mean(axis=0)) ** 2).sum(axis=0)
        assert found["r2"] == pytest.approx((1 - wrong / spread).mean(), rel=1e-5)
    other = ExportInfo("toy", ("left", "up"), exported.recipe, "m", exported.task)
    with pytest.raises(
        DeepcvError, match=r"answers .* \(left, right\), this model .* \(left, up\); give the dataset another"
    ):
        register.judge_on_current_test_images(other, uri)


def test_the_digest_of_the_test_images_covers_what_is_learned(task: Task) -> None:
    def digests() -> tuple[str, str]:
        return (
            quarantine.digest_of_kept_test_images(register.RAW, frozenset(), task),
            quarantine.digest_of_kept_test_images(register.RAW, frozenset(), CLASSIFICATION),
        )

    before = digests()
    rows, _ = manifest.read(register.RAW)
    tested = rows.index[rows["split"] == "test"][0]
    rows.loc[tested, "annotations"] = rows.loc[tested, "annotations"].replace("left", "high")
    rows.to_parquet(register.RAW / "manifest.parquet")
    after = digests()
    assert after[0] != before[0]
    other = Task("tags.dark" if task == LABELS else "numbers.left")
    assert quarantine.digest_of_kept_test_images(register.RAW, frozenset(), other) != after[0]
    assert after[1] == before[1]  # of its class alone
