import gzip
import io
import os
import re
import socket
import sys
import tarfile
from pathlib import Path

import pytest
from histories import History
from toys import REPOSITORY, write_images, write_tar, write_zip

from deepcv.data import builtin, sources
from deepcv.data.samples import DataError
from deepcv.data.sources import Source, open_source

LAYOUTS = {
    "classes": (["cat/1.png", "cat/2.png", "dog/1.png"], {(None, "cat"), (None, "dog")}),
    "classes, nested": (["cat/x/1.png", "cat/2.png", "dog/y/z/1.png"], {(None, "cat"), (None, "dog")}),
    "top folder": (["pets/cat/1.png", "pets/dog/1.png"], {(None, "cat"), (None, "dog")}),
    "two top folders": (["a/b/cat/1.png", "a/b/dog/1.png"], {(None, "cat"), (None, "dog")}),
    "splits": (["train/a/1.png", "train/b/1.png", "test/a/2.png", "test/b/2.png"],
               {("train", "a"), ("train", "b"), ("test", "a"), ("test", "b")}),
    "top folder, splits": (["d/train/a/1.png", "d/train/b/1.png", "d/valid/a/2.png", "d/valid/b/2.png"],
                           {("train", "a"), ("train", "b"), ("val", "a"), ("val", "b")}),
    "splits in capitals": (["Train/a/1.png", "Train/b/1.png", "Validation/a/2.png", "Validation/b/2.png"],
                           {("train", "a"), ("train", "b"), ("val", "a"), ("val", "b")}),
    "train alone": (["train/a/1.png", "train/b/1.png"], {("train", "a"), ("train", "b")}),
    "a class called train": (["train/1.png", "bus/1.png"], {(None, "train"), (None, "bus")}),
}  # fmt: skip

BAD_LAYOUTS = {
    "one class": (["cat/1.png", "cat/2.png"], "one class"),
    "one class in splits": (["train/cat/1.png", "test/cat/2.png"], r"one class \(cat\)"),
    "differ in case": (["cat/1.png", "Cat/1.png", "dog/1.png"], "Cat and cat differ only in case"),
    "missing in a split": (["train/a/1.png", "train/b/1.png", "test/a/1.png"], "no image for class b in split test"),
    "no train": (["val/a/1.png", "val/b/1.png", "test/a/1.png", "test/b/1.png"], "no train split"),
    "stray beside classes": (["cat/1.png", "dog/1.png", "readme.txt"], "1 files stand outside .* readme.txt"),
    "stray in a split": (["train/a/1.png", "train/b/1.png", "train/x.png"], "outside a class folder.*train/x.png"),
    "stray in the top folder": (["d/a/1.png", "d/b/1.png", "d/readme.md"], "outside a class folder.*d/readme.md"),
    "no folder": (["1.png", "2.png"], "2 files stand outside a class folder"),
}


def opened(path: Path) -> Source:
    return open_source(path, Path("/nonexistent"))


def contents(source: Source) -> dict[str, tuple[str | None, str, bytes]]:
    samples = list(source.samples())
    assert len(samples) == source.count == len({s.id for s in samples})
    assert {s.label for s in samples} == set(source.classes)
    return {s.id: (s.split, s.label, s.encoded) for s in samples}


def packed(root: Path, mode: str, target: Path) -> Path:
    """The folder itself, or an archive of it."""
    if mode == "folder":
        return root
    path = target / f"images.{mode}"
    return write_zip(root, path) if mode == "zip" else write_tar(root, path, "w:gz" if mode == "tar.gz" else "w")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["folder", "tar", "tar.gz", "zip"])
def test_layouts(layout: str, mode: str, tmp_path: Path) -> None:
    names, places = LAYOUTS[layout]
    root = write_images(tmp_path / "images", names)
    found = contents(opened(packed(root, mode, tmp_path)))
    assert {(split, label) for split, label, _ in found.values()} == places
    assert {name: encoded for name, (_, _, encoded) in found.items()} == {n: (root / n).read_bytes() for n in names}


