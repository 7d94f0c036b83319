"""Edits of params.yaml: what a diff shows is exactly what was asked for."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deepcv.params.base import ParamsError
from deepcv.params.edit import set_values, with_values
from deepcv.params.whole import load, loads


@pytest.mark.parametrize(
    ("key", "value", "old", "new"),
    [
        ("train.lr", 0.5, "  lr: 0.01\n", "  lr: 0.5\n"),
        ("train.lr", 1e-5, "  lr: 0.01\n", "  lr: 1.0e-05\n"),
        ("train.lr", np.float64(0.25), "  lr: 0.01\n", "  lr: 0.25\n"),
        ("train.lr", np.float32(0.25), "  lr: 0.01\n", "  lr: 0.25\n"),
        ("train.epochs", np.int64(3), "  epochs: 12\n", "  epochs: 3\n"),
        ("train.flip", True, "  flip: false\n", "  flip: true\n"),
        ("train.threads", "auto", "  threads: 1\n", "  threads: auto\n"),
        ("train.network", "n/a b.yaml", '"networks/digits.yaml"', '"n/a b.yaml"'),
        ("ingest.path", "with # and: colon", "path: data/digits.yaml", 'path: "with # and: colon"'),
        ("ingest.path", "12", "path: data/digits.yaml", 'path: "12"'),
        ("ingest.dataset", "12", "dataset: digits", 'dataset: "12"'),
        ("ingest.val_fraction", 0.125, "0.1   # kept", "0.125 # kept"),
        ("evaluate.worst", 3, "worst: 25}", "worst: 3}"),
        ("train.momentum", 0.8, "  threads: 1\n", "  threads: 1\n  momentum: 0.8\n"),
        ("export.check_images", 9, "  tolerance: 1e-4\n", "  tolerance: 1e-4\n  check_images: 9\n"),
        ("search.seed", 9, "        - 8\n", "        - 8\n  seed: 9\n"),
        ("train.network_parameters.width", 32, "network_parameters: {}", "network_parameters: {width: 32}"),
        (
            "train.network_choices.mix.0",
            "small, skip",
            "  threads: 1\n",
            '  threads: 1\n  network_choices: {mix.0: "small, skip"}\n',
        ),
        (
            "search.space.train.flip",
            {"choice": [True, False]},
            "- 8\n",
            "- 8\n    train.flip: {choice: [true, false]}\n",
        ),
        ("search.space.train.lr", {"uniform": [1, 2]}, "{loguniform: [1.0e-3, 3.0e-2]}", "{uniform: [1, 2]}"),
    ],
)
def test_one_value(text: str, key: str, value: object, old: str, new: str) -> None:
    assert with_values(text, {key: value}) == text.replace(old, new, 1)


def test_a_key_is_added_where_nothing_stands_yet(text: str) -> None:
    for before in (
        "  network_parameters: {}\n",
        "  network_parameters:  # none yet\n",
        "  network_parameters: null\n",
        "",
    ):
        edited = with_values(
            text.replace("  network_parameters: {}\n", before),
            {"train.network_parameters.width": 8, "train.network_parameters.act": "relu"},
        )
        assert loads(edited).train.network_parameters == {"width": 8, "act": "relu"}
        assert ("# none yet" in edited) == ("# none yet" in before)


@pytest.mark.parametrize(
    "losses",
    [
        "  losses: [{loss: supcon}, {loss: triplet, weight: 0.5}]  # two\n",
        "  losses:\n    - {loss: supcon}\n    - {loss: triplet, weight: 0.5}  # two\n",
        "  losses:\n    - loss: supcon\n    - loss: triplet\n      weight: 0.5  # two\n",
        "  losses:\n  - loss: supcon  # two\n  -\n    loss: triplet\n    weight: 0.5\n",
    ],
)
def test_a_value_in_a_list_is_set_or_added(text: str, losses: str) -> None:
    text = text.replace("  lr: 0.01\n", f"  lr: 0.01\n{losses}")
    edited = with_values(
        text, {"train.losses.1.weight": 0.25, "train.losses.0.temperature": 0.2, "train.losses.1.mining": "all"}
    )
    one, other = loads(edited).train.losses
    assert (one.loss, one.temperature, other.weight, other.mining) == ("supcon", 0.2, 0.25, "all")
    assert edited.count("# two") == 1
    with pytest.raises(ParamsError, match=r"train\.losses\.2\.weight: train\.losses has 2 entries; the first is 0"):
        with_values(text, {"train.losses.2.weight": 0.25})
    with pytest.raises(ParamsError, match=r"train\.losses\.0\.weight: train\.losses is empty"):
        with_values(text.replace(losses, "  losses: []\n"), {"train.losses.0.weight": 0.25})


def test_a_block_of_lines_is_not_replaced(text: str) -> None:
    with pytest.raises(ParamsError, match=r"train\.epochs: line 34: the value stands in a block of lines"):
        with_values(text, {"search.space.train.epochs": {"choice": [1]}})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.lrr", 1, "train.lrr: no such key; the closest is train.lr"),
        ("trian.lr", 1, "trian.lr: no such key; the closest is train.lr"),
        ("lr", 1, "lr: no such key"),
        ("train", {}, "train: no such key"),
        ("train.lr.x", 1, "train.lr: must be a number > 0 and <= 100, got a mapping"),
        ("train.lr", float("nan"), "train.lr: must be a number > 0 and <= 100"),
        ("train.lr", float("inf"), "train.lr: must be a number > 0 and <= 100, got inf"),
        ("train.lr", object(), "cannot be written to params.yaml"),
        ("search.space.train.lrr", {"choice": [1]}, "search.space.train.lrr: not a key of the train section"),
    ],
)
def test_an_edit_that_is_refused(text: str, key: str, value: object, message: str) -> None:
    with pytest.raises(ParamsError) as caught:
        with_values(text, {key: value})
    assert message in str(caught.value)


def test_a_file_keeps_its_permissions(text: str, write: Callable[[bytes], Path]) -> None:
    path = write(text.encode())
    path.chmod(0o664)
    set_values(path, {"train.lr": 0.5})
    assert path.stat().st_mode & 0o777 == 0o664


def test_a_file_is_edited_through_a_symlink_with_its_line_ends(text: str, write: Callable[[bytes], Path]) -> None:
    path = write(text.replace("\n", "\r\n").encode())
    link = Path("link.yaml")
    link.symlink_to(path)
    set_values(link, {"train.lr": 0.5, "train.seed": 7})
    assert link.is_symlink()
    assert load(path).train.lr == 0.5
    assert path.read_bytes().decode() == text.replace("lr: 0.01", "lr: 0.5", 1).replace(
        "  threads: 1\n", "  threads: 1\n  seed: 7\n"
    ).replace("\n", "\r\n")
