"""What every source of images gives: encoded images with their labels."""

from typing import NamedTuple

from deepcv.errors import DeepcvError


class DataError(DeepcvError):
    """The dataset cannot be used; the message says what was expected, what was found and what to do."""


class Sample(NamedTuple):
    """One encoded image with its label; `split` is None where the source leaves the split to DeepCV.

    `annotations` is JSON text: what the source knows beside the label (boxes, masks, keypoints), empty where it knows nothing.
    """

    id: str
    split: str | None
    label: str
    encoded: bytes
    annotations: str = ""


def no_images(count: int) -> str:
    """Write how many files cannot be decoded: 1 file is no image, 2 files are no images."""
    return "1 file is no image" if count == 1 else f"{count} files are no images"
