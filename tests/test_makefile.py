import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What `make setup` reads, in a folder with a space, and a virtual environment that is made."""
    folder = tmp_path / "my project"
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name in ("pyproject.toml", "requirements.lock", "Makefile"):
        shutil.copy(REPOSITORY / name, folder)
    # As pip writes it where the path has a space.
    script = f'#!/bin/sh\n\'\'\'exec\' "{folder}/.venv/bin/python3.11" "$0" "$@"\n'
    (folder / ".venv" / "bin" / "deepcv").write_text(script)
    (folder / ".venv" / ".installed").touch()
    return folder


def make(folder: Path, *arguments: str, path: str = os.environ["PATH"]) -> str:
    of_us = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}  # the tests themselves may run under make
    environment = {key: value for key, value in os.environ.items() if key not in of_us} | {"PATH": path}
    program = shutil.which("make") or "make"
    return subprocess.run(
        [program, *arguments], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ).stdout


def bare_path(folder: Path, **programs: str) -> str:
    """A PATH with a bare system's programs alone, and these."""
    folder.mkdir()
    for name in ("bash", "git", "grep", "sed", "dirname"):
        (folder / name).symlink_to(shutil.which(name) or name)
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return str(folder)


def test_help_needs_no_more_than_a_bare_system(project: Path, tmp_path: Path) -> None:
    lines = make(project, "help", path=bare_path(tmp_path / "bin")).splitlines()
    assert "  make test        the test suite" in lines
    assert all(line.startswith("  make ") for line in lines)


def test_an_environment_is_made_once_and_again_after_a_move(project: Path) -> None:
    assert "Nothing to be done" in make(project, "-n", "setup")
    linked = project.with_name("linked")
    linked.symlink_to(project)
    assert "Nothing to be done" in make(linked, "-n", "setup")
    assert "-m venv --clear .venv" in make(project.rename(project.with_name("moved")), "-n", "setup")


def test_another_python_is_named(project: Path, tmp_path: Path) -> None:
    (project / ".venv" / ".installed").unlink()
    without = make(project, "setup", path=bare_path(tmp_path / "without"))
    assert "Python 3.11 or 3.12 is missing: apt-get install python3 python3-venv" in without
    newer = make(project, "setup", path=bare_path(tmp_path / "newer", python3='[ "$1" = -V ] && echo Python 3.13.0'))
    assert "python3 is Python 3.13.0: install one beside it" in newer
    assert "apt-get" not in newer
