import json
import shutil
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import toys
from sklearn.datasets import load_sample_image

from deepcv import artifacts, registry, tracking
from deepcv.cli import main
from deepcv.data.builtin import digits
from deepcv.files import sha256
from deepcv.images import ImageRecipe, UInt8Array, decode, encode_png
from deepcv.monitoring.look import draw
from deepcv.nn.classifier import ModelInfo, create
from deepcv.registry import Candidate
from deepcv.serving import predictor
from deepcv.serving.onnx_export import export
from deepcv.serving.predictor import ExportInfo
from deepcv.tracking import RegistryError

DIGITS = str(toys.REPOSITORY / "data/sources/digits.yaml")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with its own state and no project."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEEPCV_HOME", str(tmp_path / "state"))
    return tmp_path


def drift(reference: Path | str, new: Path | str, *more: str, model: str | None = "none") -> int:
    """Run the command and return its exit status."""
    arguments = ["data", "drift", str(reference), str(new), *more, *(["--model", model] if model else [])]
    try:
        main(arguments)
    except SystemExit as exited:
        return exited.code if isinstance(exited.code, int) else 1
    return 0


def report(folder: Path = Path("reports/data/drift")) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "drift.json").read_text())
    return content


def write_tiles(root: Path, offset: int = 0, gain: float = 1.0, name: str = "{:03d}.png") -> Path:
    """Tiles of 32×32 pixels of a photograph: every second one, from `offset` on."""
    photograph = np.asarray(load_sample_image("china.jpg"), np.float64) * gain
    tiles = [photograph[y : y + 32, x : x + 32] for y in range(0, 395, 16) for x in range(0, 608, 16)]
    root.mkdir(parents=True, exist_ok=True)
    for number, tile in enumerate(tiles[offset::2]):
        (root / name.format(number)).write_bytes(encode_png(np.clip(tile, 0, 255).astype(np.uint8)))
    return root


def write_digits(root: Path, without: str = "", inverted: bool = False) -> Path:
    for sample in digits()[1][::2] if inverted else digits()[1][1::2]:
        if sample.label != without:
            path = root / sample.label / f"{sample.id.replace('/', '-')}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = decode(sample.encoded)
            path.write_bytes(encode_png(255 - pixels if inverted else pixels))
    return root


