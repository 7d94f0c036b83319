"""What the gallery chooses and counts, and that its page and picture hold it, whatever the dataset looks like."""

import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import toys
from numpy.typing import NDArray

from deepcv.data import gallery, gallery_page, gallery_picture, manifest, packing
from deepcv.data.gallery import EXAMPLES, MOST_CLASSES, Gallery, collect, histogram
from deepcv.data.samples import Sample
from deepcv.data.splits import SplitRule
from deepcv.images import decode, encode_png

NONE = np.empty(0, np.int64)
SPLITS = ("train", "val", "test")
ODD = '<script>alert("x")</script>\nline & ünï 猫'


def pack(folder: Path, images: list[tuple[str, str, NDArray[np.uint8]]], name: str = "toys") -> Path:
    """Write data/raw from (id, label, image)."""
    folder.mkdir(parents=True)
    samples = [
        Sample(image_id, SPLITS[place % 3], label, encode_png(image))
        for place, (image_id, label, image) in enumerate(images)
    ]
    classes = tuple(sorted({sample.label for sample in samples}))
    packing.pack(samples, classes, folder, name=name, source="x", rule=SplitRule(0.2, 0.2, 0))
    return folder


def noise(count: int, classes: int, **kinds: int) -> list[tuple[str, str, NDArray[np.uint8]]]:
    # Every class has three images on end: one in each split.
    return [(f"i/{n}.png", f"c{n // 3 % classes:04d}", toys.picture(n, **kinds)) for n in range(count)]


def written(raw: Path, out: Path, quarantined: NDArray[np.int64] = NONE) -> tuple[Gallery, str, bytes]:
    rows, info = manifest.read(raw)
    found = collect(raw, rows, info, quarantined)
    gallery_page.write(out / "index.html", found)
    gallery_picture.write(out / "gallery.png", found)
    return found, (out / "index.html").read_text(encoding="utf-8"), (out / "gallery.png").read_bytes()


