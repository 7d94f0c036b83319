import csv
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import toys

from deepcv.errors import DeepcvError
from deepcv.images import decode, encode_png
from deepcv.serving import batch

DARK = {"label": "dark", "probability": 0.6}


class Brightness:
    """A model that says light or dark."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def predict(self, data: pd.DataFrame) -> pd.DataFrame:
        self.sizes.append(len(data))
        light = [float(decode(content).mean()) / 255 for content in data["image"]]
        return pd.DataFrame(
            {"label": ["light" if share > 0.5 else "dark" for share in light], "probability": light}, index=data.index
        )


def shade(path: Path, grey: int, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(np.full((6, 9, channels), grey, np.uint8)))
    return path


def test_image_files_of_files_and_folders(tmp_path: Path) -> None:
    toys.write_images(tmp_path, ["b/2.PNG", "b/1.jpg", "b/deep/3.webp", "a.png", "c.bin"])
    (tmp_path / "b" / "readme.txt").write_text("x")
    found = batch.image_files(
        [tmp_path / "c.bin", tmp_path / "b"], tmp_path / "out"
    )  # a file that is named is taken as it is
    assert found == [tmp_path / name for name in ("c.bin", "b/1.jpg", "b/2.PNG", "b/deep/3.webp")]


def test_hidden_folders_and_the_results_of_before_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toys.write_images(tmp_path, ["a.png", ".cache/b.png", "out/predictions.png", "deep/out/c.png"])
    monkeypatch.chdir(tmp_path)
    assert batch.image_files([Path()], tmp_path / "out") == [Path("a.png"), Path("deep/out/c.png")]


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DeepcvError, match="nowhere: there is no such file or folder"):
        batch.image_files([tmp_path / "nowhere"], tmp_path / "out")


def test_a_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("x")
    with pytest.raises(DeepcvError, match=r"no image files in .*\.jpg"):
        batch.image_files([tmp_path], tmp_path / "out")


def test_an_unreadable_file_does_not_stop_the_others(tmp_path: Path) -> None:
    files = [shade(tmp_path / "1.png", 250), tmp_path / "2.png", shade(tmp_path / "3.png", 5, 3), tmp_path / "4.png"]
    files[1].write_bytes(files[0].read_bytes()[:-12])
    found = list(batch.predict_files(Brightness(), files))
    assert [p.path for p in found] == files
    assert [p.answer.get("label") for p in found] == ["light", None, "dark", None]
    assert "not a whole image" in found[1].error
    assert "No such file" in found[3].error
    assert found[0].answer["probability"] == pytest.approx(250 / 255)


def test_batches_keep_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "_BATCH", 4)
    files = [shade(tmp_path / f"{n}.png", 25 * n) for n in range(10)]
    model = Brightness()
    found = list(batch.predict_files(model, [*reversed(files), files[0]]))
    assert model.sizes == [4, 4, 2]  # the file that is named twice is read once
    assert [p.path for p in found] == [*reversed(files), files[0]]
    assert [p.answer["probability"] for p in found] == pytest.approx([n * 25 / 255 for n in (*range(9, -1, -1), 0)])


def test_a_batch_of_unreadable_files_alone(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"")
    assert [p.error for p in batch.predict_files(Brightness(), [tmp_path / "1.png"])] == ["the file is empty"]


def test_a_file_name_that_is_not_utf8(tmp_path: Path) -> None:
    path = shade(tmp_path / os.fsdecode(b"\xff.png"), 250)
    batch.write_csv(tmp_path / "p.csv", list(batch.predict_files(Brightness(), [path])))
    assert b"/\xff.png,light," in (tmp_path / "p.csv").read_bytes()


def test_csv(tmp_path: Path) -> None:
    rows = [
        batch.Prediction(Path("a, b.png"), {"label": "cat", "probability": 0.25}),
        batch.Prediction(Path("x.png"), error='no "image"'),
    ]
    batch.write_csv(tmp_path / "new" / "p.csv", rows)
    with (tmp_path / "new" / "p.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["file", "label", "probability", "error"],
            ["a, b.png", "cat", "0.250000", ""],
            ["x.png", "", "", 'no "image"'],
        ]


def test_numbers_and_lists_of_probabilities_in_the_csv(tmp_path: Path) -> None:
    class Both:
        def predict(self, data: pd.DataFrame) -> pd.DataFrame:
            return pd.DataFrame(
                {"age": [1.5] * len(data), "labels": ["a;b"] * len(data), "probabilities": [[0.5, 0.6]] * len(data)}
            )

    (tmp_path / "0.png").write_bytes(b"")
    found = list(batch.predict_files(Both(), [tmp_path / "0.png", shade(tmp_path / "1.png", 9)]))
    batch.write_csv(tmp_path / "p.csv", found)
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert lines == [
        "file,age,labels,error", f"{tmp_path}/0.png,,,the file is empty", f"{tmp_path}/1.png,1.5,a;b,"
    ]  # fmt: skip


@pytest.mark.parametrize(("count", "shown"), [(1, 1), (7, 7), (50, 36)])
def test_the_sheet_shows_images_of_all_kinds(count: int, shown: int, tmp_path: Path) -> None:
    files = [shade(tmp_path / f"{n:02d}.png", 100, 1 + 2 * (n % 2)) for n in range(count)]
    found = [batch.Prediction(path, DARK) for path in files]
    batch.write_sheet(tmp_path / "sheet.png", [*found, batch.Prediction(Path("gone.png"), error="x")])
    sheet = decode((tmp_path / "sheet.png").read_bytes(), 3)
    assert (sheet == 100).all(axis=2).sum() >= shown * 96 * 96
    assert (sheet == 100).all(axis=2).sum() < shown * 96 * 96 * 1.02  # besides the tiles, pixels of the captions


def test_the_sheet_is_spread_over_all_images(tmp_path: Path) -> None:
    files = [shade(tmp_path / f"{n:03d}.png", n) for n in range(180)]
    batch.write_sheet(tmp_path / "sheet.png", [batch.Prediction(path, DARK) for path in files])
    sheet = decode((tmp_path / "sheet.png").read_bytes(), 3)
    shown = {grey for grey in range(180) if (sheet == grey).all(axis=2).sum() >= 96 * 96}
    assert shown == set(range(0, 180, 5))  # 36 of them, not the first 36


def test_no_sheet_of_no_image(tmp_path: Path) -> None:
    batch.write_sheet(tmp_path / "sheet.png", [batch.Prediction(Path("gone.png"), error="x")])
    assert not (tmp_path / "sheet.png").exists()


def test_lines_of_further_targets_say_which_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[list[tuple[str, ...]]] = []
    monkeypatch.setattr(batch, "grid", lambda images, captions, **_options: shown.append(captions) or images[0])
    file = shade(tmp_path / "a.png", 9)
    answers: list[dict[str, str | float]] = [
        {**DARK, "numbers.age": 12.345678},
        {"labels": "a;b", "tags.numbers.x": "wet;cold", "boxes": "car"},
        {"age": 2.0, "numbers": 3.0, "tags": "x"},  # main numbers of these names
    ]
    for answer in answers:
        batch.write_sheet(tmp_path / "sheet.png", [batch.Prediction(file, answer)])
    assert shown == [
        [("dark", "0.6", "age: 12.35")], [("a;b", "numbers.x: wet;cold", "boxes: car")], [("2", "3", "x")],
    ]  # fmt: skip
