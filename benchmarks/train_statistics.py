"""Are mean and std, as `preprocess` writes them, those of the train images, and of these alone?

    python -m benchmarks.train_statistics --path cifar10-jpeg.tar.gz [--quick]

DeepCV: ingest and the stage preprocess, of the tar, and once more with every test image inverted. Peer: tarfile, Pillow and numpy
over the same train files, in float64. `value` is the largest difference of a mean or std, on the scale 0–1; `unchanged`: the poisoned
test split left every digit as it was; `poisoned`: the prepared test images did become others. Quick: every tenth image.
"""

import argparse
import io
import itertools
import json
import os
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.preprocess_memory import preprocess, write_project
from benchmarks.result import ROOT, emit
from deepcv.data import manifest, packing
from deepcv.data.samples import Sample
from deepcv.data.sources import open_source
from deepcv.data.splits import SplitRule

TARGET = 1e-3


def pixels(encoded: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Decode with Pillow: uint8 (height, width, 3)."""
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def inverted(samples: Iterable[Sample]) -> Iterator[Sample]:
    """The samples, those of the test split with other pixels."""
    for sample in samples:
        if sample.split != "test":
            yield sample
            continue
        out = io.BytesIO()
        Image.fromarray(255 - pixels(sample.encoded)).save(out, "png")
        yield sample._replace(encoded=out.getvalue())


def prepared(
    samples: Iterable[Sample], classes: tuple[str, ...], folder: Path
) -> tuple[set[str], dict[str, list[float]], str]:
    """Ids of the train images, mean and std by channel, and the digest of the prepared test images."""
    (raw := folder / "raw").mkdir(parents=True)
    packing.pack(samples, classes, raw, name="cifar", source="tar", rule=SplitRule(0.1, 0.1, 0))
    rows, _ = manifest.read(raw)
    write_project(folder / "project", raw, rows)
    preprocess(folder / "project")
    description = json.loads((folder / "project/data/shards/dataset.json").read_text())
    found = {name: description[name] for name in ("mean", "std")}
    return set(rows["id"][rows["split"] == "train"]), found, description["sha256"]["test_images.npy"]


def computed(tar: Path, train: set[str]) -> dict[str, list[float]]:
    """Mean and std by channel of these files of the tar, on the scale 0–1."""
    count, total, squares = 0, np.zeros(3), np.zeros(3)
    with tarfile.open(tar) as packed:
        for member in packed:
            if member.isfile() and "/".join(Path(member.name).parts[-3:]) in train:
                file = packed.extractfile(member)
                assert file is not None  # noqa: S101  it is a file
                image = pixels(file.read()).reshape(-1, 3) / 255
                count, total, squares = count + len(image), total + image.sum(0), squares + (image**2).sum(0)
    mean = total / count
    return {"mean": mean.tolist(), "std": np.sqrt(squares / count - mean**2).tolist()}


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, required=True, help="a tar of <split>/<class>/<image> with a test split")
    parser.add_argument("--quick", action="store_true", help="a tenth of the images")
    options = parser.parse_args()
    source = open_source(options.path.resolve(), ROOT)

    def samples() -> Iterator[Sample]:
        return itertools.islice(source.samples(), 0, None, 10 if options.quick else 1)

    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        train, ours, clean = prepared(samples(), source.classes, Path(name, "clean"))
        _, with_poison, poisoned = prepared(inverted(samples()), source.classes, Path(name, "poisoned"))
    theirs = computed(options.path, train)
    difference = max(float(np.abs(np.subtract(ours[key], theirs[key])).max()) for key in ours)
    unchanged, others = with_poison == ours, clean != poisoned
    emit(
        "train_statistics", value=difference, baseline=None, n=1,
        target=f"mean and std within {TARGET:g} of Pillow's and numpy's; unchanged by a poisoned test split",
        holds=difference <= TARGET and unchanged and others, unchanged=unchanged, poisoned=others, images=len(train),
        ours=ours, theirs=theirs,
    )  # fmt: skip


if __name__ == "__main__":
    main()
