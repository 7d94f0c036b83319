"""Which runs and registered models saw an image, linked by content: a training records the digest of its data/shards.

A version whose run was erased from the database (`mlflow gc`) is not found.
"""

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from deepcv import tracking
from deepcv.data.exclusions import FILE as EXCLUSIONS
from deepcv.data.markup import visible
from deepcv.data.revisions import RAW, SHARDS, WORKSPACE
from deepcv.data.sightings import Found, Recorded, Sighting
from deepcv.errors import DeepcvError
from deepcv.home import state_dir
from deepcv.receipts import database_file

# What having an image in a split means for a model. Only train moves its weights.
_MEANS = {
    "train": "trained on it",
    "val": "not trained on it; its val scores count it, and so what people or searches chose by them",
    "test": "not trained on it; its test scores count it",
}
# What shows images, of a run's artifacts and of a project.
_PICTURES = ("preview/batch.png", "data/gallery.png", "evaluation/mistakes.png", "evaluation/confident_mistakes.png")
_PAGES = (
    "reports/**/*.html", "reports/**/batch.png", "reports/**/gallery.png", "data/validation/flagged.html",
    "data/evaluation/*mistakes.png",
)  # fmt: skip


@dataclass(frozen=True)
class Version:
    """A registered model version; `aliases` are e.g. ("champion",)."""

    name: str
    number: str
    aliases: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} version {self.number}" + "".join(f" @{alias}" for alias in self.aliases)


@dataclass(frozen=True)
class Training:
    """An MLflow run of `train` or of a search's trial, and the versions that were registered from its model."""

    run_id: str
    experiment: str
    status: str
    started: str
    versions: tuple[Version, ...]


@dataclass(frozen=True)
class Witness:
    """A dataset that holds the image, with the trainings on it."""

    sighting: Sighting
    trainings: tuple[Training, ...]

    @property
    def trained(self) -> bool:
        """Whether these trainings had the image in their train split."""
        return "train" in self.sighting.splits


def witnesses(found: Found) -> list[Witness]:
    """Look up the trainings on each dataset that holds the image. Raises DeepcvError where MLflow does not answer."""
    try:
        return [Witness(sighting, tuple(trainings(sighting.data_digests))) for sighting in found.sightings]
    except tracking.TrackingError as error:
        raise DeepcvError(
            f"MLflow does not answer: {tracking.reason(error)}. Run this again when {database_file()} can be read"
        ) from error


