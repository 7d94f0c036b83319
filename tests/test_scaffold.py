from pathlib import Path
from typing import Any

import cv2
import pytest
import toys

from deepcv import scaffold
from deepcv.data import exclusions
from deepcv.data.samples import DataError
from deepcv.files import sha256
from deepcv.nn import spec
from deepcv.params import whole
from deepcv.params.base import ParamsError
from deepcv.scaffold import Findings

FEW = ["cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png", "dog/3.png"]


@pytest.fixture(autouse=True)
def in_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks of the repository and its params.yaml, in a folder of this test's own."""
    (tmp_path / "networks").symlink_to(toys.REPOSITORY / "networks")
    (tmp_path / "params.yaml").write_bytes((toys.REPOSITORY / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)


def findings(**changes: Any) -> Findings:
    values: dict[str, Any] = {
        "images": 1000, "classes": ("a", "b"), "splits": {"to be split": 1000},
        "height": 28, "width": 28, "same_size": True, "colour": False, "jpeg": False, **changes,
    }  # fmt: skip
    return Findings(**values)


def look(path: Path) -> Findings:
    return scaffold.look(path, Path("downloads"))


@pytest.mark.parametrize("mode", ["folder", "tar"])
@pytest.mark.parametrize("channels", [1, 3])
def test_look_learns_size_classes_splits_and_colour(mode: str, channels: int, tmp_path: Path) -> None:
    root = toys.write_images(tmp_path / "pets", FEW, height=10, width=12, channels=channels)
    found = look(root if mode == "folder" else toys.write_tar(root, tmp_path / "pets.tar"))
    assert found == Findings(
        images=5, classes=("cat", "dog"), splits={"to be split": 5}, height=10, width=12, same_size=True,
        colour=channels == 3, jpeg=False,
    )  # fmt: skip


def test_look_tells_splits_apart_and_takes_the_median_size(tmp_path: Path) -> None:
    toys.write_images(tmp_path / "pets", ["train/a/1.png", "train/b/1.png", "test/a/1.png"], height=9, width=9)
    toys.write_images(tmp_path / "pets", ["test/b/2.png"], height=40, width=30, channels=3)
    found = look(tmp_path / "pets")
    assert found.splits == {"train": 2, "test": 2}
    assert (found.height, found.width, found.same_size, found.colour) == (9, 9, False, True)


def test_look_leaves_excluded_images_out(tmp_path: Path) -> None:
    root = toys.write_images(tmp_path / "pets", FEW, height=10, width=12)
    exclusions.add(tmp_path / exclusions.FILE, sha256(root / FEW[0]))
    found = look(root)
    assert (found.images, found.splits) == (4, {"to be split": 4})


@pytest.mark.parametrize("other", [".jpg", ".png"])
def test_look_tells_jpegs_from_others(other: str, tmp_path: Path) -> None:
    for number, name in enumerate(FEW):
        path = tmp_path / "pets" / name.replace(".png", ".x")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(other if name == FEW[-1] else ".jpg", toys.picture(number))[1].tobytes())
    assert look(tmp_path / "pets").jpeg == (other == ".jpg")


def test_look_goes_by_the_other_files_and_names_a_bad_one_where_there_is_no_other(tmp_path: Path) -> None:
    toys.write_images(tmp_path / "pets", FEW)
    whole = look(tmp_path / "pets")
    (tmp_path / "pets" / "dog" / "2.png").write_bytes(b"no image")
    assert look(tmp_path / "pets") == whole  # `validate` judges the file
    for name in FEW:
        (tmp_path / "pets" / name).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cat/\d\.png: not an image format"):
        look(tmp_path / "pets")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"height": 8, "width": 8}, {"height": 8, "width": 8, "resize": "stretch", "network": "networks/digits.yaml"}),
        ({"height": 28, "width": 27}, {"height": 28, "width": 28, "network": "networks/small.yaml", "shift": 1}),
        ({"height": 300, "width": 200, "same_size": False},
         {"height": 128, "width": 128, "resize": "crop", "network": "networks/medium.yaml", "shift": 8}),
        ({"height": 500, "width": 60}, {"height": 64, "width": 64, "resize": "stretch"}),
        ({"height": 20, "width": 90, "same_size": False}, {"height": 32, "width": 32}),
        ({"colour": True}, {"channels": 3, "flip": True}),
        ({"colour": False}, {"channels": 1, "flip": False}),
        ({"height": 300, "width": 256, "jpeg": True}, {"height": 128, "reduced": True}),
        ({"height": 300, "width": 255, "jpeg": True}, {"width": 128, "reduced": False}),
        ({"height": 255, "width": 300, "jpeg": True}, {"height": 128, "reduced": False}),
        ({"height": 300, "width": 256, "jpeg": False}, {"reduced": False}),
        ({"images": 100}, {"batch_size": 16}),
        ({"images": 700}, {"batch_size": 64}),
        ({"images": 9000}, {"batch_size": 128}),
        ({"images": 9000, "splits": {"train": 100, "test": 8900}}, {"batch_size": 16}),
    ],
)  # fmt: skip
def test_a_proposal_fits_the_images(
    found: dict[str, Any], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaffold, "seconds_per_image", lambda *_: 1e-3)
    proposal = scaffold.propose("data/Pets", findings(**found))
    short = {key.partition(".")[2]: value for key, value in proposal.values.items()}
    assert {key: short[key] for key in expected} == expected


