"""The params files of the repository, and what reading one costs."""

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from deepcv.params.whole import SECTIONS, load

ROOT = Path(__file__).parents[2]
SHIPPED = [ROOT / "params.yaml", *sorted((ROOT / "examples").glob("*.yaml"))]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_it_loads(path: Path) -> None:
    load(path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_dvc_exp_run_keeps_its_text(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    yaml = YAML()  # as DVC writes params back under `dvc exp run -S`
    yaml.default_flow_style = False
    out = io.StringIO()
    yaml.dump(yaml.load(text), out)
    assert out.getvalue() == text


@pytest.mark.parametrize("path", SHIPPED[1:], ids=lambda path: path.name)
def test_a_recipe_says_how_good_it_is_and_how_that_was_measured(path: Path) -> None:
    said, *_ = path.read_text(encoding="utf-8").partition("\n\n")
    assert re.search(r"\d %.* [0-9a-f]{10}", said, re.DOTALL) or "not measured" in said
    assert re.search(r"\d (CPU-\w+|minutes|s)\b", said) or "not measured" in said
    assert "python -m benchmarks." in said or "dvc repro" in said


def test_the_digits_are_params_yaml() -> None:
    """Of which a copy stands beside the other recipes: who tries one of those comes back by it."""
    text = (ROOT / "examples/digits.yaml").read_text(encoding="utf-8")
    assert text.partition("\n\n")[2] == (ROOT / "params.yaml").read_text(encoding="utf-8")


def test_params_yaml_shows_every_key() -> None:
    # `dvc exp run -S` changes only keys that stand in the file.
    shown = YAML(typ="safe").load(ROOT / "params.yaml")
    assert {name: set(keys) for name, keys in shown.items()} == {
        name: set(cls.model_fields) for name, cls in SECTIONS.items()
    }


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, deepcv.params.whole, deepcv.params.edit; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    heavy = {"torch", "numpy", "pandas", "mlflow", "nni", "prefect", "dvc", "great_expectations", "cv2", "yaml"}
    assert not heavy & set(loaded.stdout.split())
