"""Batches of images of different sizes: padded to a common size, and put together so that little is padded."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepcv.data.augmentation import permutation
from deepcv.data.packed import PackedImages
from deepcv.images import decode


class PaddedBatch(NamedTuple):
    """Images in the top left corner of uint8 `(b, channels, height, width)`, channels last in memory, black beside them.

    Targets are `(b,)` or `(b, k)`; `sizes` are the (height, width) of each image without padding, int64 `(b, 2)`.
    """

    images_nchw: Tensor
    targets: Tensor
    sizes: Tensor

    @property
    def mask(self) -> Tensor:
        """Where the images are: bool `(b, height, width)`."""
        height, width = self.images_nchw.shape[2:]
        rows = torch.arange(height)[None, :, None] < self.sizes[:, 0, None, None]
        return rows & (torch.arange(width)[None, None, :] < self.sizes[:, 1, None, None])


def pad(images_hwc: Sequence[NDArray[np.uint8]], targets: Tensor, multiple: int = 1) -> PaddedBatch:
    """Pad images (height, width, channels) of equal channels to the largest height and width, rounded up to `multiple`.

    Raises ValueError where there is no image, or channels differ.
    """
    channels = {image_hwc.shape[2] for image_hwc in images_hwc}
    if len(channels) != 1:
        raise ValueError(f"expected images with the same number of channels, got {sorted(channels) or 'no image'}")
    sizes = torch.tensor([image_hwc.shape[:2] for image_hwc in images_hwc])
    height, width = (-(-int(side) // multiple) * multiple for side in sizes.amax(dim=0))
    batch = np.zeros((len(images_hwc), height, width, channels.pop()), np.uint8)
    for padded_hwc, image_hwc in zip(batch, images_hwc, strict=True):
        padded_hwc[: image_hwc.shape[0], : image_hwc.shape[1]] = image_hwc
    return PaddedBatch(torch.from_numpy(batch).permute(0, 3, 1, 2), targets, sizes)


def bucketed(
    sizes: NDArray[np.integer], batch_size: int, ranks: NDArray[np.integer] | None = None
) -> list[NDArray[np.int64]]:
    """Put images of similar shape together: their numbers, in batches of `batch_size` and less, each image once.

    `sizes` (n, 2) are heights and widths. Images are sorted by aspect ratio, rounded to a power of √2, then by area; among equal
    ones `ranks` (n,) decide, or their numbers.
    """
    height, width = sizes[:, 0].astype(np.float64), sizes[:, 1].astype(np.float64)
    ratio = np.round(2 * np.log2(width / height))
    order = np.lexsort((np.arange(len(sizes)) if ranks is None else ranks, height * width, ratio))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def padded_batches(
    images: PackedImages,
    batch_size: int,
    *,
    channels: Literal[1, 3] = 3,
    multiple: int = 32,
    seed: int = 0,
    epoch: int = 0,
) -> Iterator[PaddedBatch]:
    """Whole images at their own sizes, each once: batches for networks that take any size.

    Similar shapes are in one batch; seed and epoch decide the order of the batches, and which of equal images share one.
    Raises ShardError where an image is damaged.
    """
    sizes = np.stack([images.index["height"], images.index["width"]], 1)
    ranks = permutation(seed, epoch, len(sizes), torch.device("cpu")).argsort().numpy()
    batches = bucketed(sizes, batch_size, ranks)
    for number in permutation(seed, epoch, len(batches), torch.device("cpu")).tolist():
        chosen = batches[number]
        decoded = [decode(images[one], channels) for one in chosen.tolist()]
        yield pad(decoded, torch.from_numpy(images.labels[chosen]), multiple)
