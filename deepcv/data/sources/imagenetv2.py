"""ImageNetV2's three variants: `{source: imagenetv2, variant: matched-frequency, sha256: …}`; 10,000 JPEGs of 1,000 classes.

Class folders are numbers, ImageNet's class indices; `source.natural` keeps them in that order (a sort as text gives 0, 1,
10, 100). The publication has no splits: it is a test set of its own.
"""

import urllib.request
from pathlib import Path

from deepcv.data.samples import DataError
from deepcv.data.sources.archives import archive
from deepcv.data.sources.classfolders import class_folders
from deepcv.data.sources.description import Description
from deepcv.data.sources.source import Source
from deepcv.files import atomic, sha256

VARIANTS = ("matched-frequency", "threshold0.7", "top-images")
_URL = "https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main/"


def imagenetv2(description: Description, root: Path) -> Source:
    """Open the variant's archive below `root`, which is downloaded where it is absent. Raises DataError."""
    description.only("variant", "sha256", "root")
    variant, expected = description.text("variant"), description.text("sha256")
    if variant not in VARIANTS:
        raise DataError(f"{description.origin}: expected a variant of {', '.join(VARIANTS)}, got {variant!r}")
    path = root / f"imagenetv2-{variant}.tar.gz"
    if not path.is_file():
        try:
            with atomic(path) as aside:
                urllib.request.urlretrieve(_URL + path.name, aside)  # noqa: S310  an https address of ours
        except OSError as error:
            raise DataError(
                f"{path}: there is no such file, and it cannot be downloaded ({error}). "
                f"Fetch {_URL}{path.name} (1.2 GB) where there is internet access and put it there"
            ) from error
    if (found := sha256(path)) != expected:
        raise DataError(
            f"{path}: its sha256 is {found}, {description.origin} says {expected}; remove the file, or correct that"
        )
    return class_folders(archive(path))