@pytest.mark.parametrize(("image_s", "epochs"), [(1e-6, 30), (0.04, 12), (10.0, 3)])
def test_epochs_fit_the_budget(image_s: float, epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaffold, "seconds_per_image", lambda *_: image_s)
    monkeypatch.setattr(scaffold, "_BUDGET_S", {"cpu": 480.0, "cuda": 480.0})
    proposal = scaffold.propose("pets", findings())
    assert proposal.values["train.epochs"] == epochs
    assert proposal.training_s == pytest.approx(epochs * 1000 * image_s)


def test_a_training_step_is_timed() -> None:
    once = scaffold.seconds_per_image("networks/digits.yaml", (1, 8, 8), 2, 16)
    assert 0 < once < 1


@pytest.mark.parametrize("network", ["digits", "small", "medium"])
def test_no_value_of_another_network_stays(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaffold, "seconds_per_image", lambda *_: 1e-3)
    text = Path("params.yaml").read_text().replace("    width: 16\n", "    width: 3\n")
    assert "width: 3" in text
    Path("params.yaml").write_text(text)
    side = {"digits": 8, "small": 32, "medium": 64}[network]
    found = findings(height=side, width=side)
    train = whole.loads(scaffold.write(Path("params.yaml"), found, scaffold.propose("pets", found))).train
    assert train.network == f"networks/{network}.yaml"
    assert spec.load(Path(train.network), train.network_parameters) == spec.load(Path(train.network), {})


def test_params_are_written_with_comments_kept() -> None:
    path = Path("params.yaml")
    before = path.read_text()
    values = {"ingest.dataset": "pets", "ingest.path": "data/pets", "preprocess.reduced": True, "train.epochs": 7}
    proposal = scaffold.Proposal(values, 60.0)
    text = scaffold.write(path, findings(), proposal)
    first, _, rest = text.partition("\n")
    assert first == "# deepcv init: 1000 images (1000 to be split) of 2 classes (a, b), 28×28, grey"
    changed = [(a, b) for a, b in zip(before.splitlines(), rest.splitlines(), strict=True) if a != b]
    assert [b.split("#")[0].strip() for _, b in changed] == [
        "dataset: pets", "path: data/pets", "reduced: true", "epochs: 7"
    ]  # fmt: skip
    assert all(a.partition("#")[2] == b.partition("#")[2] for a, b in changed)
    params = whole.loads(text)
    assert (params.ingest.dataset, params.train.epochs) == ("pets", 7)
    path.write_text(text)
    assert scaffold.write(path, findings(), proposal) == text  # the line about the findings is not doubled


def test_a_class_name_cannot_break_out_of_the_comment() -> None:
    proposal = scaffold.Proposal({}, 60.0)
    text = scaffold.write(Path("params.yaml"), findings(classes=("a\ntrain: 1", "b")), proposal)
    assert whole.loads(text)


@pytest.mark.parametrize("change", [("\n", "\r\n"), ("# The", "\ufeff# The")], ids=["line ends", "byte order mark"])
def test_params_of_another_editor_stay_valid_and_keep_their_line_ends(change: tuple[str, str]) -> None:
    path = Path("params.yaml")
    path.write_bytes(path.read_text().replace(*change).encode())
    text = scaffold.write(path, findings(), scaffold.Proposal({"train.epochs": 7}, 60.0))
    assert whole.loads(text).train.epochs == 7
    assert text.count("\r\n") == (text.count("\n") if change[1] == "\r\n" else 0)


def test_params_that_are_not_utf8_are_named() -> None:
    Path("params.yaml").write_bytes(b"# gr\xfcn\n" + Path("params.yaml").read_bytes())
    with pytest.raises(ParamsError, match=r"params\.yaml:1: not UTF-8 text"):
        scaffold.write(Path("params.yaml"), findings(), scaffold.Proposal({}, 1.0))


def test_without_params_the_error_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").unlink()
    with pytest.raises(ParamsError, match=r"params\.yaml: there is no such file; run this in a DeepCV project"):
        scaffold.write(Path("params.yaml"), findings(), scaffold.Proposal({}, 1.0))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("data/cifar10-jpeg.tar.gz", "cifar10-jpeg"), ("/a/My Pets/", "my-pets"), ("x.TAR", "x"), ("d/digits.yaml", "digits"),
        ("v1.2", "v1.2"), ("…", "images"), (".", "images"), ("..", "images"), ("_a_", "a"), ("photos.tgz", "photos"),
        ("n" * 130, "n" * 100),
    ],
)  # fmt: skip
def test_dataset_names(path: str, name: str) -> None:
    assert scaffold.dataset_name(path) == name


def test_what_another_recipe_learned_is_named() -> None:
    params, several = (whole.load(toys.REPOSITORY / name) for name in ("params.yaml", "examples/several-targets.yaml"))
    assert scaffold.left_over(params) == []
    assert scaffold.left_over(several) == ["preprocess.further_targets", "train.losses"]
