import json
import shutil
import subprocess
import sys
from pathlib import Path

import histories
import pytest
from histories import History

from deepcv.data import manifest, revisions
from deepcv.data.revisions import cache_dir, snapshot
from deepcv.data.samples import DataError
from deepcv.stages import ingest, preprocess


@pytest.fixture
def copy(history: History, tmp_path: Path) -> History:
    return histories.copy(history, tmp_path)


def test_the_folders_are_those_of_the_stages() -> None:
    assert Path(revisions.RAW) == ingest.RAW
    assert Path(revisions.SHARDS) == preprocess.SHARDS


def test_a_revision_is_read_out_of_the_cache(history: History) -> None:
    one, workspace = snapshot("one", history.root), snapshot("workspace", history.root)
    assert one.files["images.bin"].is_relative_to(history.cache)
    assert one.rows(["id"])["id"].str.contains("dog/old.png", regex=False).any()
    assert set(workspace.rows(manifest.COLUMNS)["id"]) == set(history.manifest().index)
    assert one.description()["classes"] == ["cat", "dog"]
    assert snapshot("two~1", history.root).name.startswith("two~1 (")


def test_the_cache_folder_is_the_configured_one(history: History, tmp_path: Path) -> None:
    assert cache_dir(history.root) == history.cache
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], cwd=tmp_path, check=True)
    assert cache_dir(tmp_path) == tmp_path / ".dvc" / "cache"


def test_without_dvc(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="`dvc cache dir` failed in"):
        cache_dir(tmp_path)


@pytest.mark.parametrize("name", ["no-such", "--all", "one two", "", "HEAD:dvc.lock"])
def test_an_unknown_revision(history: History, name: str) -> None:
    with pytest.raises(DataError, match=f"{name}: expected a git revision .* or `workspace`"):
        snapshot(name, history.root)


def test_outside_of_git(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="in no git repository"):
        snapshot("HEAD", tmp_path)


def test_a_revision_without_a_dataset(copy: History) -> None:
    lock = copy.root / "dvc.lock"
    for text, expected in {
        "schema: '2.0'\n": "records no data/raw; run `dvc repro ingest` there",
        "stages: [": "its dvc.lock is damaged",
        "stages: {ingest: {outs: 7}}": "its dvc.lock is damaged",
        "- 1": "its dvc.lock is damaged",
    }.items():
        lock.write_text(text)
        copy.git("commit", "-qam", "change")
        with pytest.raises(DataError, match=expected):
            snapshot("HEAD", copy.root)
    copy.git("rm", "-qf", "dvc.lock")
    copy.git("commit", "-qm", "remove")
    with pytest.raises(DataError, match=r"HEAD: expected a dvc\.lock in this revision, found none; run `dvc repro`"):
        snapshot("HEAD", copy.root)


def test_a_dataset_that_the_cache_lacks(copy: History) -> None:
    snapshot("one", copy.root).files["images.bin"].unlink()
    with pytest.raises(DataError, match=r"one \(.*not whole in DVC's cache .*`dvc fetch --all-commits data/raw`"):
        snapshot("one", copy.root)
    shutil.rmtree(copy.cache)
    with pytest.raises(DataError, match="`dvc repro ingest`"):
        snapshot("two", copy.root)


def test_a_workspace_without_a_dataset(copy: History) -> None:
    shutil.rmtree(copy.root / "data/raw")
    with pytest.raises(DataError, match=r"workspace: .*manifest\.parquet is missing; run `dvc repro ingest`"):
        snapshot("workspace", copy.root)


def test_a_damaged_dataset(history: History, tmp_path: Path) -> None:
    (tmp_path / "damaged").write_bytes(b"{}")
    files = snapshot("one", history.root).files
    damaged = revisions.Snapshot("one", dict.fromkeys(files, tmp_path / "damaged"))
    with pytest.raises(DataError, match="one: its manifest cannot be read"):
        damaged.rows(["id"])
    with pytest.raises(DataError, match=r"one: its dataset\.json cannot be read"):
        damaged.description()


@pytest.mark.parametrize("listed", ["[", "7", '[{"md5": "../../../etc/passwd", "relpath": "x"}]', '[{"relpath": "x"}]'])
def test_a_damaged_listing_leads_nowhere(tmp_path: Path, listed: str) -> None:
    path = tmp_path / "files/md5/aa" / f"{'a' * 30}.dir"
    path.parent.mkdir(parents=True)
    path.write_text(listed)
    assert revisions.cached_files(tmp_path, f"{'a' * 32}.dir") == {}


def test_files_are_listed_by_name(history: History) -> None:
    files = snapshot("one", history.root).files
    assert set(files) == {"manifest.parquet", "images.bin", "dataset.json"}
    assert json.loads(files["dataset.json"].read_text())["name"] == "pets"
