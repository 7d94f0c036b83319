import json
from collections.abc import Iterable

import numpy as np
import pytest

from deepcv.data import targets
from deepcv.data.samples import DataError
from deepcv.task import CLASSIFICATION, Task

ROWS = [
    {"tags": {"things": ["dog", "cat"], "mood": []}, "numbers": {"age": 3.5, "size": 2}},
    {"tags": {"things": [], "mood": ["good"]}, "numbers": {"age": -1, "size": 0}},
    {"boxes": [{"label": "car"}, {"label": "bus"}, {"label": "car"}], "numbers": {"size": 9, "age": 0}},
]
TEXTS = [json.dumps(row) for row in ROWS]


def found(of: str, texts: list[str]) -> targets.Targets:
    def annotations() -> Iterable[tuple[str, str]]:
        return ((f"{number}.png", text) for number, text in enumerate(texts))

    return targets.find(Task(of), ("cat", "dog"), annotations)


@pytest.mark.parametrize(("of", "names", "expected"), [
    ("tags.things", ("cat", "dog"), [[1, 1], [0, 0], [0, 0]]),
    ("tags.mood", ("good",), [[0], [1], [0]]),
    ("boxes", ("bus", "car"), [[0, 0], [0, 0], [1, 1]]),
    ("numbers", ("age", "size"), [[3.5, 2], [-1, 0], [0, 9]]),
    ("numbers.size", ("size",), [[2], [0], [9]]),
])  # fmt: skip
def test_labels_and_numbers(of: str, names: tuple[str, ...], expected: list[list[float]]) -> None:
    learned = found(of, TEXTS)
    assert learned.names == names
    assert [learned.of("cat", text) for text in TEXTS] == expected
    assert (learned.dtype, learned.shape) == (np.float32, (len(names),))


def test_classes_are_numbered() -> None:
    learned = targets.find(CLASSIFICATION, ("cat", "dog"), tuple)
    assert [learned.of(label, "") for label in ("dog", "cat")] == [1, 0]
    assert (learned.dtype, learned.shape) == (np.int64, ())


def test_one_class_teaches_nothing() -> None:
    with pytest.raises(DataError, match=r"all images are of one class \(image\); name what is to be learned: tags"):
        targets.find(CLASSIFICATION, ("image",), tuple)


@pytest.mark.parametrize(("of", "texts", "message"), [
    ("tags.thing", TEXTS, "no image has tags of the name 'thing'; there are boxes, numbers.age, numbers.size, tags.mood, tags.things"),
    ("numbers.weight", TEXTS, "no image has numbers of the name 'weight'; there are boxes"),
    ("boxes", ["", ""], "no image has boxes; the dataset has classes alone"),
    ("numbers", [*TEXTS, json.dumps({"numbers": {"age": 1.0}})], "1 images have no age or no size: 3.png; give them one"),
    ("numbers", [json.dumps({"numbers": {"t": 1.7e9 + n}}) for n in range(9)], "t goes up to 1.7e.09 .* subtract an offset"),
    ("numbers", [json.dumps({"numbers": {"t": n * 1e39}}) for n in range(3)], "which float32 does not tell apart"),
    ("numbers.age", [TEXTS[0], *[""] * 7], r"7 images have no age: 1.png, 2.png, 3.png, 4.png, 5.png, …; give them one"),
])  # fmt: skip
def test_what_is_not_there_is_said(of: str, texts: list[str], message: str) -> None:
    with pytest.raises(DataError, match=f"^preprocess.target: .*{message}"):
        found(of, texts)
    with pytest.raises(DataError, match=f"^preprocess.further_targets: .*{message}"):
        targets.find(
            Task(of), (), lambda: [(f"{n}.png", text) for n, text in enumerate(texts)], "preprocess.further_targets"
        )


def test_only_a_main_number_has_a_column_of_its_bare_name() -> None:
    texts = [json.dumps({"numbers": {"error": n, "file": n}}) for n in range(3)]
    with pytest.raises(DataError, match="a number cannot be called error or file; rename the column"):
        found("numbers", texts)
    further = targets.find(Task("numbers"), (), lambda: [("", text) for text in texts], "preprocess.further_targets")
    assert further.names == ("error", "file")
