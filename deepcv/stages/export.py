"""Stage `export`: the model as an ONNX file, proven against torch on test images."""

import json
from pathlib import Path

import torch

from deepcv.data.shards import open_shards
from deepcv.files import atomic_folder, sha256
from deepcv.images import ImageRecipe
from deepcv.nn import classifier
from deepcv.nn.classifier import answering
from deepcv.params.base import load_section
from deepcv.params.export import ExportParams
from deepcv.serving import onnx_export
from deepcv.serving.predictor import ExportInfo
from deepcv.stages import entry

SHARDS = Path("data/shards")
MODEL_FILE = Path("data/model/model.pt")
EXPORT = Path("data/export")


def main() -> None:
    """Read data/model/model.pt and test images, write data/export."""
    params = load_section(ExportParams)
    model, info = classifier.load(MODEL_FILE)
    torch.set_num_threads(1)  # the check's last bits do not depend on the machine's cores
    images_nhwc = open_shards(SHARDS).test.images_nhwc[: params.check_images]
    recipe = ImageRecipe(**info.recipe)
    with atomic_folder(EXPORT) as folder:
        onnx_file = folder / "model.onnx"
        onnx_export.export(
            model,
            ExportInfo(
                info.dataset, info.classes, recipe, sha256(MODEL_FILE), info.task,
                tuple(answering(info.further).values()),
            ),
            onnx_file,
        )  # fmt: skip
        error = onnx_export.check(model, onnx_file, images_nhwc, params.tolerance)
        (folder / "check.json").write_text(json.dumps({"max_relative_error": error}) + "\n", encoding="utf-8")
    print(f"{EXPORT / 'model.onnx'}: input uint8 N×{recipe.height}×{recipe.width}×{recipe.channels}, "
          f"differs from torch by {error:.1e} on {len(images_nhwc)} test images")  # fmt: skip


if __name__ == "__main__":
    entry.run(main)