@pytest.mark.parametrize("layout", BAD_LAYOUTS)
@pytest.mark.parametrize("mode", ["folder", "tar", "zip"])
def test_bad_layouts(layout: str, mode: str, tmp_path: Path) -> None:
    names, message = BAD_LAYOUTS[layout]
    root = write_images(tmp_path / "images", names)
    path = packed(root, mode, tmp_path)
    with pytest.raises(DataError, match=message) as raised:
        opened(path)
    assert str(raised.value).startswith(f"{path}: ")


@pytest.mark.parametrize("names", [["cat/1.png", "dog/1.png"], ["train/cat/1.png", "train/dog/1.png"]])
@pytest.mark.parametrize("mode", ["folder", "tar", "zip"])
def test_a_class_without_image_is_named(names: list[str], mode: str, tmp_path: Path) -> None:
    root = write_images(tmp_path / "images", names)
    (root / names[0]).parent.with_name("emu").mkdir()
    with pytest.raises(DataError, match="no image for class emu"):
        opened(packed(root, mode, tmp_path))


@pytest.mark.parametrize("mode", ["folder", "tar", "zip"])
def test_hidden_files_and_litter_are_ignored(mode: str, tmp_path: Path) -> None:
    root = write_images(tmp_path / "images", ["cat/1.png", "dog/1.png"])
    for name in (".DS_Store", "cat/._1.png", "cat/Thumbs.db", ".git/config", "cat/.cache/1.png", "__MACOSX/._cat"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("junk")
    (root / ".empty").mkdir()
    found = contents(opened(packed(root, mode, tmp_path)))
    assert set(found) == {"cat/1.png", "dog/1.png"}


def test_folder_and_tar_give_the_same_samples(tmp_path: Path) -> None:
    root = write_images(tmp_path / "images", ["train/b/2.png", "train/a/1.png", "test/a/0.png", "test/b/0.png"])
    folder = opened(root)
    for number, prefix in enumerate(["", "./"]):
        tar = opened(write_tar(root, tmp_path / f"{number}.tar", prefix=prefix))
        assert tar.classes == folder.classes
        assert contents(tar) == contents(folder)


def test_classes_that_are_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    root = write_images(tmp_path / "images", [f"{label}/1.png" for label in ("10", "2", "0", "b", "A")])
    assert opened(root).classes == ("0", "2", "10", "A", "b")


def test_a_folders_order_does_not_depend_on_the_file_system(tmp_path: Path) -> None:
    names = ["b/2.png", "b/10.png", "a/1.png"]
    one = write_images(tmp_path / "one", names)
    two = write_images(tmp_path / "two", reversed(names))
    assert [s.id for s in opened(one).samples()] == [s.id for s in opened(two).samples()] == sorted(names)


def test_a_symlinked_folder_is_refused(tmp_path: Path) -> None:
    root = write_images(tmp_path / "images", ["cat/1.png", "dog/1.png"])
    (root / "emu").symlink_to(root / "cat", target_is_directory=True)
    with pytest.raises(DataError, match="emu: a symlinked folder"):
        opened(root)


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, 4 if kind == tarfile.REGTYPE else 0
    return info


@pytest.mark.parametrize(
    ("infos", "message"),
    [
        ([member("../up/1.png")], "'../up/1.png' points outside"),
        ([member("a/../../1.png")], "points outside"),
        ([member("/etc/1.png")], "'/etc/1.png' points outside"),
        ([member("a/1.png", tarfile.SYMTYPE, "/etc/passwd")], "'a/1.png' is a link"),
        ([member("a/1.png"), member("a/2.png", tarfile.LNKTYPE, "a/1.png")], "'a/2.png' is a link"),
        ([member("a/fifo", tarfile.FIFOTYPE)], "is a link, a device or a sparse file"),
        ([member("a/1.png"), member("b/1.png"), member("./a/1.png")], "1 names stand in it more than once: a/1.png"),
    ],
)
def test_a_tar_that_could_mislead_is_refused(infos: list[tarfile.TarInfo], message: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for info in infos:
            archive.addfile(info, io.BytesIO(b"1234"))
    with pytest.raises(DataError, match=message):
        opened(tmp_path / "t.tar")


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz"])
@pytest.mark.parametrize("damage", ["truncated", "noise"])
def test_a_damaged_tar_is_named(suffix: str, damage: str, tmp_path: Path) -> None:
    root = write_images(tmp_path / "images", [f"{c}/{n}.png" for c in "ab" for n in range(9)], height=30, width=30)
    tar = write_tar(root, tmp_path / f"t.tar{suffix}", f"w:{suffix[1:]}")
    whole = tar.read_bytes()
    half = len(whole) // 2
    tar.write_bytes(whole[:half] if damage == "truncated" else b"\x07" * 600 + whole[600:half] + bytes(99))
    with pytest.raises(DataError, match=rf"{re.escape(str(tar))}: cannot be read as a tar"):
        opened(tar)


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    root = write_images(tmp_path / "images", ["cat/1.png", "dog/1.png", os.fsdecode(b"dog/caf\xe9.png")])
    for source in (root, write_tar(root, tmp_path / "t.tar")):
        with pytest.raises(DataError, match=r"b'dog/caf\\xe9.png' is not UTF-8"):
            opened(source)


def test_one_wrong_byte_of_a_compressed_tar_is_noticed(tmp_path: Path) -> None:
    root = write_images(tmp_path / "images", [f"{c}/{n}.png" for c in "ab" for n in range(3)], height=30, width=30)
    for path in root.rglob("*.png"):
        path.write_bytes(path.read_bytes() + bytes(200) * 9)  # what repeats is not stored as it is
    tar = write_tar(root, tmp_path / "t.tar.gz", "w:gz")
    whole = tar.read_bytes()
    for position in range(20, len(whole), 97):
        tar.write_bytes(whole[:position] + bytes([whole[position] ^ 0x41]) + whole[position + 1 :])
        with pytest.raises(DataError, match=re.escape(str(tar))):
            opened(tar)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nothing", None, "there is no such file or folder"),
        ("images.zip", b"PK", "cannot be read as a zip"),
        ("images.rar", b"Rar", "expected a folder of images, an archive of one"),
        ("a.yaml", b"source: cifar99\n", "expected `source: digits` or .*, got 'cifar99'"),
        ("a.yaml", b"- digits\n", "got None"),
        ("a.yaml", b"source: [\n", "not valid YAML"),
        ("a.yaml", b"source: \xff\n", "not valid YAML"),
        ("a.yaml", b"source: fashion-mnist\nsha256: abc\n", "expected `sha256:`"),
        ("a.yaml", b"source: fashion-mnist\n", "expected `sha256:`"),
    ],
)
def test_a_path_that_is_no_dataset(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        opened(tmp_path / name)
    assert str(tmp_path / name) in str(raised.value)


@pytest.mark.parametrize("folders", [[], ["cat", "dog"]])
def test_an_empty_folder(folders: list[str], tmp_path: Path) -> None:
    for name in folders:
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="holds no files; expected <class>/<image>"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("path", "command"),
    [
        ("s3://bucket/a/birds", "`pip install dvc-s3`, `… s3://bucket/a/birds data/incoming/birds`"),
        ("https://example.org/birds.tar", "from: `… https://example.org/birds.tar data/incoming/birds.tar`"),
        ("ssh://me@host/data/birds", "`pip install dvc-ssh`, `… ssh://me@host/data/birds data/incoming/birds`"),
        ("me@host:/data/birds", "`pip install dvc-ssh`, `… ssh://me@host/data/birds data/incoming/birds`"),
        ("http://a.org/b?c=d&e", "from: `… 'http://a.org/b?c=d&e' 'data/incoming/b?c=d&e'`"),
    ],
)
def test_a_url_names_the_commands(path: str, command: str) -> None:
    whole = command.replace("…", "mkdir -p data/incoming && dvc import-url")
    with pytest.raises(DataError, match=re.escape(f"{whole}, then `ingest.path: data/incoming/b")):
        opened(Path(path))


