import json
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from histories import WEIRD, History
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import picture

from deepcv.cli import main
from deepcv.data import diff, diff_page, packing, revisions
from deepcv.data.diff import COLUMNS, compare
from deepcv.data.manifest import SPLITS
from deepcv.data.samples import DataError, Sample
from deepcv.data.splits import SplitRule
from deepcv.images import encode_png


def manifest(*rows: tuple[str, str, str, str]) -> pd.DataFrame:
    """Rows of (id, split, label, sha256)."""
    table = pd.DataFrame(rows, columns=["id", "split", "label", "sha256"], dtype=str)
    return table.assign(bytes=1, offset=range(len(table)))[list(COLUMNS)]


def ids(table: pd.DataFrame) -> list[str]:
    return list(table["id" if "id" in table else "id_after"])


BEFORE = manifest(
    ("kept", "train", "cat", "k"), ("relabelled", "train", "cat", "r"), ("changed", "val", "cat", "c1"),
    ("moved", "train", "dog", "m"), ("old", "test", "dog", "o"), ("gone", "train", "dog", "g"), ("all", "val", "dog", "a1"),
)  # fmt: skip
AFTER = manifest(
    ("fresh", "train", "cat", "f"), ("all", "test", "cat", "a2"), ("new", "train", "cat", "o"), ("moved", "test", "dog", "m"),
    ("changed", "val", "cat", "c2"), ("relabelled", "train", "dog", "r"), ("kept", "train", "cat", "k"),
)  # fmt: skip


def test_each_kind_of_change() -> None:
    found = compare(BEFORE, AFTER)
    assert ids(found.added) == ["fresh"]
    assert ids(found.removed) == ["gone"]
    assert ids(found.relabelled) == ["all", "relabelled", "new"]
    assert ids(found.changed) == ["all", "changed"]
    assert ids(found.moved) == ["all", "moved", "new"]
    assert list(found.renamed[["id_before", "id_after"]].itertuples(index=False, name=None)) == [("old", "new")]
    assert not found.is_empty


def test_copies_of_one_image_are_paired_one_to_one() -> None:
    before = manifest(("a", "train", "x", "same"), ("b", "train", "x", "same"), ("c", "train", "x", "same"))
    after = manifest(("a", "train", "x", "same"), ("z", "train", "x", "same"))
    found = compare(before, after)
    assert list(found.renamed[["id_before", "id_after"]].itertuples(index=False, name=None)) == [("b", "z")]
    assert ids(found.removed) == ["c"]
    assert found.added.empty


def test_class_shares_of_each_split() -> None:
    table = compare(BEFORE, AFTER, classes=["dog", "cat"]).balance
    rows = list(table.round(2).itertuples(index=False, name=None))
    assert rows == [
        ("train", "dog", 2, 1, 0.5, 0.25), ("train", "cat", 2, 3, 0.5, 0.75),
        ("val", "dog", 1, 0, 0.5, 0), ("val", "cat", 1, 1, 0.5, 1),
        ("test", "dog", 1, 1, 1, 0.5), ("test", "cat", 0, 1, 0, 0.5),
    ]  # fmt: skip


def test_an_empty_side() -> None:
    nothing = manifest()
    assert len(compare(nothing, AFTER).added) == len(AFTER)
    assert len(compare(AFTER, nothing).removed) == len(AFTER)
    assert compare(nothing, nothing).is_empty


BOX = '{"boxes": [{"label": "cat", "xyxy": [1, 2, 3, 4]}]}'
TABLE = '{"numbers": {"age": 31.5}, "tags": {"marks": ["red"]}}'


def annotated(folder: Path, texts: dict[str, str] | None) -> revisions.Snapshot:
    """A dataset of four images with these annotations (none: empty), or of an older DeepCV, whose manifest has no such column."""
    folder.mkdir()
    png = encode_png(picture(0))
    table = manifest(*((name, "train", "x", name) for name in "abcd")).assign(bytes=len(png), offset=0)
    if texts is not None:
        table = table.assign(annotations=[texts.get(name, "") for name in "abcd"])
    table.to_parquet(folder / "manifest.parquet")
    (folder / "images.bin").write_bytes(png)
    (folder / "dataset.json").write_text('{"name": "toy", "classes": ["x"], "test_digest": ""}')
    return revisions.Snapshot(folder.name, {name: folder / name for name in revisions.FILES})


