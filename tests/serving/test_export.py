import importlib.util
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
import toys
from onnx import numpy_helper
from torch import nn
from torch.nn import functional as F

from deepcv.images import DecodeError, ImageRecipe, encode_png, prepare
from deepcv.nn.classifier import Classifier, ModelInfo, TestTimeViews, create
from deepcv.serving.onnx_export import ExportError, ParityError, check, export
from deepcv.serving.predictor import ExportInfo, Predictor

RECIPES = {"grey": ImageRecipe(8, 8, 1, "stretch"), "colour": ImageRecipe(6, 10, 3, "pad")}


def classifier(folder: Path, recipe: ImageRecipe, *, views: TestTimeViews = "one") -> Classifier:
    """With batch norm statistics that are not the initial ones."""
    torch.manual_seed(0)
    mean, std = (0.3, 0.4, 0.5)[: recipe.channels], (0.2, 0.3, 0.4)[: recipe.channels]
    info = ModelInfo("toy", ("a", "b", "ü"), vars(recipe), mean, std, views)
    model = create(toys.network(folder).canonical(), info)
    model(torch.randint(0, 256, (32, recipe.channels, recipe.height, recipe.width), dtype=torch.uint8))
    return model.eval()


def images(recipe: ImageRecipe, count: int = 5) -> Any:
    return np.stack([toys.picture(n, recipe.height, recipe.width, recipe.channels) for n in range(count)])


class Exported:
    def __init__(self, folder: Path, recipe: ImageRecipe) -> None:
        self.recipe = recipe
        self.info = ExportInfo("toy", ("a", "b", "ü"), recipe, "f" * 64)
        self.classifier = classifier(folder, recipe)
        self.path = folder / "model.onnx"
        export(self.classifier, self.info, self.path)


@pytest.fixture(scope="module", params=RECIPES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tmp_path_factory.mktemp("secret-place"), RECIPES[request.param])


def test_onnxruntime_computes_what_torch_does(exported: Exported) -> None:
    error = check(exported.classifier, exported.path, images(exported.recipe, 33), 1e-4)
    assert 0 <= error <= 1e-4


