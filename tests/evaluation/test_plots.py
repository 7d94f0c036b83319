import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from torch import nn

from deepcv.evaluation import figures, plots
from deepcv.evaluation.history import read_history
from deepcv.evaluation.inference import Pieces, TooLargeError, logits_of, outputs_of
from deepcv.images import decode

MATRIX = np.array([[5, 1, 0], [0, 4, 2], [0, 0, 0]])
CURVE = [
    {"epoch": e, "train_loss": 1 / e, "val_loss": 1 / e, "train_accuracy": 0.5, "val_accuracy": 0.4, "lr": 0.1}
    for e in (1.0, 2.0, 3.0)
]

SCORES = np.random.default_rng(0).random((30, 3)) * (1, 1, 0.5)

DRAW = {
    "confusion": lambda path: plots.draw_confusion(MATRIX, ("a", "b", "c"), path),
    "many classes": lambda path: plots.draw_confusion(np.eye(25, dtype=np.int64), tuple(map(str, range(25))), path),
    "classes that look like TeX": lambda path: plots.draw_confusion(MATRIX, ("a$b$", "$\\d{$", "$5"), path),
    "curves": lambda path: plots.draw_curves(CURVE, path),
    "schedules": lambda path: figures.draw_schedules(
        {name: [(e / 2, 0.1 * e) for e in range(9)] for name in ("lr", "a$b$", "augmentation.mixup.probability", "d")},
        path,
    ),
    "range": lambda path: plots.draw_range((1e-3, 1e-2, 1e-1), {"a_$x": (3.0, 1.0, 2.0)}, 0.01, {}, path),
    "range with grids": lambda path: plots.draw_range(
        (1e-3, 1e-2, 1e-1), {"a": (3.0, 1.0, 2.0)}, 0.01, {"weight_decay": ({0.0: 1.0, 0.1: float("inf")}, 0.0)}, path
    ),
    "embedding": lambda path: draw_points(3, path),
    "embedding of many classes": lambda path: draw_points(25, path),
    "precision and recall": lambda path: plots.draw_precision_recall(
        {"a$b$": tuple(SCORES.T[:2]), "\\d{$": tuple(SCORES.T[1:])}, path
    ),
    "numbers": lambda path: plots.draw_scatter(SCORES, SCORES[::-1], ("a$b$", "\\d{$", "c"), path),
    "numbers that do not differ": lambda path: plots.draw_scatter(SCORES, np.zeros_like(SCORES), ("a", "b", "c"), path),
    "curves of numbers": lambda path: plots.draw_curves(
        [{k.replace("accuracy", "r2"): v for k, v in e.items()} for e in CURVE], path
    ),
    "reliability": lambda path: plots.draw_reliability([(0.5, 0.4, 3), (0.9, 1.0, 7)], path),
}


def draw_points(classes: int, path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    numbers = np.arange(60)
    plots.draw_embedding(points, numbers % classes, numbers % 7 == 0, ("a$b$", "\\d{$", *"c" * (classes - 2)), path)


def test_the_loss_within_epochs_stands_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(plots, "save", lambda figure, _path: drawn.append(figure))
    points = [{"step": step, "train_loss": 1 / step, "lr": step / 100} for step in (4.0, 8.0, 12.0, 16.0, 20.0, 24.0)]
    plots.draw_curves(CURVE, tmp_path / "x.png", points)
    plots.draw_curves(CURVE, tmp_path / "x.png", points[1::2])  # one per epoch, which tell nothing more
    loss, _, rate = drawn[0].axes
    for axes, key in ((loss, "train_loss"), (rate, "lr")):
        (line,) = (line for line in axes.lines if line.get_label() == f"{key} within epochs")
        assert list(line.get_xdata()) == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.5, 3.0])
        assert list(line.get_ydata()) == [point[key] for point in points]
    assert [len(axes.lines) for axes in drawn[1].axes] == [2, 2, 1]


def test_points_have_the_colour_of_their_class_and_mistakes_are_crosses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(plots, "save", lambda figure, _path: figures.append(figure))
    points = np.arange(10, dtype=np.float32).reshape(5, 2)
    wrong = np.array([False, False, True, False, False])
    plots.draw_embedding(points, np.array([0, 1, 1, 0, 1]), wrong, ("a", "b"), tmp_path / "x.png")
    (axes,) = figures[0].axes
    right_a, wrong_a, right_b, wrong_b = axes.collections
    for drawn, expected in ((right_a, [0, 3]), (wrong_a, []), (right_b, [1, 4]), (wrong_b, [2])):
        assert np.array_equal(drawn.get_offsets(), points[expected])
    assert np.array_equal(right_b.get_facecolor(), wrong_b.get_edgecolor())
    assert not np.array_equal(right_a.get_facecolor(), right_b.get_facecolor())
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]


