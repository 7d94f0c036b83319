"""`deepcv …`: a thin door to the library; nothing heavy is imported before a command runs."""

import argparse
import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from deepcv import data_commands, network_commands, training_commands
from deepcv.errors import DeepcvError

_DESCRIPTION = """\
DeepCV takes a folder of images and one params.yaml to a validated, trained, tracked, registered and served model.

  deepcv init FOLDER        look at your images, propose params.yaml
  dvc repro                 run the pipeline: ingest, validate, preprocess, train, evaluate, export, register
  deepcv predict FOLDER     label images with the champion
"""
_EPILOG = """\
The pipeline itself is DVC's: dvc dag, dvc metrics show, dvc plots show, dvc exp run -S train.epochs=2.
`make ui` opens Prefect and MLflow, `make deploy` schedules the pipeline.
"""
_INIT_DESCRIPTION = """\
Look at images and set params.yaml: classes, size, split, a network, batch and epochs that fit this machine. Comments and
other values are kept. Images lie in <class>/ or <split>/<class>/ folders, as YOLO or WebDataset, or in a tar or zip of these.

A table (CSV, parquet), COCO or Pascal VOC is read as a dataset.yaml at the folder's root says, such as
  source: table
  path: labels.csv
  images: images
Where it is missing, init proposes one. docs/data.md shows every format with its keys.
"""
_INIT_EPILOG = """\
example: deepcv init data/incoming/birds --dataset birds, then dvc repro
"""
PARAMS = Path("params.yaml")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; an error that a person can mend becomes one message and exit status 1."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
        if sys.stdout is not None:  # closed by the shell: `>&-`
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader has gone, as in `| head`: what is still to be written at exit goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (DeepcvError, OSError) as error:
        sys.exit(f"deepcv: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "deepcv", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    check = commands.add_parser("check", help="validate the whole params.yaml")
    check.add_argument("file", nargs="?", type=Path, default=PARAMS, help="default: params.yaml")
    check.set_defaults(run=_check)

    init = commands.add_parser(
        "init", help="look at a folder (tar, zip) of images and write params.yaml",
        description=_INIT_DESCRIPTION, epilog=_INIT_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    init.add_argument("folder", type=Path, help="folder, tar or zip, or a YAML file of data/sources/")
    init.add_argument("--dataset", metavar="NAME", help="name of the dataset; the registered model is deepcv-NAME")
    init.add_argument("--force", action="store_true", help="also when params.yaml has changes that git does not know")
    init.set_defaults(run=_init)

    predict = commands.add_parser(
        "predict", help="label image files with a registered model",
        description="Write predictions.csv and predictions.png for image files and all images below folders.",
    )  # fmt: skip
    predict.add_argument("paths", nargs="+", type=Path, metavar="FILE|FOLDER")
    predict.add_argument("--model", help="default: models:/deepcv-<dataset of params.yaml>@champion")
    predict.add_argument(
        "--out", type=Path, default=Path("predictions"), help="folder of the results (default: predictions)"
    )
    predict.set_defaults(run=_predict)

    search = commands.add_parser(
        "search", help="search better train parameters with NNI",
        description="Run the trials of section `search` of params.yaml (TPE, medianstop); each is a nested MLflow run.",
    )  # fmt: skip
    search.add_argument("--apply", action="store_true", help="put the best values into params.yaml, comments kept")
    search.set_defaults(run=_search)
    data_commands.add_to(
        commands.add_parser(
            "data",
            help="compare datasets, find drift, find what saw an image",
            description=data_commands.TITLE,
            epilog=data_commands.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    network_commands.add_to(
        commands.add_parser("profile", help="what a network costs: MACs, memory, time, node by node")
    )
    network_commands.add_ops(commands.add_parser("ops", help="what a node of a network file can be, op by op"))
    training_commands.add_find_lr(
        commands.add_parser("find-lr", help="suggest a learning rate, from 100 steps of training")
    )
    training_commands.add_preview(
        commands.add_parser("preview", help="how hyperparameters will change, and a batch as the network sees it")
    )
    training_commands.add_resume(
        commands.add_parser("resume", help="fetch a training's checkpoints from its MLflow run, to go on with it")
    )
    return parser


def _check(options: argparse.Namespace) -> None:
    from deepcv import receipts, recovery
    from deepcv.home import NoProjectError
    from deepcv.params import whole

    whole.load(options.file)
    with contextlib.suppress(NoProjectError):  # a params file may be checked anywhere
        receipts.drop_orphan()
        for told in recovery.mend():
            print(told, file=sys.stderr)
    print(f"{options.file}: valid")


def _init(options: argparse.Namespace) -> None:
    from deepcv import scaffold
    from deepcv.home import state_dir
    from deepcv.nn import spec
    from deepcv.params import document, edit, whole

    if not options.force and _has_changes(PARAMS):
        raise DeepcvError(f"{PARAMS} has changes that git does not know; commit them, or overwrite with --force")
    document.read(PARAMS)  # outside a project, say so before anything else
    findings = scaffold.look(options.folder, state_dir() / "downloads")
    print(f"found {scaffold.describe(findings)}")
    proposal = scaffold.propose(str(options.folder), findings)
    if options.dataset:
        proposal.values["ingest.dataset"] = options.dataset
    text = scaffold.write(PARAMS, findings, proposal)
    params = whole.loads(text, str(PARAMS))
    # Values for another network may be among those that were kept.
    spec.load(params.train.network, params.train.network_parameters, params.train.network_choices)
    edit.write(PARAMS, text)
    for key, value in proposal.values.items():
        print(f"  {key}: {value}")
    if kept := scaffold.left_over(params):
        print(f"warning: {' and '.join(kept)} stay as they were; see whether they fit this dataset", file=sys.stderr)
    print(
        f"wrote {PARAMS}; training should take about {proposal.training_s / 60:.0f} minutes here. Next:\n\n  dvc repro\n"
    )


def _has_changes(path: Path) -> bool:
    """Whether git, where there is one, could not bring this file back."""
    command = ["git", "status", "--porcelain", "--", str(path)]
    try:
        status = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - a fixed command
    except FileNotFoundError:
        return False
    return status.returncode == 0 and bool(status.stdout.strip())


def _predict(options: argparse.Namespace) -> None:
    from deepcv import registry, tracking
    from deepcv.params.base import load_section
    from deepcv.params.ingest import IngestParams
    from deepcv.serving import batch

    files = batch.image_files(options.paths, options.out)
    uri = options.model or f"models:/{tracking.experiment_of(load_section(IngestParams, PARAMS).dataset)}@champion"
    predictions = list(batch.predict_files(registry.load(uri), files))
    batch.write_csv(options.out / "predictions.csv", predictions)
    batch.write_sheet(options.out / "predictions.png", predictions)
    failed = [p for p in predictions if p.error]
    written = [str(path) for path in sorted(options.out.glob("predictions.*")) if path.suffix in {".csv", ".png"}]
    print(f"{uri}: {len(predictions) - len(failed)} images -> {', '.join(written)}")
    if failed:
        print(f"{len(failed)} files could not be read, the first: {failed[0].path}: {failed[0].error}", file=sys.stderr)
    if len(failed) == len(predictions):
        sys.exit(1)


def _search(options: argparse.Namespace) -> None:
    from deepcv import tracking
    from deepcv.params import whole
    from deepcv.search import run

    params = whole.load(PARAMS)
    run.search(
        params.search,
        experiment=tracking.experiment_of(params.ingest.dataset),
        epochs=params.train.epochs,
        params_path=PARAMS,
        apply=options.apply,
        say=print,
    )


if __name__ == "__main__":
    main()
