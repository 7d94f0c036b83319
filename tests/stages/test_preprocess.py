import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import toys

from deepcv.data import manifest, packing, preparation, targets
from deepcv.data.packed import PackedImages
from deepcv.data.samples import DataError, Sample
from deepcv.data.shards import SPLITS, Statistics, open_shards, write_description
from deepcv.data.splits import SplitRule
from deepcv.images import ImageRecipe, encode_png, prepare
from deepcv.locks import locked
from deepcv.params.preprocess import PreprocessParams
from deepcv.stages import preprocess
from deepcv.task import CLASSIFICATION, FurtherTarget, Task

CLASSES = targets.find(CLASSIFICATION, ("cat", "dog"), tuple)


def samples(count: int, side: int = 16, white_test: bool = False) -> list[Sample]:
    found = []
    for number in range(count):
        split = ("train", "test", "train", "val")[number % 4]
        image = toys.picture(number, side, side + 3)
        if split == "test" and white_test:
            image = np.full_like(image, 255)
        known = {
            "numbers": {"größe/2": number + 0.5},
            "tags": {"x": ["odd"] if number % 2 else ["even", f"{number % 5}"], "x.probabilities": ["any"]},
        }
        label = ("cat", "dog")[number // 4 % 2]
        found.append(Sample(f"{number}.png", split, label, encode_png(image), json.dumps(known)))
    return found


def raw(folder: Path, count: int, **kinds: object) -> Path:
    folder.mkdir(parents=True)
    packing.pack(
        samples(count, **kinds), ("cat", "dog"), folder, name="pets", source="pets", rule=SplitRule(0.2, 0.2, 0)
    )
    return folder


def pack(source: Path, folder: Path, processes: int = 2, recipe: ImageRecipe | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    preparation.prepare_all(
        source, folder, recipe or ImageRecipe(8, 8, 1), CLASSES, processes=processes, done=lambda _count: None
    )
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.npy"))}


def test_the_result_is_that_of_one_image_after_the_other(tmp_path: Path) -> None:
    source = raw(tmp_path / "raw", 300)
    rows, info = manifest.read(source)
    one, many = pack(source, tmp_path / "one", processes=1), pack(source, tmp_path / "many", processes=3)
    assert content(one) == content(many)
    assert preparation.count(source).total() == 300
    assert manifest.read_info(source) == info
    for split in SPLITS:
        part = rows[rows["split"] == split]
        expected = [prepare(encoded, ImageRecipe(8, 8, 1)) for encoded in manifest.encoded_images(source, part)]
        assert np.array_equal(np.load(one / f"{split}_images.npy"), np.stack(expected))
        assert np.load(one / f"{split}_labels.npy").tolist() == [info.classes.index(label) for label in part["label"]]


def statistics(source: Path, folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    pack(source, folder)
    write_description(
        folder, name="pets", classes=("cat", "dog"), test_digest="t", recipe={"height": 8, "width": 8, "channels": 1}
    )
    shards = open_shards(folder)
    return shards.mean, shards.std


def test_statistics_are_those_of_the_train_images_alone(tmp_path: Path) -> None:
    mean, std = statistics(raw(tmp_path / "raw", 200), tmp_path / "shards")
    train = [prepare(s.encoded, ImageRecipe(8, 8, 1)) for s in samples(200) if s.split == "train"]
    pixels = np.stack(train).astype(np.float64) / 255
    assert abs(mean[0] - pixels.mean()) < 1e-3
    assert abs(std[0] - pixels.std()) < 1e-3
    assert statistics(raw(tmp_path / "poisoned", 200, white_test=True), tmp_path / "other") == (mean, std)


def test_encoded_train_images_are_the_files_with_the_statistics_of_their_pixels(tmp_path: Path) -> None:
    files = {}
    for store in ("pixels", "encoded"):
        folder = project(tmp_path / store, 300, f"height: 8; width: 8; store: {store}")
        process = start(folder)
        assert process.wait(120) == 0, process.communicate()
        files[store] = open_shards(folder / "data/shards")
    pixels, encoded = files["pixels"], files["encoded"]
    assert (encoded.mean, encoded.std) == (pixels.mean, pixels.std)
    assert encoded.digest != pixels.digest
    assert isinstance(encoded.train, PackedImages)
    given = [sample for sample in samples(300) if sample.split == "train"]
    assert [encoded.train[n] for n in range(len(encoded.train))] == [sample.encoded for sample in given]
    assert np.array_equal(encoded.train.labels, pixels.train.labels)
    assert set(zip(encoded.train.index["height"], encoded.train.index["width"], strict=True)) == {(16, 19)}
    for one, two in ((encoded.val, pixels.val), (encoded.test, pixels.test)):
        assert np.array_equal(one.images_nhwc, two.images_nhwc)
        assert np.array_equal(one.labels, two.labels)
    left = {str(path.relative_to(tmp_path / "encoded/data/shards")) for path in folder.glob("data/shards/**/*.*")}
    assert left == {
        "dataset.json", "train/images.bin", "train/index.npy", "train/packed.json", "train_labels.npy",
        "val_images.npy", "val_labels.npy", "test_images.npy", "test_labels.npy",
    }  # fmt: skip
    quarantine(folder, "0.png")
    process = start(folder)
    assert process.wait(120) == 0, process.communicate()
    after = open_shards(folder / "data/shards").train
    assert [after[n] for n in range(len(after))] == [sample.encoded for sample in given[1:]]


def test_a_bad_image_is_named(tmp_path: Path) -> None:
    source = raw(tmp_path / "raw", 20)
    rows, _ = manifest.read(source)
    import hashlib

    blob = bytearray((source / "images.bin").read_bytes())
    start, size = int(rows["offset"][7]), int(rows["bytes"][7])
    blob[start : start + size] = b"x" * size
    (source / "images.bin").write_bytes(blob)
    with pytest.raises(DataError, match=r"images\.bin: damaged at image 7\.png"):
        pack(source, tmp_path / "shards")
    rows.loc[7, "sha256"] = hashlib.sha256(b"x" * size).hexdigest()  # as if ingest had let it pass
    rows.to_parquet(source / "manifest.parquet", index=False)
    with pytest.raises(DataError, match=r"7\.png: not an image format"):
        pack(source, tmp_path / "shards")


@pytest.mark.parametrize("name", ["manifest.parquet", "dataset.json"])
@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_damaged_raw_data_is_named(name: str, damage: str, tmp_path: Path) -> None:
    path = raw(tmp_path / "raw", 20) / name
    path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=rf"{name}: {damage}.*dvc repro ingest"):
        manifest.read_info(path.parent), preparation.count(path.parent)


def quarantine(folder: Path, *ids: str) -> None:
    """What `validate` would leave."""
    (folder / "data/validation").mkdir(parents=True, exist_ok=True)
    lines = ["id,check,reason", *(f"{image_id},blurred,too blurred" for image_id in ids)]
    (folder / "data/validation/quarantine.csv").write_text("\n".join(lines) + "\n")


def project(folder: Path, count: int, recipe: str = "", **kinds: object) -> Path:
    """A project in which `preprocess` can run."""
    raw(folder / "data/raw", count, **kinds)
    quarantine(folder)
    for name in ("dvc.yaml", "params.yaml", "versions.yaml"):
        shutil.copy(toys.REPOSITORY / name, folder)
    text = (folder / "params.yaml").read_text()
    for line in filter(None, recipe.split("; ")):
        key, value = line.split(": ")
        lines = [f"  {key}: {value}" if old.startswith(f"  {key}:") else old for old in text.splitlines()]
        text = "\n".join(lines) + "\n"
    (folder / "params.yaml").write_text(text)
    return folder


def start(folder: Path, **options: object) -> "subprocess.Popen[str]":
    environment = {key: value for key, value in os.environ.items() if key != "DEEPCV_HOME"}
    return subprocess.Popen(
        [sys.executable, "-m", "deepcv.stages.preprocess"], cwd=folder, text=True, stderr=subprocess.PIPE,
        env=environment | {"PYTHONPATH": str(toys.REPOSITORY)}, **options,
    )  # fmt: skip


def test_a_killed_preparation_goes_on_where_it_was(tmp_path: Path) -> None:
    slow = "height: 96; width: 96; denoise: nlmeans"
    folder = project(tmp_path / "project", 900, slow)
    process, deadline = start(folder), time.monotonic() + 120
    while not (found := list(folder.glob(".deepcv/preprocess/*/finished"))):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder / "data/shards").exists()
    done = int(found[0].read_text())
    assert 0 < done < 900 // 64
    marked = found[0].parent / "train_labels.npy"
    labels = np.load(marked)
    np.load(marked, mmap_mode="r+")[0] = 77  # work that is finished is not done again: this would be mended
    process = start(folder)
    assert process.wait(120) == 0, process.communicate()
    resumed = np.load(folder / "data/shards/train_labels.npy")
    assert resumed[0] == 77
    assert not list(folder.glob(".deepcv/preprocess/*/"))
    whole = content(pack(folder / "data/raw", tmp_path / "whole", recipe=ImageRecipe(96, 96, 1, denoise="nlmeans")))
    resumed[0] = labels[0]
    np.save(folder / "data/shards/train_labels.npy", resumed)
    assert content(folder / "data/shards") == whole


def test_a_killed_preparation_of_encoded_images_counts_none_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, recipe = raw(tmp_path / "raw", 300), ImageRecipe(8, 8, 1)
    monkeypatch.setattr(preparation, "_RECORD_S", 0)
    heard: list[int] = []

    def kill(images: int) -> None:
        heard.append(images)
        if len(heard) == 3:  # its sums are written, its end is not recorded
            raise KeyboardInterrupt

    def prepare_encoded(folder: Path, done: Callable[[int], object] = lambda _count: None) -> Statistics:
        folder.mkdir(exist_ok=True)
        preparation.prepare_all(source, folder, recipe, CLASSES, encoded_train=True, processes=1, done=done)
        return preparation.encoded_statistics(folder, recipe)

    with pytest.raises(KeyboardInterrupt):
        prepare_encoded(tmp_path / "killed", kill)
    assert (tmp_path / "killed/finished").read_text() == "2"
    assert prepare_encoded(tmp_path / "killed") == prepare_encoded(tmp_path / "whole")
    assert statistics(source, tmp_path / "pixels") == prepare_encoded(tmp_path / "again")


def test_quarantined_images_are_left_out(tmp_path: Path) -> None:
    folder = project(tmp_path / "project", 40)
    process = start(folder)
    assert process.wait(120) == 0, process.communicate()
    labels = {split: np.load(folder / f"data/shards/{split}_labels.npy") for split in SPLITS}
    before = open_shards(folder / "data/shards")
    quarantine(folder, "0.png", "1.png")  # the first of train and of test
    process = start(folder)
    assert process.wait(120) == 0, process.communicate()
    after = open_shards(folder / "data/shards")
    assert np.array_equal(after.train.images_nhwc, before.train.images_nhwc[1:])
    assert np.array_equal(after.test.images_nhwc, before.test.images_nhwc[1:])
    assert np.array_equal(after.val.labels, labels["val"])
    assert after.test_digest != before.test_digest
    quarantine(folder, *(f"{number}.png" for number in range(3, 40, 4)))
    process = start(folder)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "nothing is left of split val after quarantine" in said


def test_another_recipe_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepcv.stages.preprocess import working_folder

    folder = project(tmp_path / "project", 20)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DEEPCV_HOME", str(tmp_path / "state"))
    names = set()
    for changes in ({}, {"clahe": 2.0}, {"store": "encoded"}, {}):
        with working_folder(PreprocessParams(height=8, width=8, channels=1, **changes)) as work:
            names.add(work.name)
    assert len(names) == 3


def test_locks_go_with_their_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project(tmp_path / "project", 20))
    monkeypatch.setenv("DEEPCV_HOME", str(tmp_path / "state"))
    works = tmp_path / "state/preprocess"
    for name in ("recent", "forgotten", "forgotten but busy"):
        (works / name).mkdir(parents=True)
        (works / f"{name}.lock").touch()
        if name != "recent":
            os.utime(works / name, (0, 0))
    (works / "of an older DeepCV.lock").touch()
    with (
        locked(works / "forgotten but busy.lock"),
        preprocess.working_folder(PreprocessParams(height=8, width=8, channels=1)) as work,
    ):
        kept = {work.name, "recent", "forgotten but busy"}
        assert {path.name for path in works.iterdir()} == kept | {f"{name}.lock" for name in kept}
        preprocess._remove(work)
        assert work.exists()  # it is in use
    preprocess._remove(work)
    assert not list(works.glob(f"{work.name}*"))