def test_other_annotations_of_an_image(tmp_path: Path) -> None:
    before = annotated(tmp_path / "before", {"a": BOX, "b": TABLE, "c": "", "d": BOX})
    changes = {"a": BOX.replace("3", "5"), "b": TABLE.replace("31.5", "32").replace("red", "blue"), "c": BOX, "d": BOX}
    after = annotated(tmp_path / "after", changes)
    found = diff.report(before, after)
    assert {key: len(table) for key, (_, table) in found.diff.sections.items() if len(table)} == {"reannotated": 3}
    assert not found.diff.is_empty
    assert diff.report(after, after).diff.is_empty
    lines = diff.as_text(found).splitlines()
    first = lines.index(f"{'other annotations':<22}{3:>9}")
    assert lines[first + 1 : first + 4] == ["    a (boxes)", "    b (numbers, tags)", "    c (boxes)"]
    told = json.loads(diff.as_json(found))
    assert told["counts"]["reannotated"] == 3
    assert told["reannotated"][2]["annotations_before"] == ""
    assert json.loads(told["reannotated"][0]["annotations_after"])["boxes"][0]["xyxy"] == [1, 2, 5, 4]
    diff_page.write(tmp_path / "page.html", found, before, after)
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "other annotations: 3" in page.text
    assert "b (numbers, tags)" in page.text
    assert sum(tag == "img" for tag, _ in page.tags) == 3


def test_annotations_of_a_renamed_image() -> None:
    before, after = manifest(("old", "train", "x", "1")), manifest(("new", "train", "x", "1"))
    found = compare(before.assign(annotations=BOX), after.assign(annotations="")).reannotated
    assert found is not None
    assert ids(found) == ["new"]


@pytest.mark.parametrize("older", ["before", "after"])
def test_annotations_beside_an_older_manifest_are_not_compared(older: str, tmp_path: Path) -> None:
    before, after = (annotated(tmp_path / s, None if s == older else {"a": BOX}) for s in ("before", "after"))
    found = diff.report(before, after)
    assert found.diff.is_empty
    assert "reannotated" not in json.loads(diff.as_json(found))["counts"]
    assert "Annotations are not compared: a manifest is of an older DeepCV" in diff.as_text(found)


a_row = st.tuples(
    st.sampled_from("abcdef\n<"),
    st.sampled_from(["train", "val", "test"]),
    st.sampled_from("xy"),
    st.sampled_from("1234"),
)
manifests = st.lists(a_row, max_size=8, unique_by=lambda row: row[0]).map(lambda rows: manifest(*rows))


@settings(max_examples=50, deadline=None)
@given(manifests, manifests)
def test_the_way_back_is_the_way_there(before: pd.DataFrame, after: pd.DataFrame) -> None:
    there, back = compare(before, after), compare(after, before)
    assert compare(before, before).is_empty
    assert sorted(ids(there.added)) == sorted(ids(back.removed))
    assert sorted(ids(there.removed)) == sorted(ids(back.added))
    for kind in ("relabelled", "changed", "moved", "renamed"):
        pairs = [
            set(zip(t["id_before"], t["id_after"], strict=True)) for t in (getattr(there, kind), getattr(back, kind))
        ]
        assert pairs[0] == {(b, a) for a, b in pairs[1]}
    assert len(before) + len(there.added) - len(there.removed) == len(after)
    assert there.balance["before"].sum() == len(before)
    assert there.balance["after"].sum() == len(after)
    # No image is left that was called new or gone though its content was free on the other side.
    assert not set(there.added["sha256"]) & set(there.removed["sha256"])


@pytest.fixture
def project(history: History, monkeypatch: pytest.MonkeyPatch) -> History:
    """The project with a past; it is the working directory."""
    monkeypatch.chdir(history.root)
    monkeypatch.delenv("DEEPCV_HOME", raising=False)
    return history


@pytest.mark.usefixtures("project")
def test_json_of_two_revisions(capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "diff", "one", "two", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in found["added"]] == ["cat/new.png"]
    assert [row["id"] for row in found["removed"]] == ["dog/18.png"]
    renamed = {row["id_before"]: row["id_after"] for row in found["renamed"]}
    assert renamed == {
        "dog/old.png": "dog/renamed.png", "cat/3.png": "dog/was a cat.png", "cat/twin2.png": "cat/twin3.png"
    }  # fmt: skip
    assert [(row["id_after"], row["label_before"], row["label_after"]) for row in found["relabelled"]] == [
        ("dog/was a cat.png", "cat", "dog")
    ]
    assert {row["id_after"] for row in found["changed"]} == {"cat/1.png", WEIRD}
    assert found["before"]["images"] == found["after"]["images"] == 24
    assert found["before"]["revision"].startswith("one (")
    assert found["counts"]["changed"] == 2
    assert sum(row["after"] for row in found["balance"]) == 24


