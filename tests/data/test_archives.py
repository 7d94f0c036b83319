import io
import stat
import tarfile
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


def tar(path: Path, names: list[str], kind: int) -> Path:
    with tarfile.open(path, "w", format=kind) as packed:
        folder = tarfile.TarInfo("top")
        folder.type = tarfile.DIRTYPE
        packed.addfile(folder)
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 700 * number if number != 2 else 2**20 + 1
            packed.addfile(info, io.BytesIO(bytes(info.size)))
    return path


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize(
    ("names", "plain"), [(["top/a", "top/ä", "b", "c" * 90 + "/d" * 30], False), (["top/a", "b", "c/d", "e f"], True)]
)
def test_headers_are_read_as_tarfile_reads_them(names: list[str], plain: bool, kind: int, tmp_path: Path) -> None:
    path = tar(tmp_path / "i.tar", names, kind)
    with tarfile.open(path) as packed:
        expected = [(m.name, "folder" if m.isdir() else "file", m.offset_data, m.size) for m in packed]
        assert list(archives._headers(packed)) == expected
        if plain or kind == tarfile.USTAR_FORMAT:  # its prefix holds long names
            assert list(archives.plain_headers(packed.fileobj)) == expected
        else:
            with pytest.raises(archives._OddHeaderError):
                list(archives.plain_headers(packed.fileobj))
    assert [(str(name), len(content)) for name, content in archives.archive(path).contents(archives.archive(path).files)] == [
        (name, size) for name, kind_, _, size in expected if kind_ == "file"
    ]  # fmt: skip


@pytest.mark.parametrize("place", [0, 100, 130, 150, 156, 512 + 3])
def test_a_damaged_header_is_left_to_tarfile(place: int, tmp_path: Path) -> None:
    path = tar(tmp_path / "i.tar", ["a", "b"], tarfile.USTAR_FORMAT)
    content = bytearray(path.read_bytes())
    content[place] ^= 0x5A
    with pytest.raises(archives._OddHeaderError):
        list(archives.plain_headers(io.BytesIO(content)))
    with pytest.raises(archives._OddHeaderError):
        list(archives.plain_headers(io.BytesIO(path.read_bytes()[:700])))
