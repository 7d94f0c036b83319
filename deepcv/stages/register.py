"""Stage `register`: the exported model as a version of `deepcv-<dataset>`, champion if it is not worse than the champion."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd

from deepcv import lineage, registry, tracking
from deepcv.data import manifest, quarantine, targets
from deepcv.errors import DeepcvError
from deepcv.evaluation import label_metrics, metrics
from deepcv.files import atomic, sha256, write_text
from deepcv.params.base import load_section
from deepcv.params.register import RegisterParams
from deepcv.receipts import RECEIPT
from deepcv.registry import Candidate
from deepcv.serving import predictor
from deepcv.stages import entry
from deepcv.task import CLASSIFICATION, LIKELY

RAW = Path("data/raw")
QUARANTINE = Path("data/validation/quarantine.csv")
CANDIDATE = Path("data/validation/candidate.parquet")
REGISTERED = Path("data/references/registered")  # what `validate.reference` may name
MODEL = Path("data/model")
EVALUATION = Path("data/evaluation")
ONNX_FILE = Path("data/export/model.onnx")
PICTURE = Path("reports/data/gallery.png")
PICTURE_TAG = "deepcv.gallery_sha256"
_SERVING_LIBRARIES = ("numpy", "onnxruntime", "opencv-python", "pandas")


def main() -> None:
    """Read the outputs of the stages before, move the registry's aliases, leave a receipt of content only."""
    params = load_section(RegisterParams)
    try:
        receipt = register(params)
    except tracking.TrackingError as error:
        raise DeepcvError(
            f"MLflow does not answer: {tracking.reason(error)}. Nothing is lost: run `dvc repro` again"
        ) from error
    write_text(RECEIPT, json.dumps(receipt, indent=2) + "\n")


def register(params: RegisterParams) -> dict[str, str]:
    """Find or create the version and give it its alias; `dvc exp run` moves no alias."""
    info = manifest.read_info(RAW)
    exported = predictor.Predictor(ONNX_FILE).info
    run_id = lineage.write_evaluation(MODEL, EVALUATION)
    write_picture(run_id)
    candidate = Candidate(
        name=tracking.experiment_of(info.name),
        run_id=run_id,
        onnx_file=ONNX_FILE,
        model_sha256=sha256(MODEL / "model.pt"),
        onnx_sha256=sha256(ONNX_FILE),
        test_digest=quarantine.digest_of_kept_test_images(RAW, quarantine.read(QUARANTINE), exported.task),
        metrics=json.loads((EVALUATION / "metrics.json").read_text(encoding="utf-8")),
        classes=exported.classes,
        task=exported.task,
        further=exported.further,
    )
    requirements = [f"{name}=={metadata.version(name)}" for name in _SERVING_LIBRARIES]
    version = registry.register(candidate, predictor.__name__, requirements)
    lineage.write_training(MODEL, registry.run_of(candidate.name, version))
    registry.keep_reference(candidate.name, version, CANDIDATE)
    receipt = {"name": candidate.name, "model_sha256": candidate.model_sha256, "test_digest": candidate.test_digest}
    if os.environ.get("DVC_EXP_NAME"):
        print(
            f"{candidate.name} version {version}: registered by an experiment, no alias is moved. "
            "To let it challenge the champion: dvc repro --force --single-item register"
        )
        receipt["experiment"] = "no alias was moved"  # another content, so that it can be told from a real one
    else:
        alias, reason = registry.challenge(
            candidate.name, version, candidate, params.metric, partial(judge_on_current_test_images, exported)
        )
        print(f"{candidate.name} version {version} is {alias}: {reason}")
        put_reference(info.name, candidate.name)
    return receipt


def put_reference(dataset: str, model: str) -> None:
    """Put what the champion's data looked like where `validate` finds it, or nothing where that is not known."""
    place = REGISTERED / f"{dataset}.parquet"
    champion = registry.champion_of(model)
    kept = None if champion is None else registry.reference_of(champion)
    if kept is None:
        place.unlink(missing_ok=True)
        print(
            f"what the champion's data looked like is not known: an older DeepCV registered it, or its run is gone; no {place}"
        )
    elif not place.is_file() or sha256(place) != sha256(kept):
        with atomic(place) as aside:
            shutil.copyfile(kept, aside)


def write_picture(run_id: str) -> None:
    """Write the gallery's picture to the model's run, once per content; `train` would train again where it changes."""
    digest = sha256(PICTURE)
    if not tracking.has_tag(run_id, PICTURE_TAG, digest):
        with (
            tempfile.TemporaryDirectory() as folder
        ):  # what is logged is a folder, and this one's has other reports too
            shutil.copy(PICTURE, folder)
            tracking.log_artifacts(run_id, Path(folder), "data")
        tracking.set_tags(run_id, {PICTURE_TAG: digest})


def judge_on_current_test_images(candidate: predictor.ExportInfo, model_uri: str) -> Mapping[str, float]:
    """Score a registered model on the test images of data/raw, through the same path that serves it.

    Raises DeepcvError where it answers another question than the candidate: with them there is nothing to compare.
    """
    rows, info = manifest.read(RAW)
    kept = rows[~rows["id"].isin(quarantine.read(QUARANTINE))]
    test = kept[kept["split"] == "test"]
    model = registry.load(model_uri)
    answered = model.get_raw_model().info
    if answered.task.of != candidate.task.of or (
        answered.classes != candidate.classes and candidate.task != CLASSIFICATION
    ):
        raise DeepcvError(
            f"{model_uri} answers {answered.task.of} ({', '.join(answered.classes)}), this model {candidate.task.of} "
            f"({', '.join(candidate.classes)}); give the dataset another name (ingest.dataset), or delete the alias champion"
        )
    answers = model.predict(pd.DataFrame({"image": list(manifest.encoded_images(RAW, test))}))
    if candidate.task.kind == "classification":
        return scores_of(answers["label"], test["label"], info.classes)
    learned = targets.find(candidate.task, info.classes, lambda: zip(kept["id"], kept["annotations"], strict=True))
    truth = np.array([learned.of("", text) for text in test["annotations"]], np.float32)
    if candidate.task.kind == "regression":
        return {"r2": metrics.score(candidate.task, answers[list(candidate.classes)].to_numpy(), truth)}
    probabilities = np.array(answers["probabilities"].tolist())
    scores = label_metrics.per_label(probabilities, truth, candidate.classes)
    return {
        "mean_average_precision": label_metrics.mean_average_precision(scores), "macro_f1": metrics.macro_f1(scores),
        "accuracy": float(((probabilities >= LIKELY) == (truth >= LIKELY)).mean()),
    }  # fmt: skip


def scores_of(predicted: "pd.Series[str]", actual: "pd.Series[str]", classes: tuple[str, ...]) -> dict[str, float]:
    """Accuracy and macro F1 of class names; a model of former data may name a class that is none any more."""
    names = sorted({*classes, *predicted})
    number_of = {label: number for number, label in enumerate(names)}
    guesses, truth = (np.array([number_of[label] for label in labels]) for labels in (predicted, actual))
    matrix = metrics.confusion(guesses, truth, len(names))
    macro_f1 = metrics.macro_f1(metrics.per_class(matrix, tuple(names)))
    return {"accuracy": float((truth == guesses).mean()), "macro_f1": macro_f1}


if __name__ == "__main__":
    entry.run(main)