def trainings(data_digests: Iterable[str]) -> Iterator[Training]:
    """Yield the runs, deleted ones too, that recorded one of these digests of their data, the newest first."""
    if not database_file().exists():
        return  # asking MLflow would create it
    client = tracking.connect()
    names = {e.experiment_id: e.name for e in client.search_experiments(ViewType.ALL)}
    for digest in data_digests:
        token: str | None = ""
        while token is not None:
            page = client.search_runs(
                list(names), f"params.data_digest = '{digest}'", ViewType.ALL, page_token=token or None
            )
            for run in page:
                started = datetime.fromtimestamp(run.info.start_time / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
                status = run.info.status + (", deleted" if run.info.lifecycle_stage == "deleted" else "")
                status += ", a search's trial, which kept no model" if tracking.PARENT_TAG in run.data.tags else ""
                yield Training(
                    run.info.run_id, names[run.info.experiment_id], status, started, tuple(_versions(client, run))
                )
            token = page.token or None


def _versions(client: MlflowClient, run: Run) -> Iterator[Version]:
    """Yield the versions of the model that a run trained."""
    model = run.data.tags.get(tracking.MODEL_TAG)
    if model is None:
        return  # it is running or failed
    for version in client.search_model_versions(f"tags.`{tracking.MODEL_TAG}` = '{model}'"):
        aliases = client.get_registered_model(version.name).aliases
        mine = sorted(alias for alias, number in aliases.items() if str(number) == str(version.version))
        yield Version(version.name, str(version.version), tuple(mine))


def describe(found: Found, seen: list[Witness]) -> str:
    """Say which datasets hold the image, in which split, and what was trained on each."""
    lines = [f"sha256 {found.sha256}", f"held by {len(seen)} of {found.searched} recorded datasets"]
    for witness in seen:
        sighting = witness.sighting
        lines += ["", f"dataset {sighting.dataset.raw[:12]}, recorded by {_recorders(sighting.dataset)}"]
        lines += [f"  {place.split}: {visible(place.id)}, label {visible(place.label)}" for place in sighting.places]
        lines += [f"  {line}" for line in _trainings(witness)]
    return "\n".join([*lines, *_caveats(found)])


def _trainings(witness: Witness) -> Iterator[str]:
    meaning = _MEANS[witness.sighting.splits[0]]
    if not witness.trainings:
        yield "no run in MLflow is known to have used this dataset"
    for training in witness.trainings:
        yield f"run {training.run_id} ({training.experiment}, {training.started}, {training.status}): {meaning}"
        yield from (f"  {version}" for version in training.versions)


def _recorders(dataset: Recorded) -> str:
    if not dataset.by:
        return "DVC's run cache alone"
    commits = [visible(name) for name in dataset.by if name != WORKSPACE]
    told = ["the workspace"] if WORKSPACE in dataset.by else []
    if commits:
        told.append(f"commit {commits[0]}" + (f" and {len(commits) - 1} older" if len(commits) > 1 else ""))
    return ", ".join(told)


def _caveats(found: Found) -> Iterator[str]:
    if found.unread:
        yield ""
        yield (
            f"Recorded datasets that DVC's cache lacks, so that they were not searched: {len(found.unread)}. "
            f"`dvc fetch --all-commits {RAW} {SHARDS}` gets them"
        )
    if lacking := sum(len(s.data_digests) < len(s.dataset.shards) for s in found.sightings):
        yield ""
        yield (
            f"Datasets whose {SHARDS} DVC's cache lacks, so that runs on them may be missing here: {lacking}. "
            f"`dvc fetch --all-commits {SHARDS}` gets them"
        )
    if not database_file().exists():
        yield ""
        yield f"There is no MLflow database ({database_file()}): no run is known here."


def pictures(seen: list[Witness], project: Path) -> list[str]:
    """Say where pictures lie that show some images of the datasets, the image perhaps among them: in the runs' artifacts, in
    Prefect, in reports, in what a killed `preprocess` left. Raises DeepcvError where MLflow does not answer.
    """
    found: list[str] = []
    try:
        for run_id in sorted({training.run_id for witness in seen for training in witness.trainings}):
            folders = sorted({picture.partition("/")[0] for picture in _PICTURES})
            there = {path for folder in folders for path in tracking.artifact_files(run_id, folder)}
            found += [str(tracking.artifact_file(run_id, path)) for path in _PICTURES if path in there]
    except tracking.TrackingError as error:
        raise DeepcvError(f"MLflow does not answer: {tracking.reason(error)}. Run this again when it does") from error
    found += _in_prefect(state_dir() / "prefect" / "prefect.db")
    found += sorted({str(path) for pattern in _PAGES for path in project.glob(pattern)})
    return found + [str(path) for path in sorted((state_dir() / "preprocess").glob("*/"))]


def _in_prefect(database: Path) -> Iterator[str]:
    """Name the image artifacts; its database is asked itself, for a server may not run."""
    if not database.exists():
        return
    asked = "SELECT key, count(*) FROM artifact WHERE type = 'image' GROUP BY key ORDER BY key"
    try:
        with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as store:
            rows = store.execute(asked).fetchall()
    except sqlite3.Error as error:
        yield f"{database}: image artifacts, if it has any (it cannot be read: {error})"
        return
    for key, count in rows:
        yield f"{database}: image artifacts: {count} (while `make ui` runs: `prefect artifact delete {key}`)"


def forgetting(
    found: Found, seen: list[Witness], source: Path, *, is_listed: bool, shown_in: Sequence[str] = ()
) -> str:
    """Return the plan to forget the image: how to leave it out, where it lies in `source` (ingest.path), what saw it,
    what retrains. `is_listed` says whether the exclusion list has it, `shown_in` is what `pictures` found.
    """
    ids = {place.id for w in seen if WORKSPACE in w.sighting.dataset.by for place in w.sighting.places}
    trained = {t.run_id: t for w in seen if w.trained for t in w.trainings}
    judged = {t.run_id for w in seen for t in w.trainings} - trained.keys()
    versions = sorted({v for t in trained.values() for v in t.versions}, key=lambda v: (v.name, int(v.number)))
    return "\n".join(
        [
            f"Plan to forget sha256 {found.sha256}" + ("" if is_listed else "; nothing is changed without --apply."), "",
            f"1. {EXCLUSIONS} lists it: `ingest` leaves it out, under any name" if is_listed else
            f"1. `deepcv data forget {found.sha256[:12]} --apply` lists it in {EXCLUSIONS}: `ingest` leaves it out, under any name",
            *_removal(source, sorted(ids), is_known=not any(WORKSPACE in dataset.by for dataset in found.unread)), "",
            f"3. What trained on it: registered versions: {len(versions)}, runs: {len(trained)}",
            *(f"   {version}" for version in versions),
            *(f"   run {run_id} ({training.started}, {training.status})" for run_id, training in trained.items()),
            *([f"   not trained on it, with it in val or test only: runs: {len(judged)}"] if judged else []), "",
            *_retraining(bool(ids), versions), "",
            "5. Older commits, DVC's cache and remotes keep their datasets, this image among them, and reports.",
            *_shown(shown_in),
            *_caveats(found),
        ]
    )  # fmt: skip


def _shown(places: Sequence[str]) -> Iterator[str]:
    yield "6. Pictures of some images, this one perhaps among them: " + (
        "delete those that no `dvc repro` writes anew" if places else "none were found"
    )
    yield from (f"   {visible(place)}" for place in places)
    yield "   and pages of `deepcv data diff --html` that were written elsewhere"


def _removal(source: Path, ids: list[str], *, is_known: bool = True) -> Iterator[str]:
    if not is_known:
        yield f"2. The workspace's dataset is not in DVC's cache: run `dvc fetch {RAW}` or `dvc repro`, then this again"
        return
    if not ids:
        yield f"2. {visible(str(source))} (ingest.path): nothing to remove, the workspace's dataset does not hold it"
        return
    how = {
        "folder": "to be rid of the image itself, delete these files (their names at the last ingest)",
        "tar": "to be rid of the image itself, pack it again without these members",
        "described": "a packaged dataset keeps the image itself; it lies there as",
    }[_kind(source)]
    yield f"2. {visible(str(source))} (ingest.path): {how}"
    yield from (f"   {visible(name)}" for name in ids)


def _kind(source: Path) -> str:
    if source.suffix in {".yaml", ".yml"}:
        return "described"
    return "folder" if source.is_dir() else "tar"


def _retraining(must_remove: bool, versions: list[Version]) -> Iterator[str]:
    if not must_remove and not versions:
        yield "4. Nothing has to be trained again"
        return
    yield f"4. Train {'then' if must_remove else 'on the dataset of the workspace, which is'} without it"
    yield "   dvc repro"
    if used := [str(version) for version in versions if version.aliases]:
        yield "   An alias moves only to a model that is not worse. Until then these stay in use:"
        yield from (f"     {version}" for version in used)
        yield "   To end that at once, move the alias or delete the version in MLflow: make ui"
