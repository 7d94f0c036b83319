"""What a person gets wrong, stage by stage: exit status 1, one clear message, no traceback."""

import fcntl
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import toys

from deepcv.data import exclusions, manifest, packing
from deepcv.data.sources import open_source
from deepcv.data.splits import SplitRule
from deepcv.files import sha256


class Case(NamedTuple):
    stage: str
    spoil: Callable[[Path], None]
    message: str


def replace(file: str, old: str, new: str) -> Callable[[Path], None]:
    def spoil(project: Path) -> None:
        text = (project / file).read_text()
        assert old in text
        (project / file).write_text(text.replace(old, new, 1))

    return spoil


def truncate(file: str) -> Callable[[Path], None]:
    return lambda project: (project / file).write_bytes((project / file).read_bytes()[:-30])


def ingested(spoil: Callable[[Path], object]) -> Callable[[Path], None]:
    """Spoil a file of the source, and pack it anew."""

    def spoil_and_pack(project: Path) -> None:
        spoil(project)
        pack(project)

    return spoil_and_pack


def remove(folder: str) -> Callable[[Path], None]:
    return lambda project: shutil.rmtree(project / folder)


# Of a failed validation: what to look at, and nothing that `preprocess` waits for.
REPORTS = {
    "data/validation/candidate.parquet", "data/validation/data_docs.html", "data/validation/flagged.html",
    "reports/data/gallery.png", "reports/data/index.html",
}  # fmt: skip

CASES = {
    "path not there": Case("ingest", remove("pets"), r"ingest: pets: there is no such file or folder \(ingest\.path"),
    "truncated image": Case(
        "validate", ingested(truncate("pets/dog/3.png")),
        r"validate: the data fails 1 expectations.*\n  1 file is no image; repair or remove each.*\n    dog/3\.png: not a whole",
    ),
    "no image at all": Case(
        "validate", ingested(lambda project: (project / "pets/dog/3.png").write_text("Read me")),
        r"validate: the data fails 1 expectations.*\n.*quarantine.*\n    dog/3\.png: .*it begins with b'Read me'",
    ),
    "misspelt key": Case("ingest", replace("params.yaml", "seed:", "sead:"), r"ingest: params\.yaml:\d+: .*seed"),
    "library version": Case(
        "ingest", replace("versions.yaml", 'numpy: "', 'numpy: "9.'),
        r"ingest: .* has numpy [\d.]+ \(versions\.yaml: 9\.[\d.]+\); DVC would record the wrong version",
    ),
    "failed expectation": Case(
        "validate", replace("params.yaml", "min_images: 10", "min_images: 1000"),
        r"validate: the data fails 1 expectations.*\n  images is 16, expected at least 1000",
    ),
    "damaged raw data": Case("preprocess", truncate("data/raw/images.bin"), r"preprocess: data/raw/images\.bin: damaged at"),
    "network misfit": Case(
        "train", replace("network.yaml", "op: global_avg_pool", "op: max_pool, kernel: 99"),
        r"train: network\.yaml:\d+: .*pool.*\n?.*99",
    ),
    "network of other classes": Case(
        "train", replace("network.yaml", "$classes", "7"),
        r"train: network\.yaml:\d+: node 'head': the output logits must be \(2\), one number per class, got \(7,\)",
    ),
    "damaged shard": Case(
        "train", truncate("data/shards/val_images.npy"), r"train: data/shards/val_images\.npy: damaged.*dvc repro preprocess"
    ),
}  # fmt: skip


def pack(project: Path) -> None:
    source = open_source(project / "pets", project)
    packing.pack(
        source.samples(), source.classes, project / "data/raw", name="pets", source="pets",
        rule=SplitRule(0.2, 0.2, 0),
    )  # fmt: skip


def create(project: Path, store: Path) -> None:
    """A project whose stages have run up to `preprocess`, with a data set of two classes."""
    names = [f"{c}/{n}.png" for c in ("cat", "dog") for n in range(8)]
    toys.write_images(project / "pets", names)
    (project / "data/raw").mkdir(parents=True)
    pack(project)
    toys.write_shards(project / "data/shards")
    # With the parameter that params.yaml sets: its 16 gives the 4 channels of the toy.
    toys.network(project, "parameters: {width: 16}\n" + toys.NETWORK.replace("channels: 4", "channels: $width // 4"))
    toys.no_weights(project)
    for name in ("dvc.yaml", "params.yaml", "versions.yaml"):
        shutil.copy(toys.REPOSITORY / name, project)
    replace("params.yaml", "data/sources/digits.yaml", "pets")(project)
    replace("params.yaml", "networks/digits.yaml", "network.yaml")(project)
    shutil.copytree(store, project / ".deepcv")
    (project / "data/validation").mkdir(parents=True)
    (project / "data/validation/quarantine.csv").write_text("id,check,reason\n")


def snapshot(project: Path) -> dict[str, bytes]:
    files = [path for top in ("data", "reports") for path in (project / top).rglob("*") if path.is_file()]
    return {str(path.relative_to(project)): path.read_bytes() for path in files}


class Outcome(NamedTuple):
    status: int
    stderr: str
    before: dict[str, bytes]
    after: dict[str, bytes]