def test_the_command_for_a_url_brings_what_ingest_reads(served: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = served
    write_tar(write_images(tmp_path / "birds", ["cat/1.png", "dog/1.png"]), folder / "birds.tar")
    project = History(tmp_path / "project", tmp_path / "cache")
    project.root.mkdir()
    project.git("init", "-q")
    project.run("dvc", "init", "-q")
    with pytest.raises(DataError) as raised:
        opened(Path(f"{address}/birds.tar"))
    command, path = re.findall("`(.*?)`", str(raised.value))
    project.run("sh", "-c", command)
    brought = project.root / path.removeprefix("ingest.path: ")
    assert contents(opened(brought)) == contents(opened(tmp_path / "birds"))
    assert (
        f"{address}/birds.tar" in brought.with_name("birds.tar.dvc").read_text()
    )  # whence `dvc update` brings another
    assert brought.name not in project.git("status", "--short", "--untracked-files=all").split()


def test_digits() -> None:
    source = opened(REPOSITORY / "data/sources/digits.yaml")
    found = contents(source)
    assert source.count == 1797
    assert source.classes == tuple("0123456789")
    assert {split for split, _, _ in found.values()} == {None}


HERE = pytest.mark.skipif(
    not builtin._DEBIAN_FASHION.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed"
)


@HERE
def test_fashion_mnist_is_read_as_it_was_published() -> None:
    import yaml

    name = "t10k-labels-idx1-ubyte"
    digests = yaml.safe_load((REPOSITORY / "data/sources/fashion-mnist.yaml").read_text())["sha256"]
    labels = builtin._idx("FashionMNIST", name, digests, Path("/nonexistent"))
    assert labels.shape == (10_000,)
    assert set(labels) == set(range(10))
    images = builtin._idx("FashionMNIST", "t10k-images-idx3-ubyte", digests, Path("/nonexistent"))
    assert images.shape == (10_000, 28, 28)


@HERE
def test_a_fashion_mnist_file_of_another_digest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text("source: fashion-mnist\nsha256: {train-images-idx3-ubyte: '00'}\n")
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.*: its sha256 is \w{64}, .* says 00"):
        opened(tmp_path / "f.yaml")


def test_a_damaged_packaged_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "_DEBIAN_FASHION", tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"x" * 99)[:-9])
    (tmp_path / "f.yaml").write_text("source: fashion-mnist\nsha256: {train-images-idx3-ubyte: '00'}\n")
    with pytest.raises(DataError, match="train-images-idx3-ubyte"):
        opened(tmp_path / "f.yaml")


@pytest.mark.parametrize("name", ["imagenetv2-top-images", "cifar10", "mnist"])
def test_a_server_that_says_nothing_is_given_up(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind a firewall that drops what it gets."""
    from torchvision import datasets

    monkeypatch.setattr(sources, "_SILENCE_S", 0.2)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(sys.modules["deepcv.data.sources.imagenetv2"], "_URL", address)
        monkeypatch.setattr(datasets.CIFAR10, "url", f"{address}cifar-10-python.tar.gz")
        monkeypatch.setattr(datasets.MNIST, "mirrors", [address])
        with pytest.raises(DataError, match=r"cannot be downloaded \(.*timed out"):
            open_source(REPOSITORY / f"data/sources/{name}.yaml", tmp_path)
    assert socket.getdefaulttimeout() is None
