"""`deepcv find-lr`, and what `deepcv preview` says of train.compile."""

import re
from pathlib import Path

import pytest
import torch
import toys
from test_cli import message

from deepcv.cli import main
from deepcv.images import decode
from deepcv.params import whole
from deepcv.params.edit import set_values


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose images are prepared."""
    (tmp_path / "params.yaml").write_bytes((toys.REPOSITORY / "params.yaml").read_bytes())
    (tmp_path / "networks").symlink_to(toys.REPOSITORY / "networks")
    toys.write_shards(tmp_path / "data/shards", train=64)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_suggestion_and_a_plot(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = (project / "params.yaml").read_text()
    files = {path for path in project.rglob("*") if path.is_file()}
    main(["find-lr", "--steps", "40"])
    told = capsys.readouterr()
    head, row = told.out.splitlines()
    assert head.split() == ["now", "suggested"]
    name, now, suggested, *_ = row.split()
    assert (name, now) == ("lr", "0.01")
    assert 1e-4 < float(suggested) < 10
    assert f"between {suggested}, minimum/3" in row
    assert told.err == "wrote reports/training/range.png\n"
    assert decode((project / "reports/training/range.png").read_bytes(), 3).std() > 1
    assert {path for path in project.rglob("*") if path.is_file()} - files == {project / "reports/training/range.png"}
    assert (project / "params.yaml").read_text() == params


def test_apply_changes_the_suggested_values_alone(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (project / "params.yaml").read_text().splitlines()
    main([
        "find-lr", "--steps", "60", "--method", "minimum/10", "--also", "momentum", "--also", "weight_decay",
        "--out", "elsewhere/range.png", "--apply",
    ])  # fmt: skip
    told = capsys.readouterr()
    rows = {words[0]: words[1:] for words in map(str.split, told.out.splitlines()[1:4])}
    train = whole.load(Path("params.yaml")).train
    found = {name: float(words[1]) for name, words in rows.items()}
    assert found == {"lr": train.lr, "momentum": train.momentum, "weight_decay": train.weight_decay}
    assert train.lr != 0.01
    changed = [line for line in (project / "params.yaml").read_text().splitlines() if line not in before]
    assert {line.split(":")[0].strip() for line in changed} <= set(found)
    assert changed[0].endswith("# peak of the OneCycle schedule")
    assert told.out.endswith("params.yaml has them now; `dvc repro` trains with them\n")
    assert (project / "elsewhere/range.png").exists()
    assert not (project / "reports").exists()


@pytest.mark.usefixtures("project")
def test_an_applied_momentum_takes_the_betas_with_it() -> None:
    set_values(Path("params.yaml"), {"train.optimizer_options": {"betas": [0.1, 0.95]}, "train.momentum": 0.1})
    main(["find-lr", "--steps", "60", "--also", "momentum", "--apply"])
    train = whole.load(Path("params.yaml")).train
    assert train.optimizer_options == {"betas": [train.momentum, 0.95]}
    assert train.momentum != 0.1


def test_without_prepared_images(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "data/shards/dataset.json").unlink()
    assert message(capsys, "find-lr") == "deepcv: data/shards/dataset.json: missing; run `dvc repro preprocess`"


def test_a_range_in_which_nothing_is_learned(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = (project / "params.yaml").read_text()
    text = message(capsys, "find-lr", "--from", "900", "--to", "1000", "--steps", "20", "--apply")
    assert "begin with a lower rate" in text
    assert (project / "params.yaml").read_text() == params


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--from", "0"), "expected a rate above 0 and of at most 1000, got '0'"),
        (("--to", "nan"), "expected a rate above 0 and of at most 1000, got 'nan'"),
        (("--to", "many"), "got 'many'"),
        (("--steps", "19"), "expected a whole number from 20 to 10000, got '19'"),
        (("--method", "best"), "invalid choice: 'best'"),
        (("--also", "lr"), "invalid choice: 'lr'"),
        (("--from", "1", "--to", "0.1"), "--from 1 must be below --to 0.1"),
    ],
)
def test_a_wrong_command_line(arguments: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert expected in message(capsys, "find-lr", *arguments)


def test_preview_times_steps_with_and_without_compile(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert project
    with torch.compiler.set_stance("force_eager"):  # to compile takes a minute
        main(["preview", "--compile"])
    *_, times, advice = capsys.readouterr().out.splitlines()
    found = re.fullmatch(r"forward and backward of a batch: (.*) ms, compiled (.*) ms, after \d+ s of compiling", times)
    assert found
    plain, fast = map(float, found.groups())
    assert 0.1 < fast / plain < 10  # the same code, on a machine in use
    assert re.fullmatch(r"train\.compile: (true|false) saves about \d+ s of this training", advice)
