"""The examples of docs/data.md are read as they stand, and the page names every key and default of the code."""

import io
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import toys
import yaml

from deepcv.data import packing
from deepcv.data.expectations import Own, judge
from deepcv.data.findings import Limits
from deepcv.data.manifest import read
from deepcv.data.samples import DataError, Sample
from deepcv.data.sources import open_source
from deepcv.data.splits import SplitRule
from deepcv.images import encode_png
from deepcv.params.ingest import IngestParams
from deepcv.params.validate import SEVERITIES, ValidateParams

PAGE = (toys.REPOSITORY / "docs/data.md").read_text(encoding="utf-8")
SECTIONS = {text.partition("\n")[0]: text for text in PAGE.split("\n## ")[1:]}
PICTURE = encode_png(toys.picture(0, height=480, width=640, channels=3))
EXPECTED = {
    "Class folders": [(None, "cat"), (None, "cat"), (None, "dog")],
    "A table": [("train", "owl"), ("train", "tit"), ("val", "owl"), ("val", "tit")],
    "COCO": [(None, "owl"), (None, "tit")],
    "Pascal VOC": [("train", "owl"), ("train", "tit")],
    "YOLO": [("train", "owl"), ("train", "tit"), ("val", "owl")],
    "WebDataset": [("train", "owl"), ("train", "tit"), ("val", "owl"), ("val", "tit")],
}
KINDS = {
    "A table": "table",
    "COCO": "coco",
    "Pascal VOC": "voc",
    "YOLO": "yolo",
    "Published datasets, and torchvision's files": "torchvision",
}


def blocks(section: str) -> dict[str, str]:
    """The contents of the section's files by path."""
    return dict(re.findall(r"```\w+ (\S+)\n(.*?)```", SECTIONS[section], re.DOTALL))


def without_defaults(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if "# default" not in line)


def build(section: str, root: Path) -> Path:
    """Write the files of the section's listing; return its one top folder."""
    listing = re.search(r"```text\n(.*?)```", SECTIONS[section], re.DOTALL)
    assert listing
    texts = blocks(section)
    for line in listing[1].splitlines():
        name, _, members = line.partition("#")
        path = root / name.strip()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".tar":
            write_shard(path, members.strip().split(", "))
        elif path.suffix in {".jpg", ".png"}:
            path.write_bytes(PICTURE)
        else:
            path.write_text(texts.pop(name.strip()), encoding="utf-8")
    assert not texts, "a file that the listing does not have"
    (top,) = root.iterdir()
    return top


def write_shard(path: Path, names: list[str]) -> None:
    with tarfile.open(path, "w") as tar:
        for name in names:
            content = PICTURE if name.endswith(".jpg") else {"1": b"owl", "2": b"tit"}[name[0]]
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def samples(path: Path) -> list[Sample]:
    return list(open_source(path, Path("/nonexistent")).samples())


@pytest.mark.parametrize("section", EXPECTED)
def test_an_example_is_read(section: str, tmp_path: Path) -> None:
    folder = build(section, tmp_path)
    found = samples(folder)
    assert [(sample.split, sample.label) for sample in found] == EXPECTED[section]
    if (described := folder / "dataset.yaml").exists():
        described.write_text(without_defaults(described.read_text()))
        assert samples(folder) == found


def test_the_mask_of_the_table_can_be_named_as_the_page_says(tmp_path: Path) -> None:
    folder = build("A table", tmp_path)
    description, rows = folder / "dataset.yaml", folder / "labels.csv"
    named = re.search(r"masks: \[\].*`(\S+)`", description.read_text())
    assert named
    description.write_text(description.read_text().replace("masks: []", "masks: [outline]"))
    header, *lines = rows.read_text().splitlines()
    rows.write_text("\n".join([f"{header},outline", *(f"{line},{named[1]}" for line in lines)]))
    assert '"masks": {"outline": "images/masks/1.png"}' in samples(folder)[0].annotations


@pytest.mark.parametrize("section", KINDS)
def test_the_page_has_every_key(section: str, tmp_path: Path) -> None:
    (text,) = (text for text in blocks(section).values() if f"source: {KINDS[section]}" in text)
    (tmp_path / "dataset.yaml").write_text(f"source: {KINDS[section]}\nnonsense: 1\n")
    with pytest.raises(DataError, match="unknown keys nonsense") as raised:
        open_source(tmp_path, Path("/nonexistent"))
    taken = set(str(raised.value).rpartition(" takes ")[2].split(", "))
    assert set(yaml.safe_load(text)) - {"source"} == taken - {"root"}
    assert "root" not in taken or "root: " in SECTIONS[section]


def test_the_params_are_all_of_the_section_and_the_defaults_its_own() -> None:
    text = blocks("Names, splits, exclusions")["params.yaml"]
    given = yaml.safe_load(text)["ingest"]
    assert set(given) == set(IngestParams.model_fields)
    required = yaml.safe_load(without_defaults(text))["ingest"]
    assert IngestParams.model_validate(required) == IngestParams.model_validate(given)


def columns() -> dict[str, str]:
    """Type by column, as the page has them."""
    rows = re.findall(r"^\| (`.*?`) \| (\w+) \|", SECTIONS["The manifest, and checks of your own"], re.MULTILINE)
    return {name: kind for names, kind in rows for name in re.findall(r"`(\w+)`", names)}


def test_the_page_has_the_columns_of_the_manifest_and_their_types() -> None:
    kinds = {"string": "text", "float": "float32"}
    assert columns() == {field.name: kinds.get(str(field.type), str(field.type)) for field in packing.SCHEMA}


def test_the_expectations_of_the_page_are_judged(tmp_path: Path) -> None:
    samples = []
    for number, split in enumerate(["train", "train", "val", "test"] * 5):
        pixels = np.full((8, 8, 3), 2, np.uint8) if number == 5 else toys.picture(number, channels=3)
        samples.append(Sample(f"{number}.{'png' if number == 3 else 'jpg'}", split, "owl", encode_png(pixels)))
    packing.pack(samples, ("owl",), tmp_path, name="owls", source="owls", rule=SplitRule(0.1, 0.1, 0))
    manifest, info = read(tmp_path)
    text = blocks("The manifest, and checks of your own")["validate"]
    own = ValidateParams.model_validate(yaml.safe_load(text)["validate"]).expectations
    limits = Limits(1, 1, 2.0, 4, 100, 1.0)
    severities = dict.fromkeys(SEVERITIES, "warn")
    verdict = judge(manifest, info.classes, limits, severities=severities, own=[Own(**entry) for entry in own])
    assert verdict.failures == ()
    assert verdict.quarantined["position"].tolist() == [5]
    assert any(
        "id: expect_column_values_to_match_regex" in warning and "3.png" in warning for warning in verdict.warnings
    )


def test_links_lead_somewhere_and_the_readme_leads_here() -> None:
    for path, anchor in re.findall(r"\]\(([\w./]+)#?([\w-]*)\)", PAGE):
        target = (toys.REPOSITORY / "docs" / path).read_text(encoding="utf-8")
        headings = {re.sub(r"\W+", "-", found.lower()) for found in re.findall(r"^#+ (.+)$", target, re.MULTILINE)}
        assert not anchor or anchor in headings
    assert "](docs/data.md)" in (toys.REPOSITORY / "README.md").read_text(encoding="utf-8")
