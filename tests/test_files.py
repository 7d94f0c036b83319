import hashlib
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from deepcv.files import atomic, atomic_folder, check_archive, sha256, write_text


def test_atomic_replaces_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_text(path, "one")
    write_text(path, "zwei ü\n")
    assert path.read_bytes() == "zwei ü\n".encode()
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_atomic_leaves_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with atomic(path) as aside:
            aside.write_text("half")
            assert path.read_text() == "old"
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "old"


def test_atomic_folder_replaces_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "stale").write_text("x")
    (tmp_path / ".out.tmp").mkdir()  # what a killed process left
    (tmp_path / ".out.tmp" / "half").write_text("x")
    with atomic_folder(target) as folder:
        (folder / "fresh").write_text("y")
        assert (target / "stale").exists()
    assert [p.name for p in target.iterdir()] == ["fresh"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_atomic_folder_leaves_the_old_folder_when_writing_fails(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("x")

    def fail() -> None:
        with atomic_folder(target) as folder:
            (folder / "half").write_text("y")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert [p.name for p in target.iterdir()] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


# A process of its own: one forked from the tests' would hold the threads and the handlers at exit that other tests left.
KILLED = """
import os, signal, sys
from pathlib import Path
from deepcv.files import atomic_folder

left = int(sys.argv[1])

def count(event, _arguments):
    global left
    if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)
with atomic_folder(Path(sys.argv[2])) as folder:
    for name in sys.argv[3:]:
        (folder / name).write_text("new")
"""


def killed_at(point: int, target: Path, names: Iterable[str]) -> bool:
    """Write the files `names` to the folder, killed before change number `point` of files; whether it came that far."""
    process = subprocess.run([sys.executable, "-c", KILLED, str(point), target, *names], timeout=60)
    assert process.returncode in (0, -signal.SIGKILL)
    return process.returncode != 0


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("deleted", [False, True], ids=["", "and DVC deletes the folder before the next run"])
def test_a_kill_at_any_change_leaves_one_whole_folder(deleted: bool, tmp_path: Path) -> None:
    old, new = {"a": "old", "b": "old"}, {"a": "new", "c": "new"}
    target = tmp_path / "parent/out"

    def write(files: dict[str, str]) -> None:
        with atomic_folder(target) as folder:
            for name, text in files.items():
                (folder / name).write_text(text)

    def fail() -> None:
        with atomic_folder(target):
            raise OSError("disk full")

    states: list[tuple[bool, bool]] = []
    for point in range(1, 100):
        shutil.rmtree(target.parent, ignore_errors=True)
        write(old)
        if not killed_at(point, target, new):
            break
        there = [path for path in target.parent.iterdir() if content(path) in (old, new)]
        assert there
        states.append((target.exists(), target in there))
        if deleted:
            shutil.rmtree(target, ignore_errors=True)
        with pytest.raises(OSError, match="disk full"):
            fail()
        assert [path.name for path in target.parent.iterdir()] in ([["out"], []] if deleted else [["out"]])
        assert not target.exists() or content(target) in (old, new)
        write(new)
        assert content(target) == new
    assert content(target) == new
    assert set(states) == {(True, True), (False, False)}  # a kill between the two renames was among them


def test_atomic_folder_replaces_what_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "big/raw").mkdir(parents=True)
    link = tmp_path / "raw"
    link.symlink_to("big/raw")
    for content in ("1", "2"):
        with atomic_folder(link) as folder:
            (folder / "file").write_text(content)
        assert link.is_symlink()
        assert (tmp_path / "big/raw/file").read_text() == content
    assert [path.name for path in (tmp_path / "big").iterdir()] == ["raw"]


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_an_archive_that_points_before_its_beginning_is_damaged(tmp_path: Path) -> None:
    """zipfile seeks there, which is an OSError: not one of the disk."""
    path = tmp_path / "archive.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("record", "content")
    content = bytearray(path.read_bytes())
    content[-22 + 16 : -22 + 20] = (10**6).to_bytes(4, "little")  # where the directory begins, says the last record
    path.write_bytes(content)
    with pytest.raises(zipfile.BadZipFile):
        check_archive(path)
