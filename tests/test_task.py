import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcv.task import CLASSIFICATION, FurtherTarget, Task


@pytest.mark.parametrize(("of", "kind"), [
    ("label", "classification"), ("boxes", "multi_label"), ("tags.things", "multi_label"),
    ("numbers", "regression"), ("numbers.how far", "regression"),
])  # fmt: skip
def test_what_is_learned_says_the_kind(of: str, kind: str) -> None:
    assert Task(of).kind == kind


@pytest.mark.parametrize("of", ["", "tags", "tags.", "labels", "numbers.", "masks.x"])
def test_another_word_is_refused(of: str) -> None:
    with pytest.raises(ValueError, match="expected label, boxes, tags"):
        Task(of)


@pytest.mark.parametrize("task", [CLASSIFICATION, Task("tags.x"), Task("numbers", (1.5, 2.0), (0.1, 3.0))])
def test_a_description_gives_it_back(task: Task) -> None:
    assert Task.of_description(json.loads(json.dumps(task.stored()))) == task


def test_a_description_of_before_is_a_classification() -> None:
    assert CLASSIFICATION.stored() == {}
    assert Task.of_description({"classes": ["a", "b"]}) == CLASSIFICATION


def test_answers_in_words() -> None:
    assert Task("tags.x").in_words(("a", "b", "c"), (0.5, 0.49, 1.0)) == "a;c"
    assert Task("numbers").in_words(("a", "b"), (1.23456, -2.0)) == "1.235, -2"


NAMES = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda name: not set(name) & set("\n"))
FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.tuples(NAMES, FINITE, FINITE), min_size=1), st.booleans())
def test_the_description_of_a_further_target_gives_it_back(found: list[tuple[str, float, float]], one: bool) -> None:
    names, mean, std = zip(*found, strict=True)
    target = FurtherTarget(Task(f"numbers.{names[0]}" if one else "numbers", mean, std), names)
    assert FurtherTarget.of_description(json.loads(json.dumps(target.stored()))) == target


def test_columns_of_a_prediction_begin_with_the_target() -> None:
    assert FurtherTarget(Task("numbers.age"), ("age",)).columns == ("numbers.age",)
    assert FurtherTarget(Task("numbers"), ("age", "size")).columns == ("numbers.age", "numbers.size")
    assert FurtherTarget(Task("tags.x"), ("a", "b")).columns == ("tags.x", "tags.x.probabilities")


def test_columns_of_the_main_target() -> None:
    assert CLASSIFICATION.columns(("a", "b")) == ("label", "probability", "probabilities")
    assert Task("boxes").columns(("a", "b")) == ("labels", "probabilities")
    assert Task("numbers").columns(("a", "b")) == ("a", "b")
