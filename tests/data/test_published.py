"""Published datasets, on generated files of their layout: nothing is downloaded."""

import gzip
import hashlib
import pickle
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import toys
import yaml
from torchvision import datasets

from deepcv.data.samples import DataError, Sample
from deepcv.data.sources import Source, open_source
from deepcv.data.sources.imagenetv2 import VARIANTS
from deepcv.images import decode

DESCRIPTIONS = sorted((toys.REPOSITORY / "data/sources").glob("*.yaml"))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(urllib.request, "urlretrieve", refuse)


def described(folder: Path, **values: object) -> Path:
    (folder / "d.yaml").write_text(yaml.safe_dump(values))
    return folder / "d.yaml"


def samples(source: Source) -> list[Sample]:
    found = list(source.samples())
    assert len(found) == source.count == len({sample.id for sample in found})
    assert {sample.label for sample in found} == set(source.classes)
    return found


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.mark.parametrize("path", DESCRIPTIONS, ids=lambda path: path.stem)
def test_what_must_be_downloaded_and_cannot_is_said(path: Path, tmp_path: Path) -> None:
    if path.stem in {"digits", "fashion-mnist"}:
        pytest.skip("here without a download")
    with pytest.raises(DataError, match=r"cannot be downloaded \(.*no network in tests") as raised:
        open_source(path, tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_mnist(tmp_path: Path) -> None:
    digests = {}
    for stem, count in (("train", 20), ("t10k", 10)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), np.uint8)
        for kind, header, values in (
            ("images-idx3", [0x803, count, 28, 28], images),
            ("labels-idx1", [0x801, count], np.arange(count, dtype=np.uint8) % 10),
        ):
            name, content = f"{stem}-{kind}-ubyte", np.array(header, ">i4").tobytes() + values.tobytes()
            digests[name] = hashlib.sha256(content).hexdigest()
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    path = described(tmp_path, source="mnist", sha256=digests, root=str(tmp_path))
    found = samples(open_source(path, Path("/nonexistent")))
    assert [(s.split, s.label) for s in found[19:21]] == [("train", "9"), ("test", "0")]
    assert np.array_equal(decode(found[-1].encoded)[:, :, 0], images[-1])
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"other"))
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte.gz: its sha256 is"):
        open_source(path, tmp_path)


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, kind: int) -> Any:
    """Write a CIFAR-10 or -100 of one image per class and split, whose digests torchvision takes for the published ones."""
    layout: Any = {10: datasets.CIFAR10, 100: datasets.CIFAR100}[kind]
    folder = root / layout.base_folder
    folder.mkdir()
    data = np.random.default_rng(0).integers(0, 256, (kind, 3072), np.uint8)
    fine = "fine_" if kind == 100 else ""
    labels = {f"{fine}labels": list(range(kind)), "coarse_labels": [n % 5 for n in range(kind)]}
    names = {f"{fine}label_names": [f"kind {n}" for n in range(kind)], "coarse_label_names": [*"abcde"]}
    train, test, meta = layout.train_list[0][0], layout.test_list[0][0], layout.meta["filename"]
    contents = {train: {"data": data, **labels}, test: {"data": data[::-1], **labels}, meta: names}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
    for key, name in (("train_list", train), ("test_list", test)):
        monkeypatch.setattr(layout, key, [[name, md5(folder / name)]])
    monkeypatch.setattr(layout, "meta", layout.meta | {"md5": md5(folder / meta)})
    return data


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds a small CIFAR-10."""
    write_cifar(tmp_path, monkeypatch, 10)
    return tmp_path


@pytest.mark.parametrize("kind", [10, 100])
def test_cifar_from_local_files(kind: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_cifar(tmp_path, monkeypatch, kind)
    source = open_source(toys.REPOSITORY / f"data/sources/cifar{kind}.yaml", tmp_path)
    found = samples(source)
    assert source.classes == tuple(f"kind {n}" for n in range(kind))
    assert [(s.split, s.label) for s in found] == [(s, f"kind {n}") for s in ("train", "test") for n in range(kind)]
    assert np.array_equal(decode(found[3].encoded), data[3].reshape(3, 32, 32).transpose(1, 2, 0))
    assert np.array_equal(decode(found[kind].encoded), data[-1].reshape(3, 32, 32).transpose(1, 2, 0))


def test_a_changed_file_is_refused_by_its_md5(cifar: Path) -> None:
    path = cifar / "cifar-10-batches-py/data_batch_1"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DataError, match=r"CIFAR10 is not whole below .* and cannot be downloaded"):
        open_source(toys.REPOSITORY / "data/sources/cifar10.yaml", cifar)


def test_a_folder_that_holds_torchvisions_files(cifar: Path) -> None:
    (cifar / "dataset.yaml").write_text("source: torchvision\nname: CIFAR10\n")
    assert len(samples(open_source(cifar, Path("/nonexistent")))) == 20
    (cifar / "cifar-10-batches-py/test_batch").unlink()
    with pytest.raises(DataError, match=r"CIFAR10 is not whole below .* Put its files there"):
        open_source(cifar, Path("/nonexistent"))


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = {}
    for split in ("train", "test"):
        file = tmp_path / f"{split}_32x32.mat"
        images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 10), np.uint8)
        scipy.io.savemat(file, {"X": images, "y": np.arange(1, 11)[:, None]})
        lists[split] = ["https://example.org", file.name, md5(file)]
    monkeypatch.setattr(datasets.SVHN, "split_list", lists)
    source = open_source(toys.REPOSITORY / "data/sources/svhn.yaml", tmp_path)
    found = samples(source)
    assert source.classes == tuple("0123456789")
    assert [s.label for s in found[:10]] == [*"123456789", "0"]  # 10 stands for 0 in its files
    assert np.array_equal(decode(found[-1].encoded), images[..., -1])


def test_stl10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    pixels, labels = bytes(10 * 3 * 96 * 96), bytes(range(1, 11))
    files = {"train_X.bin": pixels, "train_y.bin": labels, "test_X.bin": pixels, "test_y.bin": labels,
             "class_names.txt": "\n".join("abcdefghij").encode(), "fold_indices.txt": b""}  # fmt: skip
    for name, content in files.items():
        (folder / name).write_bytes(content)
    for key, names in (("train_list", ("train_X.bin", "train_y.bin")), ("test_list", ("test_X.bin", "test_y.bin"))):
        monkeypatch.setattr(datasets.STL10, key, [[name, md5(folder / name)] for name in names])
    source = open_source(toys.REPOSITORY / "data/sources/stl10.yaml", tmp_path)
    assert source.classes == tuple("abcdefghij")
    assert {(s.split, decode(s.encoded).shape) for s in samples(source)} == {
        ("train", (96, 96, 3)),
        ("test", (96, 96, 3)),
    }


def test_imagenette_keeps_the_original_files(tmp_path: Path) -> None:
    names = [f"imagenette2-160/{split}/{wnid}/{n}.jpeg"
             for split in ("train", "val") for wnid in ("n01440764", "n02102040") for n in (2, 10)]  # fmt: skip
    toys.write_images(tmp_path, names)
    source = open_source(toys.REPOSITORY / "data/sources/imagenette.yaml", tmp_path)
    found = samples(source)
    assert source.classes == ("tench", "English springer")
    assert {s.id: s.encoded for s in found} == {name: (tmp_path / name).read_bytes() for name in names}
    assert {(s.split, s.label) for s in found if "n01440764" in s.id} == {("train", "tench"), ("val", "tench")}


def test_unpacked_images_are_held_to_their_digest(tmp_path: Path, cifar: Path) -> None:
    names = [f"imagenette2-160/{split}/{wnid}/{n}.jpeg"
             for split in ("train", "val") for wnid in ("n01440764", "n02102040") for n in (2, 10)]  # fmt: skip
    toys.write_images(tmp_path, names)
    values = {"source": "torchvision", "name": "Imagenette", "options": {"size": "160px"}}

    def read(digest: str) -> list[Sample]:
        return samples(open_source(described(tmp_path, **values, sha256=digest), tmp_path))

    with pytest.raises(
        DataError, match=r"the sha256 of its images and labels is [0-9a-f]{64}, .*d.yaml says unknown"
    ) as told:
        read("unknown")
    digest = str(told.value).partition("labels is ")[2][:64]
    assert len(read(digest)) == len(names)
    image = tmp_path / names[3]
    content = image.read_bytes()
    image.write_bytes(content + b"\0")
    with pytest.raises(DataError, match="the sha256 of its images"):
        read(digest)
    image.unlink()
    (tmp_path / names[1]).with_name("3.jpeg").write_bytes(content)  # under another class
    with pytest.raises(DataError, match="the sha256 of its images"):
        read(digest)
    with pytest.raises(DataError, match="CIFAR10 has no image files that a `sha256` could be of"):
        open_source(described(cifar, source="torchvision", name="CIFAR10", sha256=digest), cifar)


def test_flowers102_has_paths_labels_and_three_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "flowers-102"
    toys.write_images(folder / "jpg", [f"image_{n:05d}.jpg" for n in range(1, 7)])
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": np.array([[1, 2, 1, 2, 1, 2]])})
    scipy.io.savemat(folder / "setid.mat", {"trnid": [[1, 2]], "valid": [[3, 4]], "tstid": [[5, 6]]})
    files = {key: (name, md5(folder / name)) for key, name in (("label", "imagelabels.mat"), ("setid", "setid.mat"))}
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", files)
    found = samples(open_source(described(tmp_path, source="torchvision", name="Flowers102"), tmp_path))
    assert [s.split for s in found] == ["train", "train", "val", "val", "test", "test"]
    assert found[2].id == "flowers-102/jpg/image_00003.jpg"
    assert found[2].encoded == (folder / "jpg/image_00003.jpg").read_bytes()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "Flower"}, "torchvision has no dataset 'Flower'"),
        ({"name": "VisionDataset", "options": [1]}, "expected `options:`"),
        ({"name": "CIFAR10", "options": {"colour": 1}}, "CIFAR10 cannot be opened: .*colour"),
        ({}, "expected `name: <text>`"),
        ({"name": "CIFAR10", "rooot": "x"}, "unknown keys rooot; source torchvision takes name, root, options, sha256"),
    ],
)
def test_a_bad_description(values: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        open_source(described(tmp_path, source="torchvision", **values), tmp_path)


@pytest.mark.parametrize("variant", VARIANTS)
def test_imagenetv2_keeps_classes_in_the_order_of_their_numbers(variant: str, tmp_path: Path) -> None:
    names = [f"{number}/{n}.jpeg" for number in range(101) for n in (0, 1)]
    toys.write_images(tmp_path / f"i/imagenetv2-{variant}-format-val", names)
    tar = toys.write_tar(tmp_path / "i", tmp_path / f"imagenetv2-{variant}.tar.gz", "w:gz")
    shipped = toys.REPOSITORY / f"data/sources/imagenetv2-{variant}.yaml"
    values = yaml.safe_load(shipped.read_text()) | {"sha256": hashlib.sha256(tar.read_bytes()).hexdigest()}
    source = open_source(described(tmp_path, **values), tmp_path)
    assert source.classes == tuple(str(number) for number in range(101))
    assert len(samples(source)) == 202
    with pytest.raises(DataError, match=f"imagenetv2-{variant}.tar.gz: its sha256 is"):
        open_source(shipped, tmp_path)  # it holds to the published archive


def test_imagenetv2_has_three_variants(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a variant of matched-frequency, threshold0.7, top-images, got 'b'"):
        open_source(described(tmp_path, source="imagenetv2", variant="b", sha256="00"), tmp_path)
