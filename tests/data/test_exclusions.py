from pathlib import Path

import pytest

from deepcv.data import exclusions
from deepcv.data.samples import DataError, Sample
from deepcv.files import sha256

ONE, TWO = "a1" * 32, "b2" * 32


def test_what_is_added_is_read(tmp_path: Path) -> None:
    path = tmp_path / "data/exclusions.txt"
    assert exclusions.read(path) == frozenset()
    assert exclusions.add(path, ONE)
    assert not exclusions.add(path, ONE)
    assert exclusions.add(path, TWO)
    assert exclusions.read(path) == {ONE, TWO}
    assert path.read_text().startswith("# ")


def test_what_people_wrote_stays(tmp_path: Path) -> None:
    path = tmp_path / "exclusions.txt"
    path.write_text(f"# asked for on Monday\n\n{ONE.upper()}  # a cat")
    assert exclusions.add(path, TWO)
    assert path.read_text() == f"# asked for on Monday\n\n{ONE.upper()}  # a cat\n{TWO}\n"
    assert exclusions.read(path) == {ONE, TWO}


@pytest.mark.parametrize("line", ["cat.jpg", "abc1", ONE + "0"])
def test_a_line_that_is_no_digest_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "exclusions.txt"
    path.write_text(f"{ONE}\n{line}\n")
    with pytest.raises(DataError, match=r"exclusions\.txt:2: expected a sha256 \(64 hexadecimal digits\), got "):
        exclusions.read(path)
    with pytest.raises(DataError, match=r"exclusions\.txt:2"):
        exclusions.add(path, TWO)
    assert path.read_text() == f"{ONE}\n{line}\n"


def test_listed_samples_are_left_out_whatever_their_name(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"b")
    samples = [Sample(name, None, "x", name[:1].encode()) for name in ("a1", "b1", "b2", "c1")]
    kept = exclusions.Kept(samples, frozenset({sha256(tmp_path / "b")}))
    assert [sample.id for sample in kept] == ["a1", "c1"]
    assert kept.left_out == 2
    assert list(exclusions.Kept(samples, frozenset())) == samples
