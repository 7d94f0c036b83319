"""In which recorded datasets an image lies: those of every git commit, of the workspace and of DVC's run cache.

An image is its bytes, known by their sha256: a resized or newly encoded copy is another image.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from deepcv.data import revisions
from deepcv.data.manifest import SPLITS
from deepcv.data.revisions import RAW, SHARDS, WORKSPACE
from deepcv.data.samples import DataError
from deepcv.files import sha256

_SHORTEST = 4  # digits of a sha256's beginning, as in git


@dataclass(frozen=True)
class Recorded:
    """A dataset by the md5 of its data/raw, and the md5s of the data/shards that were made from it.

    `by` says whose dvc.lock names it: "workspace", then commits (short hash and subject), the newest first; it is empty
    where only DVC's run cache does.
    """

    raw: str
    shards: set[str] = field(default_factory=set)
    by: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """One row of a manifest."""

    id: str
    split: str
    label: str


@dataclass(frozen=True)
class Sighting:
    """A dataset that holds the image; `data_digests` are what trainings on it record of their data.

    There are fewer of them than `dataset.shards` where DVC's cache lacks some.
    """

    dataset: Recorded
    places: tuple[Place, ...]
    data_digests: tuple[str, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that hold the image, train first."""
        return tuple(sorted({place.split for place in self.places}, key=SPLITS.index))


@dataclass(frozen=True)
class Found:
    """An image's sha256, the datasets that hold it, how many were searched, and those that DVC's cache lacks."""

    sha256: str
    sightings: tuple[Sighting, ...]
    searched: int
    unread: tuple[Recorded, ...]


def find(image: str, project: Path) -> Found:
    """Look for a file's bytes, a sha256 or its beginning in every recorded dataset of the project. Raises DataError."""
    wanted = digest_or_prefix(image)
    cache = revisions.cache_dir(project)
    return search(wanted, recorded(project, cache), cache)


def digest_or_prefix(image: str) -> str:
    """Return the sha256 of a file's bytes, or what was given where it is the beginning of one. Raises DataError."""
    path = Path(image)
    if path.is_file():
        return sha256(path)
    if path.is_dir():
        raise DataError(f"{image}: expected one image file, got a folder")
    if re.fullmatch(rf"[0-9a-fA-F]{{{_SHORTEST},64}}", image):
        return image.lower()
    raise DataError(
        f"{image}: expected an image file or a sha256 (its first {_SHORTEST} to 64 hexadecimal digits), and it is neither"
    )


def search(wanted: str, datasets: Iterable[Recorded], cache: Path) -> Found:
    """Look for the image whose sha256 begins with `wanted`. Raises DataError where none does, or more than one."""
    places: list[tuple[Recorded, dict[str, list[Place]]]] = []
    unread: list[Recorded] = []
    for dataset in datasets:
        manifest = revisions.cached_files(cache, dataset.raw).get("manifest.parquet")
        if manifest is None:
            unread.append(dataset)
        else:
            places.append((dataset, places_of(manifest, wanted)))
    images = sorted({image for _, by_image in places for image in by_image})
    if not images:
        raise DataError(
            f"sha256 {wanted}: none of the {len(places)} recorded datasets holds this image (byte for byte)"
            + (f"; DVC's cache lacks {len(unread)} more: `dvc fetch --all-commits {RAW} {SHARDS}`" if unread else "")
        )
    if len(images) > 1:
        shown = ", ".join(images[:3]) + (f" and {len(images) - 3} more" if len(images) > 3 else "")
        raise DataError(f"sha256 {wanted}…: {len(images)} images begin so; give more digits of one: {shown}")
    sightings = tuple(
        Sighting(dataset, tuple(by_image[images[0]]), tuple(data_digests(dataset, cache)))
        for dataset, by_image in places
        if by_image
    )
    return Found(images[0], sightings, searched=len(places), unread=tuple(unread))


