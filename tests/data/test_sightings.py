import hashlib
import shutil
from pathlib import Path

import histories
import pytest
from histories import WEIRD, History
from toys import picture

from deepcv.data import sightings
from deepcv.data.samples import DataError
from deepcv.data.sightings import Recorded
from deepcv.images import encode_png


def digest(seed: int) -> str:
    return hashlib.sha256(encode_png(picture(seed))).hexdigest()


@pytest.fixture(scope="module")
def datasets(history: History) -> list[Recorded]:
    return sightings.recorded(history.root, history.cache)


def search(history: History, datasets: list[Recorded], wanted: str) -> list[tuple[list[str], list[str]]]:
    """Who recorded each dataset that holds the image, and under which ids."""
    found = sightings.search(wanted, datasets, history.cache)
    assert found.searched == 4
    assert not found.unread
    return [([by.split(" ")[-1] for by in s.dataset.by], [p.id for p in s.places]) for s in found.sightings]


def test_every_recorded_dataset_is_known(datasets: list[Recorded]) -> None:
    # A commit is known by its hash and subject, "dataset one".
    assert [[by.split(" ")[-1] for by in dataset.by] for dataset in datasets] == [["workspace"], ["two"], ["one"], []]
    assert all(len(dataset.shards) == 1 for dataset in datasets)


def test_an_image_is_followed_by_its_content(history: History, datasets: list[Recorded]) -> None:
    assert search(history, datasets, digest(18)) == [(["one"], ["dog/18.png"])]
    assert search(history, datasets, digest(90)) == [([], ["dog/brief.png"])]
    assert search(history, datasets, digest(91)) == [(["workspace"], ["dog/late.png"])]
    assert search(history, datasets, digest(50)) == [(["one"], [WEIRD])]
    renamed = search(history, datasets, digest(3))
    assert [ids for _, ids in renamed] == [["dog/was a cat.png"]] * 2 + [["cat/3.png"], ["dog/was a cat.png"]]
    assert [ids for _, ids in search(history, datasets, digest(60))][-2] == ["cat/twin1.png", "cat/twin2.png"]


def test_the_splits_are_those_of_the_manifest(history: History, datasets: list[Recorded]) -> None:
    rows = history.manifest()
    assert set(rows["split"]) == {"train", "val", "test"}
    for split in ("train", "val", "test"):
        image = rows[rows["split"] == split].iloc[0]
        found = sightings.search(image["sha256"], datasets, history.cache)
        assert found.sightings[0].splits == (split,)
        assert found.sightings[0].places[0].label == image["label"]


def test_a_training_is_known_by_the_digest_of_its_shards(history: History, datasets: list[Recorded]) -> None:
    found = sightings.search(digest(91), datasets, history.cache)
    expected = hashlib.sha256((history.root / "data/shards/dataset.json").read_bytes()).hexdigest()
    assert found.sightings[0].data_digests == (expected,)


def test_beginnings(history: History, datasets: list[Recorded]) -> None:
    digests = sorted(history.manifest()["sha256"].unique())
    assert sightings.search(digests[0][:12], datasets, history.cache).sha256 == digests[0]
    with pytest.raises(DataError, match=r"2\d images begin so; give more digits of one: [0-9a-f]{64}, .* and \d+ more"):
        sightings.search("", datasets, history.cache)
    with pytest.raises(DataError, match=r"none of the 4 recorded datasets holds this image \(byte for byte\)$"):
        sightings.search("f" * 64, datasets, history.cache)


def test_what_names_an_image(tmp_path: Path) -> None:
    file = tmp_path / "cafe"  # could be the beginning of a digest; a file is meant
    file.write_bytes(b"an image")
    assert sightings.digest_or_prefix(str(file)) == hashlib.sha256(b"an image").hexdigest()
    assert sightings.digest_or_prefix("CAFE12") == "cafe12"
    with pytest.raises(DataError, match="expected one image file, got a folder"):
        sightings.digest_or_prefix(str(tmp_path))
    for wrong in ("caf", "no.png", "f" * 65, "zzzz"):
        with pytest.raises(DataError, match="expected an image file or a sha256"):
            sightings.digest_or_prefix(wrong)


def test_datasets_that_the_cache_lacks_are_counted(history: History, tmp_path: Path) -> None:
    copy = histories.copy(history, tmp_path)
    for listing in copy.cache.glob("files/md5/*/*.dir"):
        if "manifest.parquet" not in listing.read_text():
            listing.unlink()
    found = sightings.find(digest(91), copy.root).sightings
    assert [(sighting.data_digests, len(sighting.dataset.shards)) for sighting in found] == [((), 1)]
    shutil.rmtree(copy.cache / "files")
    with pytest.raises(DataError, match=r"none of the 0 .*; DVC's cache lacks 4 more: `dvc fetch --all-commits"):
        sightings.find(digest(1), copy.root)


def test_locks_that_say_nothing_are_passed_over(history: History, tmp_path: Path) -> None:
    copy = histories.copy(history, tmp_path)
    (copy.root / "dvc.lock").write_text("<<<<<<< ours\n")
    copy.git("commit", "-qam", "a conflict")
    copy.git("rm", "-q", "dvc.lock")
    copy.git("commit", "-qm", "none")
    for entry in copy.cache.glob("runs/*/*/*"):
        entry.write_text("path: data/raw: [")
    datasets = sightings.recorded(copy.root, copy.cache)
    assert [[by.split(" ")[-1] for by in dataset.by] for dataset in datasets] == [["two"], ["one"]]


def test_a_branch_that_was_merged_away_and_a_project_below_its_repository(tmp_path: Path) -> None:
    whole = histories.History(tmp_path, tmp_path / "cache")
    whole.git("init", "-q", "-b", "main")
    project = tmp_path / "below"
    project.mkdir()

    def commit(md5: str) -> None:
        (project / "dvc.lock").write_text(f"stages: {{i: {{outs: [{{path: data/raw, md5: {md5}.dir}}]}}}}\n")
        whole.git("add", "-A")
        whole.git("commit", "-qm", md5)

    commit("a")
    whole.git("checkout", "-qb", "side")
    commit("b")
    whole.git("checkout", "-q", "main")
    commit("c")
    whole.git("merge", "-q", "-s", "ours", "side", "-m", "merge")
    whole.git("branch", "-D", "side")
    assert {dataset.raw for dataset in sightings.recorded(project, tmp_path)} == {"a.dir", "b.dir", "c.dir"}
