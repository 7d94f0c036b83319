import json

import pytest

from deepcv.task import CLASSIFICATION, Task


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
