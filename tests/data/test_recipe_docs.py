"""docs/recipes.md names every operation, range, value and key of the code, and its examples are valid params."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import toys
import yaml
from pydantic import BaseModel

from deepcv.data.augmentation import Recipe
from deepcv.params.augmentation import FITTING, MAGNITUDES, AugmentationParams, OperationParams
from deepcv.params.preprocess import PreprocessParams

PAGE = (toys.REPOSITORY / "docs/recipes.md").read_text(encoding="utf-8")
EXAMPLES = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
AUGMENTATIONS = [example["train"]["augmentation"] for example in EXAMPLES if "train" in example]


def table(heading: str) -> list[list[str]]:
    """The rows of the first table after a heading, each a list of cells."""
    after = PAGE.split(f" {heading}\n", 1)[1]
    found = re.search(r"(?:^\|.*\n)+", after, re.MULTILINE)
    assert found
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found[0].splitlines()[2:]]


def test_every_operation_has_its_row() -> None:
    rows = {name.strip("`"): cells for name, *cells in table("Own operations")}
    assert list(rows) == list(MAGNITUDES)
    for name, (unit, low, high, usual, what) in rows.items():
        limits = MAGNITUDES[name]
        assert what
        if limits is None:
            assert (unit, low, high, usual) == ("none", "", "", "")
            OperationParams.model_validate({"name": name})
        else:
            assert (float(low), float(high), unit) == limits
            OperationParams.model_validate({"name": name, "magnitude": yaml.safe_load(usual)})


def test_every_value_of_a_step_of_preprocessing_has_its_row() -> None:
    found: dict[str, list[str]] = {}
    name = ""
    for step, values, _ in table("Preprocessing"):
        name = step.strip("`") or name
        found.setdefault(name, []).append(values.strip("`"))
    assert list(found) == ["keep", "resize", "denoise", "clahe", "colour"]  # the order of ImageRecipe's steps
    for name in ("resize", "denoise", "colour"):
        assert tuple(found[name]) == get_args(PreprocessParams.model_fields[name].annotation)


def test_other_colours_have_what_fits_them() -> None:
    rows = {colour.strip("`"): re.findall(r"`(\w+)`", names) for colour, names in table("HSV and Lab")}
    assert rows == {colour: sorted(FITTING[colour]) for colour in ("hsv", "lab")}


@pytest.mark.parametrize("values", AUGMENTATIONS, ids=lambda values: ",".join(values))
def test_an_example_makes_a_recipe(values: dict[str, Any]) -> None:
    recipe = Recipe.of(AugmentationParams.model_validate(values).model_dump())
    assert recipe.mixes or recipe.policies(32, 32)


def test_the_examples_use_every_key_and_default_is_said_of_defaults_alone() -> None:
    used = {key for values in AUGMENTATIONS for key in values}
    assert used == set(AugmentationParams.model_fields)
    for line in re.findall(r"^ *(\w+: .*?) +# default$", PAGE, re.MULTILINE):
        ((key, value),) = yaml.safe_load(line).items()
        default = AugmentationParams.model_validate({})
        given = getattr(default, key)
        assert (given.model_dump() if isinstance(given, BaseModel) else given) == value
    PreprocessParams.model_validate(EXAMPLES[0]["preprocess"])


def test_the_snippet_gives_every_image_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    toys.write_encoded_shards(Path("data/shards"), train=40)
    [snippet] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    seen: list[int] = []
    exec(snippet.replace("print(", "see("), {"see": lambda shape, *_: seen.append(shape[0])})  # noqa: S102  our own page
    assert sorted(seen) == [8, 32]


def test_links_lead_somewhere_and_others_lead_here() -> None:
    for path, anchor in re.findall(r"\]\(([\w./]+)#?([\w-]*)\)", PAGE):
        headings = re.findall(r"^#+ (.+)$", (toys.REPOSITORY / "docs" / path).read_text(encoding="utf-8"), re.MULTILINE)
        assert not anchor or anchor in {re.sub(r"\W+", "-", found.lower()) for found in headings}
    for page in ("README.md", "params.yaml"):
        assert "docs/recipes.md" in (toys.REPOSITORY / page).read_text(encoding="utf-8")