LARGER = (("  height: 8 ", "  height: 512 "), ("  width: 8\n", "  width: 512\n"))
ENCODED = (("  store: pixels", "  store: encoded"),)


@pytest.mark.parametrize(
    ("changes", "limit", "advice"),
    [(LARGER, 2**20, "height and width lower"), (ENCODED, 2**11, "store to pixels")],  # bytes of a file
    ids=["pixels", "encoded"],
)
def test_a_full_disk_is_one_clear_message_and_the_old_output_stays(
    changes: tuple[tuple[str, str], ...], limit: int, advice: str, tmp_path: Path
) -> None:
    folder = project(tmp_path / "project", 40)
    process = start(folder)
    assert process.wait(120) == 0, process.communicate()
    assert not list(folder.glob(".deepcv/preprocess/*"))
    old = content(folder / "data/shards")
    text = (folder / "params.yaml").read_text()
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    (folder / "params.yaml").write_text(text)
    process = start(folder, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "preprocess: no room for the prepared images" in said
    assert "free space" in said
    assert f"or set preprocess.{advice}" in said
    assert "Traceback" not in said
    assert content(folder / "data/shards") == old
    assert not list(folder.glob(".deepcv/preprocess/*/"))  # nor does it take up room


FURTHER = "further_targets: [numbers.größe/2, tags.x]"


@pytest.mark.parametrize("store", ["pixels", "encoded"])
def test_further_targets_lie_beside_the_main_one(store: str, tmp_path: Path) -> None:
    plain, more = (
        project(tmp_path / name, 120, f"height: 8; width: 8; store: {store}; {key}")
        for name, key in (("plain", "further_targets: []"), ("more", FURTHER))
    )
    for folder in (plain, more):
        process = start(folder)
        assert process.wait(120) == 0, process.communicate()
    without, further = content(plain / "data/shards"), content(more / "data/shards")
    assert further.keys() - without.keys() == {f"{split}_labels_{place}.npy" for split in SPLITS for place in (1, 2)}
    assert {name: further[name] for name in without} == without
    said = {
        name: json.loads((folder / "data/shards/dataset.json").read_text())
        for name, folder in (("plain", plain), ("more", more))
    }
    assert said["more"].keys() - said["plain"].keys() == {"further"}
    shards = open_shards(more / "data/shards")
    assert [target.names for target in shards.further] == [("größe/2",), ("0", "1", "2", "3", "4", "even", "odd")]
    for split, found in (("train", shards.train), ("val", shards.val), ("test", shards.test)):
        numbers = [number for number, sample in enumerate(samples(120)) if sample.split == split]
        assert found.further["numbers.größe/2"].tolist() == [[number + 0.5] for number in numbers]
        assert found.further["tags.x"][:, 6].tolist() == [float(number % 2) for number in numbers]
        assert found.further["tags.x"].dtype == np.float32


def test_a_killed_preparation_goes_on_with_further_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = raw(tmp_path / "raw", 300)
    monkeypatch.setattr(preparation, "_RECORD_S", 0)
    further = [preparation.learned(source, Task(of), ("cat", "dog")) for of in ("numbers.größe/2", "tags.x")]
    heard: list[int] = []

    def kill(images: int) -> None:
        heard.append(images)
        if len(heard) == 3:
            raise KeyboardInterrupt

    def prepare_further(folder: Path, done: Callable[[int], object] = lambda _count: None) -> dict[str, bytes]:
        folder.mkdir(exist_ok=True)
        preparation.prepare_all(source, folder, ImageRecipe(8, 8, 1), CLASSES, further=further, processes=1, done=done)
        return content(folder)

    with pytest.raises(KeyboardInterrupt):
        prepare_further(tmp_path / "killed", kill)
    marked = tmp_path / "killed/train_labels_1.npy"
    first = np.load(marked)[0, 0]
    np.load(marked, mmap_mode="r+")[0] = 77  # work that is finished is not done again
    resumed = prepare_further(tmp_path / "killed")
    assert np.load(marked)[0] == 77
    np.load(marked, mmap_mode="r+")[0] = first
    assert {**resumed, marked.name: marked.read_bytes()} == prepare_further(tmp_path / "whole")


def test_a_further_target_that_is_not_there_is_said(tmp_path: Path) -> None:
    process = start(project(tmp_path / "project", 40, "further_targets: [numbers.age]"))
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert (
        "preprocess.further_targets: no image has numbers of the name 'age'; there are numbers.größe/2, tags.x" in said
    )


@pytest.mark.parametrize(("main", "further", "says"), [
    ("label", ["tags.x", "tags.x.probabilities"], r"two columns tags\.x\.probabilities \(of tags\.x and of tags\.x\.probabilities\);"),
    ("numbers.boxes", ["boxes"], r"two columns boxes \(of numbers\.boxes and of boxes\); rename a column of the table"),
    ("numbers.tags.x.probabilities", ["tags.x"], r"two columns tags\.x\.probabilities"),
])  # fmt: skip
def test_two_columns_of_one_name_are_refused(main: str, further: list[str], says: str) -> None:
    def learned(of: str) -> targets.Targets:
        kind, _, column = of.partition(".")
        return targets.Targets(Task(of), (column,) if kind == "numbers" else ("a", "b"), lambda *_: [0.0])

    described = [FurtherTarget(Task(of), ("a", "b")) for of in further]
    with pytest.raises(DataError, match=rf"^preprocess\.further_targets: a prediction would have {says}"):
        preprocess.check_columns(learned(main), described)
    preprocess.check_columns(learned(main), described[1:] if main == "label" else [])
    preprocess.check_columns(
        learned("label"), [FurtherTarget(Task("numbers"), ("label", "file")), FurtherTarget(Task("tags.label"), ("a",))]
    )


def test_the_stage_refuses_two_columns_of_one_name(tmp_path: Path) -> None:
    process = start(project(tmp_path / "project", 40, "further_targets: [tags.x, tags.x.probabilities]"))
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "preprocess.further_targets: a prediction would have two columns tags.x.probabilities" in said
    assert "Traceback" not in said
