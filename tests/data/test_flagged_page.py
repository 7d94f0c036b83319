"""The page of flagged images: every name escaped, so many pictures and no more, what each check does said."""

import re
from pathlib import Path

import pandas as pd
import pytest
from toys import picture

from deepcv.data import flagged_page, manifest, packing
from deepcv.data.findings import Findings
from deepcv.data.samples import DataError, Sample
from deepcv.data.splits import SplitRule
from deepcv.images import encode_png

NAME = "<b>&\"'.png"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    samples = [
        Sample(
            f"{n} {NAME}", ("train", "val", "test")[n // 2 % 3], ("<i>a", "b")[n % 2], encode_png(picture(n, 9, 200))
        )
        for n in range(60)
    ]
    packing.pack(samples, ("<i>a", "b"), tmp_path / "raw", name="pets", source="pets", rule=SplitRule(0.2, 0.2, 0))
    return tmp_path / "raw"


def page(raw: Path, flagged: pd.DataFrame, **severities: str) -> str:
    rows, _ = manifest.read(raw)
    path = raw.parent / "flagged.html"
    outcomes = {"fail": ["width is <9>, expected at most 8"], "warn": []}
    found = Findings({}, flagged, {"label_set": "no <reference>"}, sampled=50)
    limits = {
        "blurred": (False, "above the limit of 5 %"), "duplicates": (True, "within the limit of 5 %"),
        "label_noise": (False, "within the limit of 5 %, but p is <1"), "odd_shape": (False, "above the limit of 0 images"),
    }  # fmt: skip
    flagged_page.write(path, raw, rows, found, severities, outcomes, limits, name="<p>ets")
    return path.read_text(encoding="utf-8")


def flags(check: str, positions: range, reason: str = "a <reason>") -> pd.DataFrame:
    return pd.DataFrame({"check": check, "position": list(positions), "reason": reason})


def test_a_page_says_what_was_flagged_and_why(raw: Path) -> None:
    checks = {"odd_shape": range(3), "duplicates": range(1), "size": range(1), "label_noise": range(2)}
    both = pd.concat([*(flags(check, at) for check, at in checks.items()), flags("blurred", range(1, 60))])
    text = page(raw, both, odd_shape="quarantine", blurred="warn")
    assert "<h1>&lt;p&gt;ets: 60 of 60 images flagged</h1>" in text
    assert re.findall(r"<h2>([a-z ]+): (\d+ of \d+)\s*<span[^>]*>([^<]*)", text) == [
        ("blurred", "59 of 60", "above the limit of 5 %: warn"), ("duplicates", "1 of 60", "within the limit of 5 %"),
        ("label noise", "2 of 50", "within the limit of 5 %, but p is &lt;1: fail"), ("odd shape", "3 of 60", "each is left out"),
        ("size", "1 of 60", "above the limit of 0 images: fail"),
    ]  # fmt: skip
    assert text.count("<figure>") == 48 + 3 + 1 + 1 + 2
    assert "and 11 more" in text
    assert "<li>width is &lt;9&gt;, expected at most 8</li>" in text
    assert "<li>label set: no &lt;reference&gt;</li>" in text


def test_a_name_is_no_markup(raw: Path) -> None:
    text = page(raw, flags("blurred", range(2)))
    assert "0 &lt;b&gt;&amp;&quot;&#x27;.png" in text
    tags = set(re.findall(r"<(\w+)", text.partition("<body>")[2]))
    assert tags == {"h1", "h2", "p", "ul", "li", "span", "div", "figure", "figcaption", "img", "br"}
    assert not re.search(r"https?://", text)


def test_damaged_raw_data_is_named_and_the_old_page_stays(raw: Path) -> None:
    old = page(raw, flags("blurred", range(1)))
    (raw / "images.bin").write_bytes(b"x" * (raw / "images.bin").stat().st_size)
    with pytest.raises(DataError, match=r"images\.bin: damaged at image 0 "):
        page(raw, flags("blurred", range(2)))
    assert (raw.parent / "flagged.html").read_text(encoding="utf-8") == old