def places_of(manifest: Path, wanted: str) -> dict[str, list[Place]]:
    """Map each sha256 of a manifest that begins with `wanted` to its rows. Raises DataError."""
    try:
        column = pq.read_table(manifest, columns=["sha256"]).column("sha256")
        rows = pc.indices_nonzero(pc.equal(column, wanted) if len(wanted) == 64 else pc.starts_with(column, wanted))
        if not len(rows):
            return {}
        table = pq.read_table(manifest, columns=["sha256", "id", "split", "label"]).take(rows)
    except (KeyError, ValueError, OSError) as error:
        raise DataError(f"{manifest}: expected a manifest, it cannot be read ({error}); run `dvc fetch`") from error
    places: defaultdict[str, list[Place]] = defaultdict(list)
    for row in table.to_pylist():
        places[row["sha256"]].append(Place(row["id"], row["split"], row["label"]))
    return dict(places)


def data_digests(dataset: Recorded, cache: Path) -> Iterator[str]:
    """Yield the digest of each data/shards made from a dataset, as a training on it records it (`shards.Dataset.digest`)."""
    for folder in sorted(dataset.shards):
        description = revisions.cached_files(cache, folder).get("dataset.json")
        if description is not None:
            yield sha256(description)


def recorded(project: Path, cache: Path) -> list[Recorded]:
    """Return every dataset that git or DVC's run cache knows, that of the workspace first, then the newest first."""
    datasets: dict[str, Recorded] = {}
    for lock, recorder in _locks(project):
        for raw in _note(_stages(lock), datasets):
            datasets[raw].by.append(recorder)
    for entry in sorted(cache.glob("runs/*/*/*")):
        text = entry.read_bytes()
        if f"path: {RAW}".encode() in text:  # reading all of them as YAML takes ten times as long
            _note(_entry(text), datasets)
    return list(datasets.values())


def _note(stages: list[object], datasets: dict[str, Recorded]) -> set[str]:
    """Add the datasets that these stages made or used, with the shards made from them, and return their md5s."""
    made: set[str] = set()
    for stage in stages:
        try:
            deps, outs = revisions.digests_in_stage(stage, "deps"), revisions.digests_in_stage(stage, "outs")
        except ValueError:
            continue
        for raw in {side[RAW] for side in (deps, outs) if RAW in side}:
            dataset = datasets.setdefault(raw, Recorded(raw))
            made.add(raw)
            if SHARDS in outs:
                dataset.shards.add(outs[SHARDS])
    return made


def _locks(project: Path) -> Iterator[tuple[bytes, str]]:
    """Yield each dvc.lock and whose it is: the workspace's, and that of each commit that changed it, on all branches,
    tags and experiments.
    """
    lock = project / "dvc.lock"
    if lock.is_file():
        yield lock.read_bytes(), WORKSPACE
    logged = revisions.git(project, "log", "--all", "--full-history", "--format=%H %h %s", "--", "dvc.lock")
    if logged.returncode != 0:
        return  # no git repository, or one without a commit: the workspace and the run cache are what there is
    commits = [line.split(" ", 1) for line in logged.stdout.decode(errors="replace").split("\n") if line]
    asked = "".join(f"{commit}:./dvc.lock\n" for commit, _ in commits)
    answer = revisions.git(project, "cat-file", "--batch", given=asked.encode()).stdout
    start = 0
    for _, told in commits:
        end = answer.index(b"\n", start)
        words = answer[start:end].split(
            b" "
        )  # "<hash> blob <size>", or "<what was asked> missing" where it was deleted
        start = end + 1
        if words[-2:-1] == [b"blob"]:
            size = int(words[-1])
            yield answer[start : start + size], told
            start += size + 1


def _stages(lock: bytes) -> list[object]:
    try:
        return revisions.stages_of(lock)
    except ValueError:
        return []  # half-written or in conflict: it recorded nothing


def _entry(text: bytes) -> list[object]:
    try:
        return [revisions.parse(text)]
    except ValueError:
        return []
