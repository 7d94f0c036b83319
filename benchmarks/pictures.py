"""Pictures with their answers for benchmarks that train: CIFAR-10-JPEG from its tar, garments pasted on photographs."""

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor


def cifar(path: Path, split: str, count: int) -> tuple[Tensor, Tensor]:
    """The first images of each class, as many of each, normalised; and their labels."""
    taken: dict[str, list[Tensor]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            folder, _, name = member.name.removeprefix("./").rpartition("/")
            part, _, label = folder.rpartition("/")
            if part.rpartition("/")[2] != split or len(taken.setdefault(label, [])) >= count // 10:
                continue
            if member.isfile() and name.endswith(".jpg"):
                file = tar.extractfile(member)
                assert file is not None  # noqa: S101  it is a file
                pixels = np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB"))
                taken[label].append(torch.from_numpy(pixels.copy()).permute(2, 0, 1))
    labels = sorted(label for label in taken if taken[label])
    images = torch.stack([image for label in labels for image in taken[label]])
    numbers = torch.tensor([number for number, label in enumerate(labels) for _ in taken[label]])
    return (images / 255 - 0.47) / 0.25, numbers


def idx(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """An array of the format of MNIST."""
    with gzip.open(path) as file:
        content = file.read()
    sides = np.frombuffer(content, ">i4", content[3], 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(sides)).reshape(sides)


def garments(folder: Path, split: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures (count, 3, 48, 48) of a tinted garment and a shoe or bag pasted on a photograph; masks of the garment alone.

    What to look for is told by the whole, not by the texture: both are tinted at random, and either may cover the other.
    """
    random = np.random.default_rng(seed)
    things = idx(folder / f"{split}-images-idx3-ubyte.gz")
    labels = idx(folder / f"{split}-labels-idx1-ubyte.gz")
    others = np.isin(labels, (5, 7, 8, 9))  # sandal, sneaker, bag, boot
    photographs = load_sample_images().images
    half = slice(0, 300) if split == "train" else slice(300, None)  # of the columns: no pixel is in both splits
    pictures, masks = [], []
    for number in range(count):
        photograph = photographs[number % 2][:, half]
        y, x = random.integers(0, photograph.shape[0] - 48), random.integers(0, photograph.shape[1] - 48)
        picture = photograph[y : y + 48, x : x + 48] / 255.0
        mask = np.zeros((48, 48), bool)
        for other in random.permutation([False, True]):
            thing = things[random.choice(np.flatnonzero(others == other))]
            y, x = random.integers(0, 21, 2)
            place, shown = np.s_[y : y + 28, x : x + 28], thing > 40
            picture[place][shown] = (thing[..., None] / 255 * random.uniform(0.3, 1, 3))[shown]
            mask[place][shown] = not other
        pictures.append(picture.transpose(2, 0, 1))
        masks.append(mask[None])
    return torch.tensor(np.stack(pictures) * 4 - 2, dtype=torch.float32), torch.from_numpy(np.stack(masks)).float()