def test_no_drift(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert drift(write_tiles(here / "a"), write_tiles(here / "b", offset=1)) == 0
    shown = capsys.readouterr().out
    assert "\nno drift found\n" in shown or "no drift found (so few images" in shown
    assert "class shares    not tested: REFERENCE has no labels" in shown
    assert report()["drift"] is False
    assert decode(Path("reports/data/drift/drift.png").read_bytes()).shape[1] > 1000


def test_brighter_images(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert drift(write_tiles(here / "a"), write_tiles(here / "b", offset=1, gain=0.75)) == 3
    assert "\ndrift: " in (shown := capsys.readouterr().out)
    assert "brightness (" in shown
    assert report()["drift"] is True


def test_a_missing_class(here: Path) -> None:
    assert drift(DIGITS, write_digits(here / "new", without="3")) == 3
    assert report()["verdict"] == "drift: class shares (3: 10.2% -> 0.0%, V 0.23)"


def test_the_outcome_depends_on_content_and_seed_alone(here: Path) -> None:
    write_tiles(here / "a")
    write_tiles(here / "b", offset=1)
    write_tiles(here / "turned", offset=1, name="x{:03d}.png")
    for number, path in enumerate(sorted((here / "turned").iterdir(), reverse=True)):
        path.rename(path.with_name(f"{number:04d}.png"))
    with tarfile.open(here / "b.tar", "w") as archive:
        archive.add(here / "b", "b")
    outcomes = []
    for number, new in enumerate(("b", "b", "turned", "b.tar")):
        assert drift("a", new, "--sample", "300", "--out", f"out{number}") == 0
        outcomes.append(report(Path(f"out{number}"))["findings"])
    assert all(outcome == outcomes[0] for outcome in outcomes)
    assert Path("out0/drift.png").read_bytes() == Path("out1/drift.png").read_bytes()
    assert Path("out0/drift.json").read_bytes() == Path("out1/drift.json").read_bytes()


def test_the_draw_depends_on_content_and_seed_alone() -> None:
    digests = [f"{number:064x}" for number in range(50)]
    drawn = [digests[position] for position in draw(digests, 10, seed=0)]
    backwards = digests[::-1]
    assert drawn == [backwards[position] for position in draw(backwards, 10, seed=0)]
    assert drawn != [digests[position] for position in draw(digests, 10, seed=1)]
    assert draw(digests, 99, seed=0)[:10] == draw(digests, 10, seed=0)


def test_unreadable_images_are_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiles(here / "a")
    write_tiles(here / "b", offset=1)
    (here / "b" / "cut.png").write_bytes((here / "b" / "000.png").read_bytes()[:40])
    (here / "b" / "empty.png").write_bytes(b"")
    assert drift("a", "b") == 0
    shown = capsys.readouterr().out
    assert "2 unreadable:\n  cut.png: not a whole image" in shown
    new = report()["new"]
    assert isinstance(new, dict)
    assert set(new["unreadable"]) == {"cut.png", "empty.png"}


def test_nothing_but_unreadable_images(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiles(here / "a")
    (here / "b").mkdir()
    assert drift("a", "b") == 1
    for number in range(3):
        (here / "b" / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(SystemExit, match="none of 3 files is an image; the first, "):
        main(["data", "drift", "a", "b", "--model", "none"])
    assert not Path("reports").exists()
    assert capsys.readouterr().out == ""


def test_tiny_sides(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toys.write_images(here / "one", ["1.png"], height=1, width=1)
    toys.write_images(here / "two", ["1.png"], height=1, width=1, channels=3)
    assert drift("one", "two") == 0
    assert "no drift found, and none could be: too few images" in capsys.readouterr().out
    assert drift("one", "one") == 0


def test_grey_against_colour(here: Path) -> None:
    write_tiles(here / "colour")
    (here / "grey").mkdir()
    for path in (here / "colour").iterdir():
        grey: UInt8Array = cv2.cvtColor(decode(path.read_bytes(), 3), cv2.COLOR_RGB2GRAY)[:, :, None]
        (here / "grey" / path.name).write_bytes(encode_png(grey))
    assert drift("colour", "grey") == 3
    findings = report()["findings"]
    assert isinstance(findings, list)
    assert {f["name"] for f in findings if f["drifted"]} == {"saturation", "red minus blue"}


@pytest.mark.parametrize("option", [("--alpha", "0"), ("--alpha", "x"), ("--sample", "1"), ("--seed", "-1")])
def test_a_wrong_option(option: tuple[str, str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert drift(here, here, *option) == 2
    assert "expected a " in capsys.readouterr().err


@pytest.fixture
def champion(store: Path) -> Path:
    """A project with a champion of the dataset digits (untrained); its ONNX file."""
    shutil.copy(toys.REPOSITORY / "params.yaml", "params.yaml")
    torch.manual_seed(0)
    recipe = ImageRecipe(8, 8, 1)
    classes = tuple("0123456789")
    model = create(toys.network(store).canonical(), ModelInfo("digits", classes, vars(recipe), (0.3,), (0.4,))).eval()
    export(model, ExportInfo("digits", classes, recipe, "f" * 64), store / "model.onnx")
    name = tracking.experiment_of("digits")
    run_id = tracking.run_of_model(name, "m" * 64, {}, [])
    file = store / "model.onnx"
    candidate = Candidate(name, run_id, file, "m" * 64, sha256(file), "t", {"accuracy": 0.1, "macro_f1": 0.1})
    version = registry.register(candidate, predictor.__name__, ["numpy"])
    registry.challenge(name, version, candidate, "accuracy", lambda _: {})
    return file


def test_what_the_champion_sees(champion: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sha256(artifacts.onnx_file("models:/deepcv-digits@champion")) == sha256(champion)
    write_digits(tmp_path / "plain")
    write_digits(tmp_path / "inverted", inverted=True)
    assert drift("plain", DIGITS, model=None) == 0
    assert drift("plain", "inverted", model=None) == 3
    assert "model: models:/deepcv-digits@champion" in capsys.readouterr().out
    assert "embedding" in str(report()["verdict"])
    with pytest.raises(RegistryError, match="deepcv-nothing"):
        artifacts.onnx_file("models:/deepcv-nothing@champion")
    assert drift("plain", DIGITS, model="models:/deepcv-nothing/1") == 1


def test_no_champion(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toys.write_images(here / "a", ["1.png", "2.png"])
    assert drift("a", "a", model=None) == 0
    assert "model: none (there is no champion here)" in capsys.readouterr().out