@pytest.mark.usefixtures("project")
def test_text_of_the_workspace(capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "diff"])
    text = capsys.readouterr().out
    assert text.startswith("HEAD (")
    assert "workspace: pets, 25 images" in text.splitlines()[0]
    assert "    dog/late.png (" in text
    assert "train  cat" in text
    main(["data", "diff", "one", "two"])
    text = capsys.readouterr().out
    assert repr(WEIRD) in text
    assert "dog/was a cat.png (cat -> dog)" in text


@pytest.mark.usefixtures("project")
def test_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "diff", "two", "HEAD", "--exit-code"])
    for arguments, status in ((["one"], 1), (["no-such-revision"], 2)):
        with pytest.raises(SystemExit) as exited:
            main(["data", "diff", *arguments, "--exit-code"])
        assert exited.value.code == status
    assert "deepcv: no-such-revision: expected a git revision" in capsys.readouterr().err


class Page(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.usefixtures("project")
def test_the_page_holds_its_pictures_and_runs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "reports/index.html"
    main(["data", "diff", "one", "two", "--html", str(path)])
    page = Page(path.read_text(encoding="utf-8"))
    assert repr(WEIRD) in page.text
    assert {tag for tag, _ in page.tags} <= {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "nav", "a", "div", "figure", "figcaption", "img",
        "table", "tr", "th", "td",
    }  # fmt: skip
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        assert tag != "a" or str(attributes["href"]).startswith("#")
        assert tag != "img" or str(attributes["src"]).startswith("data:image/png;base64,")
    # added, removed, relabelled, renamed × 3, changed pixels × 2 before and after, and whatever moved
    moved = int(page.text.partition("moved between splits: ")[2][:2].strip("r"))
    assert sum(tag == "img" for tag, _ in page.tags) == 1 + 1 + 1 + 3 + 4 + moved
    assert list(path.parent.iterdir()) == [path]


def test_a_page_shows_some_and_counts_the_rest(history: History, tmp_path: Path) -> None:
    before, after = revisions.snapshot("one", history.root), revisions.snapshot("two", history.root)
    diff_page.write(tmp_path / "page.html", diff.report(before, after), before, after, limit=1)
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "and 2 more" in page.text  # of three that were renamed


def test_a_page_says_which_files_are_no_images(tmp_path: Path) -> None:
    sides = []
    for name, third in (("before", b""), ("after", b"Read me")):
        (tmp_path / name).mkdir()
        given = [Sample(f"a/{n}.png", s, "a", encode_png(picture(n))) for n, s in enumerate(SPLITS)]
        given += [Sample("a/3.png", None, "a", third), Sample("a/4.png", "test", "a", b"")]
        packing.pack(given, ("a",), tmp_path / name, name="toy", source="x", rule=SplitRule(0.2, 0.2, 0))
        sides.append(revisions.Snapshot(name, {file: tmp_path / name / file for file in revisions.FILES}))
    found = diff.report(*sides)
    assert ids(found.diff.changed) == ["a/3.png"]
    diff_page.write(tmp_path / "page.html", found, *sides)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "before: the file is empty" in page
    assert "after: not an image format that OpenCV reads: it begins with b&#x27;Read me&#x27;" in page
    assert page.count(">unreadable</span>") == 2


def test_a_page_of_damaged_images_is_not_written(history: History, tmp_path: Path) -> None:
    before, after = revisions.snapshot("one", history.root), revisions.snapshot("two", history.root)
    (tmp_path / "images.bin").write_bytes(b"no image")
    damaged = revisions.Snapshot("damaged", {**after.files, "images.bin": tmp_path / "images.bin"})
    with pytest.raises(DataError, match=r"images\.bin: damaged"):
        diff_page.write(tmp_path / "page.html", diff.report(before, damaged), before, damaged)
    assert not (tmp_path / "page.html").exists()


def test_an_id_that_stands_twice_is_refused(tmp_path: Path) -> None:
    manifest(("a", "train", "x", "1"), ("a", "train", "x", "2")).to_parquet(tmp_path / "manifest.parquet")
    (tmp_path / "dataset.json").write_text('{"name": "toy", "classes": ["x"], "test_digest": ""}')
    files = {name: tmp_path / name for name in ("manifest.parquet", "dataset.json")}
    snapshot = revisions.Snapshot("twice", files)
    with pytest.raises(DataError, match="twice: expected one row per image id, found 'a' twice"):
        diff.report(snapshot, snapshot)
