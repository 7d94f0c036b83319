import pytest

from deepcv.data.labels import relabelled
from deepcv.data.samples import DataError, Sample
from deepcv.data.sources.source import Source

CLASSES = ("bus", "cat", "lorry", "10")
SOURCE = Source(
    CLASSES, 4, lambda: iter([Sample(f"{n}.png", "train", name, b"x", "[]") for n, name in enumerate(CLASSES)])
)


@pytest.mark.parametrize(("names", "classes", "labels"), [
    ({"cat": "pet"}, ("bus", "pet", "lorry", "10"), ["bus", "pet", "lorry", "10"]),
    ({"bus": "vehicle", "lorry": "vehicle"}, ("vehicle", "cat", "10"), ["vehicle", "cat", "vehicle", "10"]),
    ({"lorry": "bus"}, ("bus", "cat", "10"), ["bus", "cat", "bus", "10"]),
    ({"bus": "cat", "cat": "bus"}, ("cat", "bus", "lorry", "10"), ["cat", "bus", "lorry", "10"]),
])  # fmt: skip
def test_classes_are_renamed_and_merged(names: dict[str, str], classes: tuple[str, ...], labels: list[str]) -> None:
    made = relabelled(SOURCE, names)
    assert made.classes == classes
    assert made.count == 4
    assert list(made.samples()) == [s._replace(label=label) for s, label in zip(SOURCE.samples(), labels, strict=True)]


def test_without_names_nothing_happens() -> None:
    assert relabelled(SOURCE, {}) is SOURCE


@pytest.mark.parametrize(("names", "message"), [
    ({"lory": "bus"}, "no class 'lory' in the dataset; is it 'lorry'"),
    ({"x": "bus"}, "no class 'x' in the dataset; the classes are bus, cat, lorry, 10"),
    (dict.fromkeys(CLASSES, "thing"), r"leaves one class \(thing\)"),
])  # fmt: skip
def test_names_that_do_not_fit(names: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=f"ingest.labels: .*{message}"):
        relabelled(SOURCE, names)
