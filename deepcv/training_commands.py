"""`deepcv preview`, `find-lr`, `resume`: the same thin door, to what comes before a training; nothing heavy is imported first."""

import argparse
import math
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcv.errors import DeepcvError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from deepcv.data.shards import Dataset
    from deepcv.nn.weights import Weights
    from deepcv.params.train import TrainParams
    from deepcv.training.config import TrainConfig
    from deepcv.training.range_search import Found
    from deepcv.training.setup import Setup

_PREVIEW = """\
Show what `train` in params.yaml will do with the prepared images in data/shards, without training: how each hyperparameter changes
over the epochs (schedules.png), and images as they go into the network, augmented and mixed (batch.png).

With --compile it also compiles the network and says what train.compile would save here.
"""
_FIND_LR = """\
Suggest train.lr for the network, data and section `train` of params.yaml: train for 100 steps while the learning rate rises
from --from to --to, look at the loss (Smith 2015; lr_find of fastai and Lightning), and forget that training.

Run it in the project folder after `dvc repro preprocess`; it reads data/shards as the stage `train` does, writes a plot
and changes no other file, but with --apply the suggestions go into params.yaml.
"""
_FIND_LR_EPILOG = """\
methods: what is read from the running mean of the loss. `train.lr` is the peak of a cycle, which may be higher than a rate that is
kept all the time (benchmarks/range_search.py compares them):
  minimum/3, minimum/10   a third, a tenth of the rate at which the loss is least
  steepest                the rate at which the loss falls fastest
  between                 the geometric mean of minimum/3 and steepest
  valley                  the middle of its longest fall; fastai's default, cautious

examples:
  deepcv find-lr                                         print a suggestion, draw reports/training/range.png
  deepcv find-lr --apply && dvc repro                    train with it
  deepcv find-lr --also momentum --also weight_decay     and then compare values of these, at that rate
"""
_RESUME = """\
Fetch the checkpoints and best models of an interrupted or ended training from its MLflow run, as they were put there with
`train.archive: true`, to where the stage `train` looks for them; each is held against its sha256. `dvc repro train` then goes on with
that training, where params, data and code are those of the run: of others it makes a training of its own. Where the hardware settings
are others, nothing is fetched, and it is said which params make them those of the run.

Where this machine's own checkpoints have come as far, nothing is fetched.
"""
_PARAMS, _SHARDS = Path("params.yaml"), Path("data/shards")
_HARDWARE = "hardware."  # so begin the names of a run's params that say what `auto` became
_DIGESTS = {"data_digest": f"{_SHARDS} holds other data", "network_sha256": "train.network makes another network"}
_WARM_UP, _TIMED = 3, 10  # steps of each side
_METHODS = ("between", "minimum/3", "minimum/10", "steepest", "valley")


def add_preview(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `deepcv preview`."""
    parser.description, parser.formatter_class = _PREVIEW, argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--out", type=Path, default=Path("reports/training"), metavar="FOLDER", help="default: reports/training"
    )
    parser.add_argument("--images", type=int, default=32, metavar="N", help="images of batch.png (default: 32)")
    parser.add_argument("--compile", action="store_true", help="time steps with and without train.compile (a minute)")
    parser.set_defaults(run=_preview)


def add_find_lr(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `deepcv find-lr`."""
    parser.description, parser.epilog = _FIND_LR, _FIND_LR_EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--also", choices=("momentum", "weight_decay"), action="append", default=[],
        help="compare values of this by short trainings at the suggested rate; may be given twice",
    )  # fmt: skip
    parser.add_argument("--method", choices=_METHODS, default=_METHODS[0], help="default: between; see below")
    parser.add_argument(
        "--from", dest="lowest", type=_rate, default=1e-6, metavar="RATE", help="of the first step (default: 1e-6)"
    )
    parser.add_argument(
        "--to", dest="highest", type=_rate, default=10.0, metavar="RATE", help="of the last step (default: 10)"
    )
    parser.add_argument(
        "--steps", type=_steps, default=100, metavar="N", help="steps of the optimizer, 20 to 10000 (default: 100)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("reports/training/range.png"), metavar="FILE",
        help="plot (default: reports/training/range.png)",
    )  # fmt: skip
    parser.add_argument("--apply", action="store_true", help="put the suggestions into params.yaml, comments kept")
    parser.set_defaults(run=_find_lr)


