"""What a stage's entry refuses to have recorded."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deepcv.files import atomic_folder
from deepcv.stages import entry

DVC_YAML = """\
stages:
  toy:
    params: [toy, versions.yaml: [numpy]]
    deps: ["${toy.path}", code.py]
"""


def edit(file: str, old: str, new: str) -> Callable[[], None]:
    return lambda: Path(file).write_text(Path(file).read_text().replace(old, new))


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "dvc.yaml").write_text(DVC_YAML)
    (tmp_path / "params.yaml").write_text("toy: {path: images, lr: 1}\nother: {seed: 0}\n")
    (tmp_path / "versions.yaml").write_text((Path(__file__).parents[2] / "versions.yaml").read_text())
    (tmp_path / "code.py").write_text("x = 1\n")
    (tmp_path / "images/a").mkdir(parents=True)
    (tmp_path / "images/a/1.png").write_bytes(b"1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["toy.py"])
    monkeypatch.setattr(os, "environ", dict(os.environ))
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (edit("params.yaml", "lr: 1", "lr: 2"), "toy in params.yaml"),
        (edit("params.yaml", "path: images", "path: code.py"), "images/a/1.png and 1 more"),
        (edit("versions.yaml", "numpy: ", "numpy: 9."), "numpy in versions.yaml"),
        (edit("code.py", "x = 1", "x = 1.0"), "code.py"),
        (edit("images/a/1.png", "1", "22"), "images/a/1.png"),
        (lambda: Path("images/a/2.png").write_bytes(b"2"), "images/a/2.png"),
        (lambda: Path("images/a/1.png").unlink(), "images/a/1.png"),
    ],
)
def test_a_stage_whose_inputs_change_while_it_runs_fails(change: Callable[[], None], named: str) -> None:
    cleaned: list[bool] = []

    def main() -> Callable[[], None]:
        change()
        return lambda: cleaned.append(True)

    with pytest.raises(SystemExit, match=rf"toy: {named} changed while the stage ran"):
        entry.run(main)
    assert not cleaned  # train's checkpoints are kept: with the params set back nothing is trained again


def test_what_a_stage_does_not_read_may_change() -> None:
    cleaned: list[bool] = []

    def main() -> Callable[[], None]:
        edit("params.yaml", "seed: 0", "seed: 1")()
        Path("images/.DS_Store").write_bytes(b"")
        return lambda: cleaned.append(True)

    entry.run(main)
    assert cleaned == [True]


def test_a_terminated_stage_leaves_nothing_half_written() -> None:
    def main() -> None:
        with atomic_folder(Path("data/out")) as folder:
            (folder / "half").touch()
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit, match="143"):
        entry.run(main)
    assert not list(Path("data").iterdir())
