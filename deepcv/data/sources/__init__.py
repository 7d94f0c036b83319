"""Where images come from: whatever `ingest.path` names, behind one small interface, `Source`; docs/data.md teaches it.

A folder, tar or zip is read as the `dataset.yaml` at its root says (a table, COCO, YOLO, VOC or torchvision's files), else as
what it looks like: YOLO (`data.yaml`), WebDataset (`key.jpg`, `key.cls`), class folders. A YAML file outside names a
published dataset, whose files are checked by digest: DVC sees changes in what `ingest.path` names, and nowhere else.
Every source yields `Sample`s in an order that depends on its content alone.
"""

import re
import shlex
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deepcv.data import builtin
from deepcv.data.samples import DataError, Sample
from deepcv.data.sources import description as descriptions
from deepcv.data.sources.archives import SUFFIXES, archive, is_archive
from deepcv.data.sources.coco import coco
from deepcv.data.sources.description import Description
from deepcv.data.sources.hints import class_folders_or_hint
from deepcv.data.sources.imagenetv2 import imagenetv2
from deepcv.data.sources.source import Source
from deepcv.data.sources.table import table
from deepcv.data.sources.torchvision_sets import torchvision_set
from deepcv.data.sources.tree import LayoutError, Tree, folder, is_litter
from deepcv.data.sources.voc import voc
from deepcv.data.sources.webdataset import is_webdataset, webdataset
from deepcv.data.sources.yolo import NAME as YOLO_NAME
from deepcv.data.sources.yolo import yolo

__all__ = ["LayoutError", "Source", "Tree", "is_litter", "open_source", "open_tree"]

_READERS: dict[str, Callable[[Tree, Description], Source]] = {"table": table, "coco": coco, "voc": voc, "yolo": yolo}
_PUBLISHED = ("digits", "mnist", "fashion-mnist", "imagenetv2", "torchvision")
_SILENCE_S = 30.0
_DVC_NEEDS = {"s3": "dvc-s3", "ssh": "dvc-ssh"}  # http it reads by itself
# pathlib has made one slash of two.
_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]+):/+(?P<rest>.+)|(?P<host>[^/@]+@[^/:]+):(?P<path>.+)", re.IGNORECASE)


def open_source(path: Path, downloads: Path) -> Source:
    """Open what `path` names: a folder, tar or zip of images, or a YAML file that names a published dataset.

    `downloads` keeps files that had to be fetched. Raises DataError with what was expected and found.
    """
    if path.suffix in {".yaml", ".yml"} and path.is_file():
        return _published(descriptions.parse(path.read_bytes(), str(path)), downloads)
    tree = open_tree(path)
    if described := descriptions.find(tree):
        return _described(tree, described)
    if found := descriptions.find(tree, YOLO_NAME):
        return yolo(tree, Description(found.origin, {"source": "yolo"}, found.base))
    return webdataset(tree) if is_webdataset(tree) else class_folders_or_hint(tree)


def open_tree(path: Path) -> Tree:
    """Open a folder, tar or zip, whatever lies in it. Raises DataError."""
    if path.is_dir():
        return folder(path)
    if not path.exists():
        _refuse_url(str(path))
        raise DataError(
            f"{path}: there is no such file or folder (ingest.path in params.yaml, relative to the project)"
        )
    if is_archive(path):
        return archive(path)
    raise DataError(
        f"{path}: expected a folder of images, an archive of one ({', '.join(SUFFIXES)}), or a YAML file that names a dataset"
    )


def _described(tree: Tree, description: Description) -> Source:
    if description.kind == "torchvision" and tree.origin.is_dir() and "root" not in description.values:
        return torchvision_set(description, tree.origin / description.base, may_download=False)
    reader = _READERS.get(str(description.kind))
    if reader is None:
        raise DataError(
            f"{description.origin}: expected `source:` with one of {', '.join(_READERS)}, or torchvision without `root` "
            f"in a folder, got {description.kind!r}"
        )
    return reader(tree, description)


def _published(description: Description, downloads: Path) -> Source:
    kind = description.kind
    if kind in _READERS:
        raise DataError(
            f"{description.origin}: DVC would not see changes in the files that it points to. Call it dataset.yaml, put it "
            "into the folder that holds them, and name that folder in ingest.path"
        )
    if kind not in _PUBLISHED:
        choices = " or ".join(f"`source: {name}`" for name in _PUBLISHED)
        raise DataError(f"{description.origin}: expected {choices}, got {kind!r}")
    root = Path(description.text("root", str(downloads))).expanduser()
    with _impatient():
        return _opened(description, root)


@contextmanager
def _impatient() -> Iterator[None]:
    """Give up on a server that says nothing: neither torchvision nor urlretrieve does by itself."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SILENCE_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _opened(description: Description, root: Path) -> Source:
    kind = description.kind
    if kind == "torchvision":
        return torchvision_set(description, root, may_download=True)
    if kind == "imagenetv2":
        return imagenetv2(description, root)
    classes, samples = builtin.digits() if kind == "digits" else _idx(description, root)
    return Source(classes, len(samples), lambda: iter(samples))


def _idx(description: Description, root: Path) -> tuple[tuple[str, ...], list[Sample]]:
    digests = description.values.get("sha256")
    if not isinstance(digests, dict):
        raise DataError(
            f"{description.origin}: expected `sha256:` with the digest of each file, as data/sources/{description.kind}.yaml has"
        )
    return (builtin.mnist if description.kind == "mnist" else builtin.fashion_mnist)(digests, root)


def _refuse_url(path: str) -> None:
    """Raise DataError where the path is a URL or a place of scp."""
    if not (found := _URL.fullmatch(path)):
        return
    url = (
        f"{found['scheme']}://{found['rest']}"
        if found["scheme"]
        else f"ssh://{found['host']}/{found['path'].lstrip('/')}"
    )
    place = f"data/incoming/{Path(url).name}"
    more = _DVC_NEEDS.get(url.partition(":")[0].lower())
    raise DataError(
        f"{url}: ingest.path is a file or folder of the project. Have DVC fetch it, and keep track of where it came from: "
        + (f"`pip install {more}`, " if more else "")
        + f"`mkdir -p data/incoming && dvc import-url {shlex.quote(url)} {shlex.quote(place)}`, then `ingest.path: {place}`"
    )