class Tags(HTMLParser):
    """Every tag and every text of a page, and that each tag is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.said: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for key, value in attrs if key in {"src", "href"}]
        if tag not in {"meta", "img", "br"}:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, _attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said.append(data)


def test_names_from_outside_stay_text(tmp_path: Path) -> None:
    images = [(f"{ODD}{n}", ODD, toys.picture(n, 5 + n, 7)) for n in range(6)]
    _, page, _ = written(pack(tmp_path / "raw", images, name=ODD), tmp_path)
    read = Tags(page)
    assert "script" not in read.tags
    assert not re.search(r"<script|ünï 猫\n|alert\(\"x\"\)</", page)
    assert any("<script>alert" in text and r"\nline & ünï 猫" in text for text in read.said)
    assert all(address.startswith("data:image/png;base64,") for address in read.addresses)
    assert "http:" not in page
    assert "https:" not in page


def test_the_same_data_gives_the_same_bytes(tmp_path: Path) -> None:
    raw = pack(tmp_path / "raw", noise(90, 5, channels=3))
    _, page, picture = written(raw, tmp_path / "one")
    assert written(raw, tmp_path / "other")[1:] == (page, picture)
    shuffled = pack(tmp_path / "shuffled", [noise(90, 5, channels=3)[n] for n in range(89, -1, -1)])
    names = [[[s.name for s in row.examples] for row in written(r, tmp_path)[0].classes] for r in (raw, shuffled)]
    assert names[0] == names[1]  # drawn by content: the order of the files does not matter
    assert names[0] != [sorted(row) for row in names[0]]


@pytest.mark.parametrize("classes", [1, 2, MOST_CLASSES, MOST_CLASSES + 1, 1000])
def test_the_page_is_bounded_and_says_what_it_leaves_out(classes: int, tmp_path: Path) -> None:
    images = noise(3 * classes, classes, height=90, width=120, channels=3) + [
        (f"more/{n}", "c0000", toys.picture(5000 + n)) for n in range(30)
    ]
    found, page, picture = written(pack(tmp_path / "raw", images), tmp_path)
    shown = min(classes, MOST_CLASSES)
    assert len(found.classes) == shown
    assert found.classes_left_out == classes - shown
    assert found.classes[0].label == "c0000"  # the largest
    assert all(len(row.examples) == min(EXAMPLES, row.images) for row in found.classes)
    assert Tags(page).tags.count("img") <= EXAMPLES * MOST_CLASSES + 60
    assert len(page.encode()) < 3_500_000
    assert len(picture) < 2_000_000
    assert ("not shown.</p>" in page) == (classes > MOST_CLASSES)
    assert f"{len(images):,} images" in page
    height, width, channels = decode(picture).shape
    assert (width, channels) == (884, 3)
    assert height <= 1400


def test_two_images_are_enough(tmp_path: Path) -> None:
    raw = pack(tmp_path / "raw", noise(3, 1))
    rows, info = manifest.read(raw)
    found = collect(raw, rows.head(2), info, NONE)
    assert (found.images, [row.images for row in found.classes]) == (2, [2])
    assert all(int(one.counts.sum()) == 2 for one in found.histograms)
    gallery_page.write(tmp_path / "index.html", found)
    gallery_picture.write(tmp_path / "gallery.png", found)
    nothing = collect(raw, rows.head(0), info, NONE)  # for a person who looks why all is empty
    gallery_page.write(tmp_path / "index.html", nothing)
    assert "0 images" in (tmp_path / "index.html").read_text()
    gallery_picture.write(tmp_path / "gallery.png", nothing)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    "values",
    [
        [8.0] * 7, [0.0, 1.0], list(range(1000)), [5.0] * 999 + [1e9], [0.0] * 500 + [1.0] * 500,
        list(np.random.default_rng(0).lognormal(4, 2, 5000).round()), [32.0] * 10 + [33.0, 75.0, 76.0],
    ],
)  # fmt: skip
def test_a_histogram_counts_every_image(values: list[float], whole: bool) -> None:
    array = np.array(values)
    found = histogram("x", "", array, whole=whole)
    assert int(found.counts.sum()) == len(values)
    assert len(found.counts) <= 40
    assert len(found.edges) == len(found.counts) + 1
    assert (found.lowest, found.highest) == (array.min(), array.max())
    inner, _ = np.histogram(array, found.edges)
    assert np.array_equal(found.counts[1:-1], inner[1:-1])  # only the end bars hold what lies beyond


def test_images_without_a_number_are_counted_apart() -> None:
    found = histogram("sharpness", "", np.array([0.1, np.nan, 0.3]), whole=False)
    assert (int(found.counts.sum()), found.missing) == (2, 1)
    assert histogram("sharpness", "", np.full(4, np.nan), whole=False).missing == 4


def test_the_page_says_the_count_of_every_bar(tmp_path: Path) -> None:
    found, page, _ = written(pack(tmp_path / "raw", noise(60, 3)), tmp_path)
    told = [int(n) for n in re.findall(r": (\d+) images?</title>", page)]
    assert sum(told) == 60 * len(found.histograms)
    assert {one.name for one in found.histograms} == {"width", "height", "brightness", "contrast", "sharpness", "bytes"}


def test_outliers_are_found(tmp_path: Path) -> None:
    images = noise(120, 3, height=20, width=20)
    odd = {
        "darkest": np.zeros((20, 20, 1), np.uint8),
        "brightest": np.full((20, 20, 1), 255, np.uint8),
        "strongest contrast": np.kron([[0, 255], [255, 0]], np.ones((10, 10)))[:, :, None].astype(np.uint8),
        "least sharp": np.full((20, 20, 1), 128, np.uint8) + np.arange(20, dtype=np.uint8)[:, None],
        "tallest": toys.picture(900, 40, 10),
        "widest": toys.picture(901, 10, 40),
        "smallest": toys.picture(902, 6, 6),
        "largest": toys.picture(903, 60, 60),
    }
    images += [(f"odd/{title}", "c0000", image) for title, image in odd.items()]
    found, page, _ = written(pack(tmp_path / "raw", images), tmp_path)
    ends = {end.title: end for end in found.extremes}
    for title in odd:
        shown = [one.name for one, _ in ends[title].images]
        assert f"odd/{title}" in (shown[:3] if title == "least sharp" else shown[:1]), (
            title
        )  # black and white are flat too
        assert f'<span class="quiet">odd/{title}</span>' in page
    assert [one.name for one, _ in ends["widest"].images] == ["odd/widest"]  # what is as wide as most is no outlier
    number = 120 + list(odd).index("darkest")
    assert ends["darkest"].images[0][0].number == number
    assert f"#{number} · " in page


def test_quarantined_images_are_counted_marked_and_no_examples(tmp_path: Path) -> None:
    images = [*noise(60, 2), ("dark", "c0000", np.zeros((8, 8, 1), np.uint8))]
    raw = pack(tmp_path / "raw", images)
    found, page, _ = written(raw, tmp_path, np.array([60, 0, 60], np.int64))  # two reasons for one image
    assert found.quarantined == 2
    assert [row.quarantined for row in found.classes] == [2, 0]
    assert "· 2 quarantined" in page
    assert not {0, 60} & {shown.number for row in found.classes for shown in row.examples}
    darkest = next(end for end in found.extremes if end.title == "darkest").images[0][0]
    assert (darkest.name, darkest.quarantined) == ("dark", True)


def test_an_unreadable_image_is_skipped_and_counted(tmp_path: Path) -> None:
    raw = pack(tmp_path / "raw", noise(12, 1))
    rows, info = manifest.read(raw)
    with (raw / "images.bin").open("ab") as blob:
        rows.loc[3, "offset"] = blob.tell()
        blob.write(b"no image")
    # As one that another OpenCV could read when it was packed.
    rows.loc[3, "sha256"], rows.loc[3, "bytes"] = hashlib.sha256(b"no image").hexdigest(), 8
    rows.loc[3, "brightness"] = 0.0
    found = collect(raw, rows, info, NONE)
    gallery_page.write(tmp_path / "index.html", found)
    gallery_picture.write(tmp_path / "gallery.png", found)
    page = (tmp_path / "index.html").read_text()
    assert found.unreadable == 1
    assert "1 picture cannot be read" in page
    assert ">unreadable</span>" in page


def test_a_file_that_is_no_image_is_counted_and_stands_nowhere_else(tmp_path: Path) -> None:
    raw = pack(tmp_path / "raw", noise(12, 1))
    clean, _, _ = written(raw, tmp_path)
    rows, info = manifest.read(raw)
    blank = rows.iloc[[0, 1]].assign(id=["x", "y"], sha256="e" * 64)  # two empty files, as `ingest` packs them
    blank[["width", "height", "channels", "brightness", "contrast", "sharpness", "bytes"]] = 0
    found = collect(raw, pd.concat([rows, blank], ignore_index=True), info, NONE)
    assert found.unreadable == 2
    assert found.images == 14
    assert [one.missing for one in found.histograms] == [2] * 6
    for one, other in zip(found.histograms, clean.histograms, strict=True):
        assert one.counts.tolist() == other.counts.tolist()
    assert [[shown.name for shown, _ in end.images] for end in found.extremes] == [
        [shown.name for shown, _ in end.images] for end in clean.extremes
    ]
    assert not {"x", "y"} & {shown.name for row in found.classes for shown in row.examples}


def test_images_without_label_or_measures_are_shown(tmp_path: Path) -> None:
    raw = pack(tmp_path / "raw", noise(12, 2))
    rows, info = manifest.read(raw)
    rows.loc[[0, 1], "label"] = None
    rows.loc[2, "label"] = "stray"
    old = rows.drop(columns=["brightness", "contrast", "sharpness"])
    found = collect(raw, old, info, NONE)
    assert {row.label: row.images for row in found.classes} == {
        "c0000": 3, "c0001": 6, "(no label)": 2, "stray": 1
    }  # fmt: skip
    assert [one.name for one in found.histograms] == ["width", "height", "bytes"]
    gallery_page.write(tmp_path / "index.html", found)
    assert "the images do not differ" in (tmp_path / "index.html").read_text()
    gallery_picture.write(tmp_path / "gallery.png", found)


def test_the_picture_shows_the_examples(tmp_path: Path) -> None:
    raw = pack(tmp_path / "raw", noise(24, 1, height=8, width=8, channels=3))
    found, _, picture = written(raw, tmp_path)
    drawn = decode(picture)
    for shown in found.classes[0].examples:
        assert shown.thumbnail_hwc is not None
        wanted = np.kron(shown.thumbnail_hwc, np.ones((9, 9, 1), np.uint8))  # 8 pixels on 72
        assert cv2.minMaxLoc(cv2.matchTemplate(drawn, wanted, cv2.TM_SQDIFF))[0] < 1000  # rounding; of others 1e8


def test_amounts_are_short() -> None:
    texts = [gallery.amount(value, "bytes") for value in (133, 920.5, 1530, 2_500_000)]
    assert texts == ["133 B", "920 B", "1.53 kB", "2.5 MB"]
    assert gallery.amount(4032, "px") == "4,032 px"
    assert gallery.amount(0.00155) == "0.00155"


def test_only_what_is_shown_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = pack(tmp_path / "raw", noise(900, 2, height=12, width=12))
    rows, info = manifest.read(raw)
    decoded = 0
    prepare = gallery.prepare

    def count(*arguments: object) -> object:
        nonlocal decoded
        decoded += 1
        return prepare(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(gallery, "prepare", count)
    collect(raw, pd.concat([rows] * 20, ignore_index=True), info, NONE)
    assert 0 < decoded <= 2 * EXAMPLES + 60
