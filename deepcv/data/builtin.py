"""Datasets of small arrays: digits (inside scikit-learn), MNIST and Fashion-MNIST (Debian's package, local files or a download)."""

import gzip
import hashlib
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deepcv.data.samples import DataError, Sample
from deepcv.images import UInt8Array, encode_png

_FASHION_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot",
)  # fmt: skip
_DIGITS = tuple(str(digit) for digit in range(10))
_DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
_IDX_UINT8 = 0x08


def digits() -> tuple[tuple[str, ...], list[Sample]]:
    """1,797 grey images of 8×8 pixels from scikit-learn; its values 0–16 are scaled to 0–255."""
    from sklearn.datasets import load_digits  # takes a second to import; only this dataset needs it

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    samples = [
        Sample(f"digits/{number:04d}", None, str(label), encode_png(image[:, :, None]))
        for number, (image, label) in enumerate(zip(images, bunch.target, strict=True))
    ]
    return _DIGITS, samples


def fashion_mnist(sha256_of: Mapping[str, str], root: Path) -> tuple[tuple[str, ...], list[Sample]]:
    """Read 60,000 train and 10,000 test images of 28×28 pixels; `sha256_of` gives each uncompressed file's digest."""
    return _FASHION_CLASSES, _mnist_like("FashionMNIST", _FASHION_CLASSES, sha256_of, root)


def mnist(sha256_of: Mapping[str, str], root: Path) -> tuple[tuple[str, ...], list[Sample]]:
    """Read the handwritten digits that Fashion-MNIST took its layout from."""
    return _DIGITS, _mnist_like("MNIST", _DIGITS, sha256_of, root)


def _mnist_like(name: str, classes: tuple[str, ...], sha256_of: Mapping[str, str], root: Path) -> list[Sample]:
    samples: list[Sample] = []
    for split, stem in (("train", "train"), ("test", "t10k")):
        images = _idx(name, f"{stem}-images-idx3-ubyte", sha256_of, root)
        labels = _idx(name, f"{stem}-labels-idx1-ubyte", sha256_of, root)
        samples += [
            Sample(f"{split}/{number:05d}", split, classes[label], encode_png(image[:, :, None]))
            for number, (image, label) in enumerate(zip(images, labels, strict=True))
        ]
    return samples


def _idx(dataset: str, name: str, sha256_of: Mapping[str, str], root: Path) -> UInt8Array:
    """Read a file of LeCun's IDX format: two zero bytes, type, rank, big-endian sizes, then the values."""
    content, path = _file(dataset, name, root)
    found, expected = hashlib.sha256(content).hexdigest(), sha256_of.get(name)
    if found != expected:
        raise DataError(
            f"{path}: its sha256 is {found}, the dataset's YAML file says {expected}; remove the file to have it "
            "downloaded again, or install dataset-fashion-mnist again where it is Debian's"
        )
    if content[2] != _IDX_UINT8:
        raise DataError(f"{name}: expected unsigned bytes (IDX type 8), got type {content[2]}")
    rank = content[3]
    sizes = np.frombuffer(content, ">i4", count=rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(tuple(int(size) for size in sizes))


def _file(dataset: str, name: str, root: Path) -> tuple[bytes, Path]:
    """Return a file's bytes, uncompressed, and its path: Debian's, one below `root` where torchvision puts it, or a download."""
    raw = root / dataset / "raw"
    packaged = [_DEBIAN_FASHION / f"{name}.gz"] if dataset == "FashionMNIST" else []
    for path in (*packaged, raw / name, raw / f"{name}.gz", root / name, root / f"{name}.gz"):
        if path.is_file():
            return _unpacked(path), path
    from torchvision import datasets  # takes seconds to import; only a download needs it

    try:
        (datasets.FashionMNIST if dataset == "FashionMNIST" else datasets.MNIST)(str(root), download=True)
    except (OSError, RuntimeError) as error:
        advice = (
            "On Debian: apt-get install dataset-fashion-mnist" if packaged else f"Put {name} or {name}.gz into {raw}"
        )
        raise DataError(
            f"{dataset} is not on this machine and cannot be downloaded ({' '.join(str(error).split())}). {advice}"
        ) from error
    return (raw / name).read_bytes(), raw / name


def _unpacked(path: Path) -> bytes:
    if path.suffix != ".gz":
        return path.read_bytes()
    try:
        return gzip.decompress(path.read_bytes())
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: damaged ({error}); install or copy it again") from error
