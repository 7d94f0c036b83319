"""The exported model against the trained one: same arrays, then original files through both whole paths.

    python -m benchmarks.onnx_parity [--quick]

Works on the outputs of the last `dvc repro` in the working directory.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.result import emit
from deepcv.data import manifest
from deepcv.data.shards import open_shards
from deepcv.evaluation.inference import logits_of
from deepcv.evaluation.metrics import log_softmax
from deepcv.nn import classifier
from deepcv.serving.onnx_export import check
from deepcv.serving.predictor import Predictor

_RAW, _MODEL, _ONNX = Path("data/raw"), Path("data/model/model.pt"), Path("data/export/model.onnx")
_FILES = 256


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="at most 500 arrays")
    options = parser.parse_args()
    model, info = classifier.load(_MODEL)
    test = open_shards(Path("data/shards")).test
    arrays = np.array(test.images_nhwc[:500] if options.quick else test.images_nhwc)
    error = check(model, _ONNX, arrays, tolerance=float("inf"))

    rows, _ = manifest.read(_RAW)
    part = rows[rows["split"] == "test"].iloc[:_FILES]
    files = list(manifest.encoded_images(_RAW, part))
    packed = np.array(test.images_nhwc[: len(files)])  # what `evaluate` sees of these files
    evaluated = np.exp(log_softmax(logits_of(model, packed, batch_size=500, device=torch.device("cpu"))))
    served = Predictor(_ONNX).answers_of_files(files)
    difference = float(np.abs(served - evaluated).max())
    same_top1 = bool((served.argmax(axis=1) == evaluated.argmax(axis=1)).all())
    emit(
        "onnx-parity", value=error, baseline=1e-4, target="error <= 1e-4 * max(1, |y|); files: same top-1, p within 1e-3",
        holds=error <= 1e-4 and same_top1 and difference <= 1e-3, n=len(arrays),
        files=len(files), same_top1=same_top1, max_probability_difference=difference, dataset=info.dataset,
    )  # fmt: skip


if __name__ == "__main__":
    main()
