"""The example of docs/shards.md reads the shards that the code writes, with numpy alone."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toys

from deepcv.data.packed import PackedImages
from deepcv.data.shards import SPLITS, open_shards

DOCS = (toys.REPOSITORY / "docs/shards.md").read_text(encoding="utf-8")
[EXAMPLE] = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)


@pytest.fixture(params=[toys.write_shards, toys.write_encoded_shards], ids=["pixels", "encoded"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """data/shards in the working directory."""
    monkeypatch.chdir(tmp_path)
    write: Callable[[Path], Path] = request.param
    return write(Path("data/shards"))


def run() -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(EXAMPLE, names)  # noqa: S102 - our own page
    return names


def test_it_reads_every_image_and_label(folder: Path) -> None:
    shards, names = open_shards(folder), run()
    assert names["name"] == "dark"
    for split in SPLITS:
        part = getattr(shards, split)
        images = part if isinstance(part, PackedImages) else part.images_nhwc
        for number in range(len(images)):
            image, label = names["read"](split, number)
            assert image == images[number] if isinstance(image, bytes) else np.array_equal(image, images[number])
            assert label == part.labels[number]


def test_it_reads_several_labels_of_an_image(folder: Path) -> None:
    labels = np.random.default_rng(0).random((24, 3), np.float32)
    np.save(folder / "train_labels.npy", labels)
    names = run()
    assert names["name"] is None
    assert np.array_equal(names["read"]("train", 23)[1], labels[23])


def test_the_page_names_what_lies_there_and_the_example_needs_numpy_alone(folder: Path) -> None:
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    for name in {re.sub("^(train|val|test)_", "<split>_", path.name) for path in files}:
        assert f"`{name}`" in DOCS
    assert re.findall(r"^(?:import|from) (\w+)", EXAMPLE, re.MULTILINE) == ["json", "pathlib", "numpy"]
