"""`deepcv data …`: the same thin door, to what is known of datasets; nothing heavy is imported before a command runs."""

import argparse
import contextlib
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

from deepcv.errors import DeepcvError

TITLE = "Compare datasets, find out which models saw an image, and leave one out."
EPILOG = """\
in the order in which new data is usually met:
  deepcv data drift data/raw ~/new      before: are the new images like those that the model learned from?
  dvc repro ingest                      put them where ingest.path points, and read them
  deepcv data diff --html diff.html     what changed since the last commit
  deepcv data who-saw ~/new/cat.jpg     later: which runs and models saw this image
  deepcv data forget ~/new/cat.jpg      what leaving it out would take; --apply, then dvc repro

docs/data.md shows the formats that ingest.path takes.
"""
_WHO_SAW_EPILOG = """\
examples:
  deepcv data who-saw photos/cat.jpg
  deepcv data who-saw 3f8c0a17          the first digits of a sha256, as data/raw/manifest.parquet has them
"""
_FORGET_EPILOG = """\
examples:
  deepcv data forget photos/cat.jpg             the plan alone
  deepcv data forget --apply photos/cat.jpg     list it in data/exclusions.txt; then dvc repro
"""
_DIFF_EPILOG = """\
examples:
  deepcv data diff                              what the last ingest changed, against the last commit
  deepcv data diff v1 main --html diff.html
"""
_DRIFT_DESCRIPTION = """\
Compare two collections of images: brightness, contrast, sharpness and the like, image sizes (Kolmogorov-Smirnov), class
shares (chi-square), and what a registered model sees in them (MMD). Each is a folder, a tar, a YAML file as ingest.path
takes it, or a packed folder such as data/raw; images without class folders will do, then class shares are skipped.

At most --sample images of each side are decoded, drawn by their content: the same input and seed give the same outcome.
Drift is what is significant after Holm's correction AND large: KS or Cramér's V of at least 0.1, relative MMD of at least 0.03.
"""
_DRIFT_EPILOG = """\
example: deepcv data drift data/raw ~/new --model none

exit status: 0 no drift found, 3 drift, 1 error (2: wrong command line)
"""
_DRIFTED = 3


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the commands below `deepcv data`."""
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    diff = commands.add_parser(
        "diff", help="what changed between the datasets of two git revisions",
        description=_wrapped(
        "Images added, removed, relabelled, renamed, moved between splits, with other pixels or other annotations, "
        "and the class shares of each split. Images are paired by name, what is left by content. Datasets come from DVC's "
        "cache: nothing is checked out."),
        epilog=_DIFF_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    diff.add_argument("before", nargs="?", default="HEAD", metavar="A", help="git revision (default: HEAD)")
    diff.add_argument(
        "after",
        nargs="?",
        default="workspace",
        metavar="B",
        help="git revision (default: workspace, your data/raw as last ingested)",
    )
    diff.add_argument(
        "--html", type=Path, metavar="FILE", help="also write a page with pictures, e.g. reports/data/diff/index.html"
    )
    diff.add_argument("--json", action="store_true", help="print all of it as JSON instead of a table")
    diff.add_argument(
        "--exit-code", action="store_true", help="exit status 1 where images differ, 0 where none does, 2 on an error"
    )
    diff.set_defaults(run=_diff)

    image = "an image file, or a sha256 (its first 4 digits at least)"
    who_saw = commands.add_parser(
        "who-saw", help="which datasets, runs and models saw an image",
        description=_wrapped(
        "Look for an image, byte for byte, in the datasets of all commits, of the workspace and of DVC's run "
        "cache, and list the MLflow runs and registered models of each. A model was trained on the train split "
        "only; by val and test images it was judged."),
        epilog=_WHO_SAW_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    who_saw.add_argument("image", metavar="SHA256|FILE", help=image)
    who_saw.set_defaults(run=_who_saw)

    forget = commands.add_parser(
        "forget", help="leave an image out, and what that takes",
        description=_wrapped(
        "Print where the image lies, which runs and registered models were trained on it, the commands that train again, "
        "and which pictures and reports may show it. Nothing is changed, but with --apply the image is listed in "
        "data/exclusions.txt: `ingest` leaves out what stands there, under any name."),
        epilog=_FORGET_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    forget.add_argument("image", metavar="SHA256|FILE", help=image)
    forget.add_argument("--apply", action="store_true", help="list the image in data/exclusions.txt")
    forget.set_defaults(run=_forget)

    drift = commands.add_parser(
        "drift", help="has the distribution of the images changed?",
        description=_DRIFT_DESCRIPTION, epilog=_DRIFT_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    drift.add_argument("reference", type=Path, metavar="REFERENCE", help="what NEW is compared with, such as data/raw")
    drift.add_argument(
        "new", type=Path, metavar="NEW", help="folder or tar of images, YAML file, or data/raw of a project"
    )
    drift.add_argument(
        "--model",
        metavar="URI|none",
        help="whose features are compared (default: the champion of params.yaml's dataset)",
    )
    drift.add_argument(
        "--sample", type=_whole(2, 20_000), default=2000, metavar="N", help="images of each side (default: 2000)"
    )
    drift.add_argument(
        "--alpha", type=_alpha, default=0.01, help="chance of any false alarm, 0.001 to 0.2 (default: 0.01)"
    )
    drift.add_argument(
        "--seed", type=_whole(0, 2**32 - 1), default=0, help="of the sample and the permutations (default: 0)"
    )
    drift.add_argument(
        "--out", type=Path, default=Path("reports/data/drift"), help="folder (default: reports/data/drift)"
    )
    drift.set_defaults(run=_drift)


def _wrapped(text: str) -> str:
    """As argparse does it itself where there are no examples to keep as they are."""
    return textwrap.fill(text, 100)


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} to {most}, got {text!r}")
        return int(text)

    return parse


def _alpha(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0.001 <= (value := float(text)) <= 0.2:
            return value
    raise argparse.ArgumentTypeError(f"expected a number from 0.001 to 0.2, got {text!r}")


def _diff(options: argparse.Namespace) -> None:
    from deepcv.data import diff, diff_page, revisions
    from deepcv.home import project_dir

    try:
        before, after = (revisions.snapshot(revision, project_dir()) for revision in (options.before, options.after))
        found = diff.report(before, after)
        if options.html:
            diff_page.write(options.html, found, before, after)
    except (DeepcvError, OSError) as error:
        if not options.exit_code:
            raise
        print(f"deepcv: {error}", file=sys.stderr)
        sys.exit(2)  # 1 would say that images differ
    print(diff.as_json(found) if options.json else diff.as_text(found))
    if options.html:
        print(f"wrote {options.html}", file=sys.stderr)
    if options.exit_code and not found.diff.is_empty:
        sys.exit(1)


def _who_saw(options: argparse.Namespace) -> None:
    from deepcv.data import sightings
    from deepcv.home import project_dir

    found = sightings.find(options.image, project_dir())

    from deepcv import provenance  # imports MLflow: not before the image is found

    print(provenance.describe(found, provenance.witnesses(found)))


def _forget(options: argparse.Namespace) -> None:
    from deepcv.data import exclusions, sightings
    from deepcv.home import project_dir
    from deepcv.params.base import load_section
    from deepcv.params.ingest import IngestParams

    project = project_dir()
    source = project / load_section(IngestParams, project / "params.yaml").path
    found = sightings.find(options.image, project)

    from deepcv import provenance

    seen = provenance.witnesses(found)
    shown_in = provenance.pictures(seen, project)
    if options.apply:
        exclusions.add(project / exclusions.FILE, found.sha256)
    is_listed = found.sha256 in exclusions.read(project / exclusions.FILE)
    print(provenance.forgetting(found, seen, source, is_listed=is_listed, shown_in=shown_in))


def _drift(options: argparse.Namespace) -> None:
    from deepcv.data.drift import compare
    from deepcv.monitoring import picture, report
    from deepcv.monitoring.look import Extractor, look

    extractor: Extractor | None = None
    model = "--model none"
    if options.model != "none":
        from deepcv.monitoring.model import find  # MLflow and onnxruntime, for seconds

        extractor, model = find(options.model, Path("params.yaml"))
    looks = [
        look(path, sample=options.sample, seed=options.seed, extractor=extractor)
        for path in (options.reference, options.new)
    ]
    comparison = compare(looks[0].side, looks[1].side, alpha=options.alpha, seed=options.seed)
    verdict = report.verdict(comparison)
    for name, one in zip(("REFERENCE", "NEW"), looks, strict=True):
        print(report.describe(name, one))
    print(f"model: {model if extractor else f'none ({model})'}\n\n{report.table(comparison)}\n\n{verdict}")
    picture.draw(options.out / "drift.png", verdict, comparison, looks[0].side, looks[1].side)
    report.write(
        options.out / "drift.json", comparison, *looks,
        model=model if extractor else "", sample=options.sample, seed=options.seed,
    )  # fmt: skip
    print(f"wrote {options.out / 'drift.json'}, {options.out / 'drift.png'}", flush=True)
    if comparison.drifted:
        sys.exit(_DRIFTED)
