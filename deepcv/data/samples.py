"""What every source of images gives: encoded images with their labels."""

from typing import NamedTuple

from deepcv.errors import DeepcvError


class DataError(DeepcvError):
    """The dataset cannot be used; the message says what was expected, what was found and what to do."""


class Sample(NamedTuple):
    """One encoded image with its label; `split` is None where the source leaves the split to DeepCV."""

    id: str
    split: str | None
    label: str
    encoded: bytes
    annotations: str = ""