@pytest.mark.parametrize("name", DRAW)
def test_equal_numbers_give_equal_bytes(name: str, tmp_path: Path) -> None:
    for file in ("one.png", "two.png"):
        DRAW[name](tmp_path / file)
    first = (tmp_path / "one.png").read_bytes()
    assert first == (tmp_path / "two.png").read_bytes()
    picture = decode(first, 3)
    assert min(picture.shape[:2]) >= 300
    assert picture.std() > 1


def test_the_confusion_matrix_has_a_row_per_actual_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(plots, "save", lambda figure, _path: figures.append(figure))
    plots.draw_confusion(MATRIX, ("a", "b", "c"), tmp_path / "x.png")
    (axes,) = figures[0].axes
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("actual", "predicted")
    assert np.allclose(axes.images[0].get_array(), [[5 / 6, 1 / 6, 0], [0, 2 / 3, 1 / 3], [0, 0, 0]])
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {
        ((0, 0), "5"), ((1, 0), "1"), ((1, 1), "4"), ((2, 1), "2"),
    }  # fmt: skip


def test_history_is_read_as_numbers(tmp_path: Path) -> None:
    (tmp_path / "history.csv").write_text("epoch,lr\n1,0.1\n2,1e-05\n")
    assert read_history(tmp_path / "history.csv") == [{"epoch": 1.0, "lr": 0.1}, {"epoch": 2.0, "lr": 1e-5}]


class Probe(nn.Module):
    """Logits that tell the image (its first pixel) and whether the module is in eval mode."""

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        mode = torch.full((len(images),), float(not self.training))
        return {"logits": torch.stack([images[:, 0, 0, 0].float(), images[:, 2, 1, 0].float(), mode], dim=1)}


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
@pytest.mark.parametrize("training", [True, False])
def test_logits_come_in_order_and_in_eval_mode(batch_size: int, training: bool) -> None:
    images = np.stack([toys.picture(n, channels=3) for n in range(7)])
    probe = Probe().train(training)
    found = logits_of(probe, images, batch_size=batch_size, device=torch.device("cpu"))
    assert found.dtype == np.float32
    assert np.array_equal(found, np.stack([images[:, 0, 0, 0], images[:, 1, 0, 2], np.ones(7)], axis=1))
    assert probe.training == training


def test_where_memory_is_short_a_pass_is_made_in_pieces(capsys: pytest.CaptureFixture[str]) -> None:
    """For two images: batches of seven are taken in four pieces, and the next pass begins with those."""

    class Confined(Probe):
        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            if len(images) > 2:
                raise torch.OutOfMemoryError("tried to allocate more than there is")
            return super().forward(images)

    images, pieces = np.stack([toys.picture(n, channels=3) for n in range(23)]), Pieces()
    expected = logits_of(Probe(), images, batch_size=7, device=torch.device("cpu"))
    for said in (["4", "2"], []):
        (found,) = outputs_of(Confined(), images, ["logits"], batch_size=7, device=torch.device("cpu"), pieces=pieces)
        assert np.array_equal(found, expected)
        assert re.findall(r"out of memory; (\d+) images at a time", capsys.readouterr().err) == said
    with pytest.raises(TooLargeError, match="no memory for 7 images at a time"):
        outputs_of(Confined(), images, ["logits"], batch_size=7, device=torch.device("cpu"), pieces=Pieces(fixed=True))


def test_no_memory_for_one_image_and_other_errors_are_told() -> None:
    class Broken(Probe):
        def __init__(self, error: Exception) -> None:
            super().__init__()
            self.error = error

        def forward(self, _images: torch.Tensor) -> dict[str, torch.Tensor]:
            raise self.error

    images = np.stack([toys.picture(n, channels=3) for n in range(3)])
    for error, kind, text in (
        (torch.OutOfMemoryError("none"), TooLargeError, "no memory for 1 image at a time; use a smaller network"),
        (RuntimeError("a shape"), RuntimeError, "a shape"),
    ):
        with pytest.raises(kind, match=text):
            logits_of(Broken(error), images, batch_size=3, device=torch.device("cpu"))
