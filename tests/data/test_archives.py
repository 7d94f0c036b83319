import stat
import zipfile
from pathlib import Path

import pytest
import toys

from deepcv.data.samples import DataError
from deepcv.data.sources import archives, open_source

NAMES = ["cat/1.png", "cat/zwei Wörter.png", "dog/line\nbreak.png", "dog/日本.png"]


def opened(path: Path) -> list[tuple[str, str, bytes]]:
    return [(s.id, s.label, s.encoded) for s in open_source(path, Path("/nonexistent")).samples()]


def members(path: Path, *infos: zipfile.ZipInfo | str, content: bytes = b"1234") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for info in infos:
            archive.writestr(info, content)
    return path


def test_a_zip_gives_what_the_folder_gives(tmp_path: Path) -> None:
    root = toys.write_images(tmp_path / "images", NAMES)
    folder = opened(root)
    assert len(folder) == 4
    for path in (toys.write_zip(root, tmp_path / "i.zip"), toys.write_tar(root, tmp_path / "i.tar")):
        assert opened(path) == folder
    assert opened((tmp_path / "i.zip").rename(tmp_path / "noname")) == folder


def symlink(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("infos", "message"),
    [
        (["../up/1.png"], "'../up/1.png' points outside the archive; such a zip"),
        (["a/../../1.png"], "points outside"),
        (["/etc/1.png"], "'/etc/1.png' points outside"),
        ([symlink("a/1.png")], "'a/1.png' is a link"),
        (["a/1.png", "b/1.png", "./a/1.png"], "1 names stand in it more than once: a/1.png"),
    ],
)
def test_a_zip_that_could_mislead_is_refused(infos: list[zipfile.ZipInfo | str], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        opened(members(tmp_path / "t.zip", *infos))


def test_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = toys.write_images(tmp_path / "images", ["a/1.png", "b/1.png"])
    (root / "a/1.png").write_bytes(bytes(10**6))
    tar = toys.write_tar(root, tmp_path / "t.tar.gz", "w:gz")
    path = toys.write_zip(root, tmp_path / "t.zip")
    assert len(opened(path)) == len(opened(tar)) == 2
    monkeypatch.setattr(archives, "ALWAYS_ALLOWED", 1000)
    for bomb in (path, tar):
        with pytest.raises(DataError, match=r"unpack to more than [\d,]+ bytes \(100 times its size\)"):
            opened(bomb)


def test_a_damaged_zip_is_named(tmp_path: Path) -> None:
    root = toys.write_images(tmp_path / "images", [f"{c}/{n}.png" for c in "ab" for n in range(3)], height=30, width=30)
    whole = toys.write_zip(root, tmp_path / "t.zip").read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:200] + bytes([whole[200] ^ 0x41]) + whole[201:]):
        (tmp_path / "t.zip").write_bytes(damaged)
        with pytest.raises(DataError, match=r"t.zip: cannot be read as a zip"):
            opened(tmp_path / "t.zip")


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    path = members(tmp_path / "t.zip", "a/1.png", "b/1.png")
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"'a/1.png' is encrypted"):
        opened(path)


def test_a_symlink_loop_is_named(tmp_path: Path) -> None:
    root = toys.write_images(tmp_path / "images", ["a/1.png", "b/1.png"])
    (root / "a/2.png").symlink_to(root / "a/2.png")
    with pytest.raises(DataError, match=r"a/2.png: cannot be read \(Too many levels of symbolic links"):
        opened(root)