class WithoutOnnx(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": F.adaptive_max_pool2d(x, 4).flatten(1)}  # windows that overlap


def test_what_onnx_does_not_know_is_an_error_that_names_it(tmp_path: Path) -> None:
    model = classifier(tmp_path, RECIPES["colour"])
    model.network = WithoutOnnx()
    info = ExportInfo("toy", ("a", "b", "ü"), RECIPES["colour"], "f" * 64)
    with pytest.raises(ExportError, match=r"cannot be written as ONNX: No ONNX function .*aten\.adaptive_max_pool2d"):
        export(model, info, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_six_views_are_in_the_file(tmp_path: Path) -> None:
    model = classifier(tmp_path, RECIPES["colour"], views="flip_shift")
    export(model, ExportInfo("toy", ("a", "b", "ü"), RECIPES["colour"], "f" * 64), tmp_path / "model.onnx")
    assert check(model, tmp_path / "model.onnx", images(RECIPES["colour"], 7), 1e-4) <= 1e-4


def test_the_smaller_images_of_a_second_input_are_in_the_file(tmp_path: Path) -> None:
    recipe = RECIPES["colour"]
    info = ModelInfo("toy", ("a", "b", "ü"), vars(recipe), (0.3, 0.4, 0.5), (0.2, 0.3, 0.4), "flip")
    model = create(toys.network(tmp_path, toys.TWO_SCALES).canonical(), info).eval()
    export(model, ExportInfo("toy", info.classes, recipe, "f" * 64), tmp_path / "model.onnx")
    assert check(model, tmp_path / "model.onnx", images(recipe, 7), 1e-4) <= 1e-4
    assert Predictor(tmp_path / "model.onnx").run(images(recipe, 1))["logits"].shape == (1, 3)


def test_the_mirror_image_is_in_the_file(tmp_path: Path) -> None:
    recipe = RECIPES["colour"]
    model = classifier(tmp_path, recipe, views="flip")
    export(model, ExportInfo("toy", ("a", "b", "ü"), recipe, "f" * 64), tmp_path / "model.onnx")
    pictures = images(recipe, 7)
    assert check(model, tmp_path / "model.onnx", pictures, 1e-4) <= 1e-4
    predictor = Predictor(tmp_path / "model.onnx")
    mirrored = predictor.run(np.ascontiguousarray(pictures[:, :, ::-1]))["logits"]
    assert np.allclose(predictor.run(pictures)["logits"], mirrored, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_any_number_of_images(exported: Exported, count: int) -> None:
    found = Predictor(exported.path).run(images(exported.recipe, count))
    assert found["logits"].shape == found["probabilities"].shape == (count, 3)
    assert np.allclose(found["probabilities"].sum(axis=1), 1, atol=1e-5)


def test_an_altered_file_is_found_out(exported: Exported, tmp_path: Path) -> None:
    model = onnx.load(exported.path)
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.1, weight.name))
    onnx.save(model, tmp_path / "altered.onnx")
    with pytest.raises(
        ParityError, match=r"altered\.onnx: onnxruntime differs from torch by .* export\.tolerance 1e-04"
    ):
        check(exported.classifier, tmp_path / "altered.onnx", images(exported.recipe), 1e-4)


def test_a_model_that_answers_nan_fails(exported: Exported, tmp_path: Path) -> None:
    broken = classifier(tmp_path, exported.recipe)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(ParityError, match="nan"):
        check(broken, exported.path, images(exported.recipe), 1e-4)


def test_the_file_tells_nothing_about_this_machine(exported: Exported) -> None:
    content = exported.path.read_bytes()
    package = importlib.util.find_spec("deepcv")
    assert package is not None
    assert package.origin is not None
    for secret in (
        "secret-place", "site-packages", "/home", "/work", tempfile.gettempdir(), "/usr", ".py", sysconfig.get_paths()["purelib"],
        str(Path(package.origin).parent), str(Path.cwd()),
    ):  # fmt: skip
        assert secret.encode() not in content, secret


def test_equal_classifiers_give_equal_bytes_in_any_process(exported: Exported, tmp_path: Path) -> None:
    again = Exported(tmp_path, exported.recipe)
    assert again.path.read_bytes() == exported.path.read_bytes()


def test_metadata_round_trip(exported: Exported) -> None:
    assert Predictor(exported.path).info == exported.info
    assert ExportInfo.from_metadata(exported.info.to_metadata()) == exported.info


def test_a_foreign_model_is_refused() -> None:
    with pytest.raises(ValueError, match="not a model that DeepCV exported"):
        ExportInfo.from_metadata({"deepcv.dataset": '"x"'})


def test_files_are_predicted_like_their_prepared_images(exported: Exported) -> None:
    encoded = [encode_png(toys.picture(n, 7 + n, 9, 3)) for n in range(4)]
    predictor = Predictor(exported.path)
    table = predictor.predict(pd.DataFrame({"image": encoded}, index=list("wxyz")))
    expected = predictor.answers(np.stack([prepare(content, exported.recipe) for content in encoded]))
    assert list(table.index) == list("wxyz")
    assert list(table.columns) == ["label", "probability", "probabilities"]
    assert list(table["label"]) == [exported.info.classes[n] for n in expected.argmax(axis=1)]
    assert np.allclose(table["probability"], expected.max(axis=1))
    assert np.allclose(np.stack(table["probabilities"]), expected)
    assert predictor.predict(pd.DataFrame({"image": []})).empty


def test_an_image_that_cannot_be_decoded_raises(exported: Exported) -> None:
    with pytest.raises(DecodeError):
        Predictor(exported.path).predict(pd.DataFrame({"image": [b"junk"]}))


def test_serving_needs_no_torch(exported: Exported) -> None:
    script = (
        "import sys; from pathlib import Path; from deepcv.serving.predictor import Predictor\n"
        "print(Predictor(Path(sys.argv[1])).info.dataset, 'torch' in sys.modules, 'mlflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(exported.path)],
        cwd=toys.REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert re.fullmatch(r"toy False False\n", done.stdout)