@pytest.fixture(scope="module")
def outcomes(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Every case in a project of its own; two at a time, since imports take most of it."""
    whole = tmp_path_factory.mktemp("whole") / "project"
    whole.mkdir()
    create(whole, empty_store)
    environment = {key: value for key, value in os.environ.items() if key != "DEEPCV_HOME"}

    def run(name: str) -> Outcome:
        project = tmp_path_factory.getbasetemp() / f"bad input, {name}"
        shutil.copytree(whole, project)
        CASES[name].spoil(project)
        before = snapshot(project)
        done = subprocess.run(
            [sys.executable, "-m", f"deepcv.stages.{CASES[name].stage}"],
            cwd=project, env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        return Outcome(done.returncode, done.stderr, before, snapshot(project))

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(CASES, pool.map(run, CASES), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_clear_message(name: str, outcomes: dict[str, Outcome]) -> None:
    found = outcomes[name]
    assert found.status == 1, found.stderr
    assert re.search(rf"^{CASES[name].message}", found.stderr, re.MULTILINE), found.stderr
    assert "Traceback" not in found.stderr
    said = re.sub(r"^.*\r|^.*it/s\]|^.*image/s\]", "", found.stderr, flags=re.MULTILINE)  # progress bars
    assert said.count(f"{CASES[name].stage}: ") <= 2, said  # the message, perhaps a word about the Python


@pytest.mark.parametrize("name", CASES)
def test_bad_input_changes_no_output(name: str, outcomes: dict[str, Outcome]) -> None:
    found = outcomes[name]
    written = {path for path in found.after if found.after[path] != found.before.get(path)}
    judged = CASES[name].stage == "validate"
    assert written == (REPORTS if judged else set())
    assert set(found.before) <= set(found.after)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """A project whose dataset is a folder of 16 images."""
    project = tmp_path / "project"
    toys.write_images(project / "pets", [f"{c}/{n}.png" for c in ("cat", "dog") for n in range(8)])
    for name in ("dvc.yaml", "params.yaml", "versions.yaml"):
        shutil.copy(toys.REPOSITORY / name, project)
    replace("params.yaml", "data/sources/digits.yaml", "pets")(project)
    (project / "data").mkdir()
    return project


def ingest(project: Path, preexec_fn: Callable[[], None] | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "deepcv.stages.ingest"],
        cwd=project, capture_output=True, text=True, timeout=120, check=False, preexec_fn=preexec_fn,
    )  # fmt: skip


def test_a_second_ingest_is_refused_and_damages_nothing(pets: Path) -> None:
    (pets / "data/.raw.tmp").mkdir()
    (pets / "data/.raw.tmp/images.bin").write_bytes(b"of the first")
    holder = os.open(pets / "data", os.O_RDONLY)  # as the first one does while it works
    fcntl.flock(holder, fcntl.LOCK_EX)
    try:
        done = ingest(pets)
    finally:
        os.close(holder)
    assert (done.returncode, done.stdout) == (1, "")
    assert "ingest: another ingest writes data/raw of this project; wait until it has ended" in done.stderr
    assert "Traceback" not in done.stderr
    assert (pets / "data/.raw.tmp/images.bin").read_bytes() == b"of the first"
    assert ingest(pets).returncode == 0
    assert {path.name for path in (pets / "data").iterdir()} == {"raw"}


def test_a_full_disk_is_one_message_and_the_old_dataset_stays(pets: Path) -> None:
    assert ingest(pets).returncode == 0
    before = snapshot(pets)
    limit = 200  # bytes of a file, as on a disk with so much room; one picture takes some 80
    done = ingest(pets, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert done.returncode == 1
    assert "ingest: no room left on the disk" in done.stderr
    assert "what was there before is whole" in done.stderr
    assert "Traceback" not in done.stderr
    assert snapshot(pets) == before


def test_classes_get_the_names_of_params(pets: Path) -> None:
    replace("params.yaml", "labels: {} ", "labels: {cat: 10, dog: animal}")(pets)
    assert re.search(r"params\.yaml:\d+: ingest\.labels\.cat: must be text", ingest(pets).stderr)
    replace("params.yaml", "cat: 10", "cat: '10'")(pets)
    done = ingest(pets)
    assert done.returncode == 0, done.stderr
    rows, info = manifest.read(pets / "data/raw")
    assert info.classes == ("10", "animal")
    assert set(zip(rows["id"].str[:3], rows["label"], strict=True)) == {("cat", "10"), ("dog", "animal")}


def test_excluded_images_are_left_out_under_every_name(pets: Path) -> None:
    shutil.copy(pets / "pets/cat/3.png", pets / "pets/cat/again.png")
    exclusions.add(pets / exclusions.FILE, sha256(pets / "pets/cat/3.png"))
    done = ingest(pets)
    assert done.returncode == 0, done.stderr
    assert "data/exclusions.txt: 2 images left out\n" in done.stdout
    ids = set(manifest.read(pets / "data/raw")[0]["id"])
    assert len(ids) == 15
    assert not ids & {"cat/3.png", "cat/again.png"}


def test_an_excluded_image_is_left_out_though_its_box_leaves_it(pets: Path) -> None:
    names = [f"{number}.png" for number in range(16)]
    shutil.rmtree(pets / "pets")
    toys.write_images(pets / "pets/images", names)
    rows = [{"image_id": n, "category_id": n % 2, "bbox": [0, 0, 4, 99 if n == 3 else 4]} for n in range(16)]
    content = {
        "images": [{"id": n, "file_name": name} for n, name in enumerate(names)],
        "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}], "annotations": rows,
    }  # fmt: skip
    (pets / "pets/annotations.json").write_text(json.dumps(content))
    (pets / "pets/dataset.yaml").write_text("source: coco\n")
    assert "1 images that a box leaves: images/3.png" in ingest(pets).stderr
    exclusions.add(pets / exclusions.FILE, sha256(pets / "pets/images/3.png"))
    done = ingest(pets)
    assert done.returncode == 0, done.stderr
    ids = set(manifest.read(pets / "data/raw")[0]["id"])
    assert ids == {f"images/{name}" for name in names if name != "3.png"}
