"""Datasets that need no files of the user: digits (inside scikit-learn) and Fashion-MNIST (Debian's package or a download)."""

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
    return tuple(str(digit) for digit in range(10)), samples


def fashion_mnist(sha256_of: Mapping[str, str], downloads: Path) -> tuple[tuple[str, ...], list[Sample]]:
    """60,000 train and 10,000 test images of 28×28 pixels; `sha256_of` gives each uncompressed file's digest."""
    samples: list[Sample] = []
    for split, stem in (("train", "train"), ("test", "t10k")):
        images = _idx(f"{stem}-images-idx3-ubyte", sha256_of, downloads)
        labels = _idx(f"{stem}-labels-idx1-ubyte", sha256_of, downloads)
        samples += [
            Sample(f"{split}/{number:05d}", split, _FASHION_CLASSES[label], encode_png(image[:, :, None]))
            for number, (image, label) in enumerate(zip(images, labels, strict=True))
        ]
    return _FASHION_CLASSES, samples


def _idx(name: str, sha256_of: Mapping[str, str], downloads: Path) -> UInt8Array:
    """Read a file of LeCun's IDX format: two zero bytes, type, rank, big-endian sizes, then the values."""
    content, path = _fashion_file(name, downloads)
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


def _fashion_file(name: str, downloads: Path) -> tuple[bytes, Path]:
    packaged = _DEBIAN_FASHION / f"{name}.gz"
    if packaged.is_file():
        try:
            return gzip.decompress(packaged.read_bytes()), packaged
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f"{packaged}: damaged ({error}); install dataset-fashion-mnist again") from error
    downloaded = downloads / "FashionMNIST" / "raw" / name
    if not downloaded.is_file():
        from torchvision.datasets import FashionMNIST  # takes seconds to import; only a download needs it

        try:
            FashionMNIST(str(downloads), download=True)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"Fashion-MNIST is not on this machine and cannot be downloaded ({error}). "
                "On Debian: apt-get install dataset-fashion-mnist"
            ) from error
    return downloaded.read_bytes(), downloaded