def add_resume(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `deepcv resume`."""
    parser.description, parser.formatter_class = _RESUME, argparse.RawDescriptionHelpFormatter
    parser.add_argument("run_id", metavar="RUN_ID", help="id of the MLflow run, as `make ui` shows it")
    parser.set_defaults(run=_resume)


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1000:
        raise argparse.ArgumentTypeError(f"expected a rate above 0 and of at most 1000, got {text!r}")
    return value


def _steps(text: str) -> int:
    if not text.isdecimal() or not 20 <= int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"expected a whole number from 20 to 10000, got {text!r}")
    return int(text)


def _set_up() -> "tuple[TrainParams, Dataset, TrainConfig, Setup]":
    """What the stage `train` would begin with in this folder."""
    from deepcv.data.shards import open_shards
    from deepcv.nn import spec
    from deepcv.params.base import load_section
    from deepcv.params.train import TrainParams
    from deepcv.training.config import TrainConfig
    from deepcv.training.setup import set_up
    from deepcv.training.start import Start

    params = load_section(TrainParams, _PARAMS)
    shards = open_shards(_SHARDS)
    network = spec.load(Path(params.network), params.network_parameters, params.network_choices)
    config = TrainConfig.of(params.configuration())
    return params, shards, config, set_up(network, shards, config, start=Start.read(Path(params.weights), _registered))


def _preview(options: argparse.Namespace) -> None:
    from deepcv.evaluation.figures import draw_schedules
    from deepcv.training.hyperparameters import Hyperparameters, Settings, scheduled
    from deepcv.training.preview import curves, draw_batch

    params, shards, config, setup = _set_up()
    steps = len(setup.loader)
    courses = scheduled(config, config.epochs * steps)
    hyperparameters = Hyperparameters(
        courses, config=config, settings=Settings.of(config), model=setup.classifier, optimizer=setup.optimizer,
        loader=setup.loader,
    )  # fmt: skip
    hyperparameters.begin_epoch(0, [])
    if config.progressive_resize.epochs(config.epochs):
        setup.loader.size = config.progressive_resize.size(*shards.input_shape[1:])
    drawn = curves(courses, config.epochs, steps)
    options.out.mkdir(parents=True, exist_ok=True)
    draw_schedules(drawn, options.out / "schedules.png")
    draw_batch(setup.loader, shards, options.out / "batch.png", options.images)
    setup.loader.size = None
    hardware = setup.hardware
    learned = sum(parameter.numel() for parameter in setup.classifier.parameters() if parameter.requires_grad)
    print(f"{shards.name}: {len(setup.loader.targets)} images, {len(shards.classes)} classes")
    print(f"{params.network}: {learned:,} parameters that learn, on {hardware.device} in {hardware.precision}")
    print(f"{config.epochs} epochs of {steps} batches of {setup.loader.batch_size}")
    for name, points in drawn.items():
        print(f"  {name}: {points[0][1]:.3g} to {points[-1][1]:.3g}")
    print(f"wrote {options.out / 'schedules.png'} and {options.out / 'batch.png'}")
    if options.compile:
        print(_compiled(setup, config))


def _compiled(setup: "Setup", config: "TrainConfig") -> str:
    """How long the passes of a batch take as they are and compiled, in turns, and what that means for this training."""
    import torch

    from deepcv.training.compilation import compiled
    from deepcv.training.hyperparameters import Settings
    from deepcv.training.setup import objective_of

    hardware, batch, objective = (
        setup.hardware,
        next(iter(setup.loader)),
        objective_of(setup, config, Settings.of(config)),
    )
    began_s = time.perf_counter()
    made = compiled(setup.classifier, config.compile or True, batch, hardware)
    compiling_s = time.perf_counter() - began_s
    if made is setup.classifier:
        return "train.compile: leave it at false"  # it said why
    models, spent_s = {"plain": setup.classifier, "compiled": made}, {"plain": list[float](), "compiled": list[float]()}
    for _ in range(_WARM_UP + _TIMED):
        for name, model in models.items():
            began_s = time.perf_counter()
            with hardware.autocast():
                loss = objective(model(batch.images_nchw), batch)
            loss.backward()
            if hardware.device == "cuda":
                torch.cuda.synchronize()
            spent_s[name].append(time.perf_counter() - began_s)
            model.zero_grad(set_to_none=True)
    plain_s, fast_s = (statistics.median(times_s[-_TIMED:]) for times_s in spent_s.values())
    saved_s = (plain_s - fast_s) * config.epochs * len(setup.loader) - compiling_s
    return (
        f"forward and backward of a batch: {1000 * plain_s:.1f} ms, compiled {1000 * fast_s:.1f} ms, after "
        f"{compiling_s:.0f} s of compiling\n"
        f"train.compile: {'true saves' if saved_s > 0 else 'false saves'} about {abs(saved_s):.0f} s of this training"
    )


def _find_lr(options: argparse.Namespace) -> None:
    from deepcv.evaluation import plots
    from deepcv.params import document, edit
    from deepcv.search.tuned import with_tuned
    from deepcv.training import range_search

    if options.lowest >= options.highest:
        raise DeepcvError(f"--from {options.lowest:g} must be below --to {options.highest:g}")
    _, shards, config, setup = _set_up()
    found = range_search.search(
        setup, config, shards.val, also=dict.fromkeys(options.also), method=options.method, lowest=options.lowest,
        highest=options.highest, steps=options.steps,
    )  # fmt: skip
    print(_table(found, config))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    plots.draw_range(
        found.trace.rates, {"of each step": found.trace.losses, "running mean": found.trace.smoothed},
        found.suggested["lr"],
        {
            name: ({trial.value: trial.val_loss for trial in trials}, found.suggested[name])
            for name, trials in found.trials.items()
        },
        options.out,
    )  # fmt: skip
    print(f"wrote {options.out}", file=sys.stderr)
    if options.apply:
        values = {f"train.{name}": value for name, value in found.suggested.items()}
        edit.write(_PARAMS, with_tuned(document.read(_PARAMS), values, str(_PARAMS)))
        print(f"{_PARAMS} has them now; `dvc repro` trains with them")


def _resume(options: argparse.Namespace) -> None:
    from deepcv import tracking
    from deepcv.params.base import load_section
    from deepcv.params.train import TrainParams
    from deepcv.stages import archive

    run_id = options.run_id
    run = tracking.read_run(run_id)
    if (key := run.data.tags.get(tracking.TRAINING_TAG)) is None:
        raise DeepcvError(f"MLflow run {run_id} ({run.info.run_name}) is none of the stage `train`")
    params = load_section(TrainParams, _PARAMS)
    _check_hardware(run_id, run.data.params, params)
    folder = archive.local_folder(key)
    fetched = archive.fetch(run_id, folder)
    steps = archive.steps(archive.files_of(folder))
    print(f"fetched {folder}" if fetched else f"nothing to fetch: {folder} is there, and as far as the run")
    commit = run.data.tags.get("mlflow.source.git.commit") or "unknown"
    print(
        f"`dvc repro train` goes on after step {steps}, with the params, data and code of the run (git commit {commit})"
    )
    for difference in _differences(run.data.params, params):
        print(f"warning: {difference}", file=sys.stderr)


def _check_hardware(run_id: str, of_run: "Mapping[str, str]", params: "TrainParams") -> None:
    """Raise DeepcvError where the stage `train` would begin anew here, since `auto` becomes something else than in the run."""
    import torch

    from deepcv.tracking import flat
    from deepcv.training.config import TrainConfig
    from deepcv.training.hardware import resolve

    recorded = {name.removeprefix(_HARDWARE): value for name, value in of_run.items() if name.startswith(_HARDWARE)}
    if recorded.get("device") == "cuda" and not torch.cuda.is_available():
        raise DeepcvError(
            f"MLflow run {run_id} trained on a GPU, and torch sees none here: no other device can go on with it. Resume it on a "
            "machine with a GPU; its best models are among the run's artifacts checkpoints/"
        )
    config = TrainConfig.of(params.configuration())

    def here(device: Any) -> dict[str, str]:
        return flat(asdict(resolve(device, config.precision, config.channels_last, config.threads, config.processes)))

    # The rest is looked at on the device of the run: once that is set, it is what `auto` means.
    settings = here(recorded.get("device", config.device)) | {"device": here(config.device)["device"]}
    if other := {name: recorded[name] for name, value in settings.items() if recorded.get(name, value) != value}:
        raise DeepcvError(
            f"MLflow run {run_id} has {_listed(other)}, and this would be {_listed({name: settings[name] for name in other})} here: "
            f"another training would begin. Nothing is fetched; set {_listed(other, 'train.', ':')} in {_PARAMS} and resume again"
        )


def _listed(settings: "Mapping[str, str]", before: str = "", behind: str = "") -> str:
    return ", ".join(f"{before}{name}{behind} {value.lower()}" for name, value in settings.items())  # true, as in YAML


def _differences(of_run: "Mapping[str, str]", params: "TrainParams") -> "Iterator[str]":
    """Say what makes a training of its own of the next one, as far as it is known without opening the data."""
    from deepcv.files import sha256
    from deepcv.nn import spec
    from deepcv.tracking import flat

    now = flat(params.described())
    digests = {
        "network_sha256": spec.load(Path(params.network), params.network_parameters, params.network_choices).sha256()
    }
    if (description := _SHARDS / "dataset.json").exists():  # which names the digests of all files beside it
        digests["data_digest"] = sha256(description)
    then = {name: value for name, value in of_run.items() if not name.startswith((_HARDWARE, *_DIGESTS))}
    for name in sorted(now.keys() | then.keys()):
        if (one := then.get(name, "unset")) != (other := now.get(name, "unset")):
            yield f"train.{name} is {one} in the run, {other} in {_PARAMS}"
    for name, digest in digests.items():
        if of_run.get(name, digest) != digest:
            yield f"{_DIGESTS[name]} than the run has"


def _table(found: "Found", config: "TrainConfig") -> str:
    """The suggestions, beside what params have and what they were read from."""
    from deepcv.training.hyperparameters import initial
    from deepcv.training.range_search import suggestions

    trace = found.trace
    others = ", ".join(f"{method} {rate:.2g}" for method, rate in suggestions(trace).items())
    end = f"diverged at {trace.rates[-1]:.2g}" if trace.diverged else f"did not diverge up to {trace.rates[-1]:.2g}"
    rows = [("", "now", "suggested", ""), ("lr", f"{config.lr:g}", f"{found.suggested['lr']:g}", f"{end}; {others}")]
    for name, trials in found.trials.items():
        now, value = initial(config, name), found.suggested[name]
        why = "val loss " + ", ".join(f"{trial.value:g}: {trial.val_loss:.4f}" for trial in trials)
        kept = "; kept: no other is better by more than chance" if value == now else ""
        rows.append((name, f"{now:g}", f"{value:g}", why + kept))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _registered(uri: str) -> "Weights":
    from deepcv import network_registry  # imports MLflow

    return network_registry.weights(uri)
