from pathlib import Path

import pytest

from deepcv.errors import DeepcvError
from deepcv.home import project_dir, quiet_environment, state_dir


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "project" / "data").mkdir(parents=True)
    (tmp_path / "project" / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.delenv("DEEPCV_HOME", raising=False)
    return tmp_path / "project"


def test_the_project_is_found_from_below(project: Path) -> None:
    assert project_dir(project / "data") == project
    assert state_dir() == project / ".deepcv"
    assert state_dir().is_dir()


def test_an_experiments_copy_counts_as_its_project(project: Path) -> None:
    copy = project / ".dvc" / "tmp" / "exps" / "tmpabc"
    copy.mkdir(parents=True)
    (copy / "dvc.yaml").write_text("stages: {}\n")
    assert project_dir(copy) == project


def test_outside_a_project_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(DeepcvError, match=r"no dvc\.yaml in .*inside a DeepCV project"):
        project_dir(tmp_path)


def test_the_environment_decides_where_state_is(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPCV_HOME", str(tmp_path / "elsewhere"))
    assert state_dir() == tmp_path / "elsewhere"
    assert not (project / ".deepcv").exists()
    assert quiet_environment()["PREFECT_HOME"] == str(tmp_path / "elsewhere" / "prefect")
