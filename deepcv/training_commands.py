"""`deepcv preview`: the thin door to what a training will do; nothing heavy is imported before the command runs."""

import argparse
from pathlib import Path

_DESCRIPTION = """\
Show what `train` in params.yaml will do with the prepared images in data/shards, without training: how each hyperparameter changes
over the epochs (schedules.png), and images as they go into the network, augmented and mixed (batch.png).
"""


def add_preview(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `deepcv preview`."""
    parser.description, parser.formatter_class = _DESCRIPTION, argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--out", type=Path, default=Path("reports/training"), metavar="FOLDER", help="default: reports/training"
    )
    parser.add_argument("--images", type=int, default=32, metavar="N", help="images of batch.png (default: 32)")
    parser.set_defaults(run=_preview)


def _preview(options: argparse.Namespace) -> None:
    from deepcv import network_registry
    from deepcv.data.shards import open_shards
    from deepcv.evaluation.plots import draw_schedules
    from deepcv.nn import spec
    from deepcv.params.base import load_section
    from deepcv.params.train import TrainParams
    from deepcv.training.config import TrainConfig
    from deepcv.training.fit import set_up
    from deepcv.training.hyperparameters import Hyperparameters, Settings, scheduled
    from deepcv.training.preview import curves, draw_batch
    from deepcv.training.start import Start

    params = load_section(TrainParams)
    shards = open_shards(Path("data/shards"))
    config = TrainConfig.of(params.configuration())
    network = spec.load(Path(params.network), params.network_parameters)
    setup = set_up(network, shards, config, start=Start.read(Path(params.weights), network_registry.weights))
    steps = len(setup.loader)
    courses = scheduled(config, config.epochs * steps)
    hyperparameters = Hyperparameters(
        courses, config=config, settings=Settings.of(config), model=setup.classifier, optimizer=setup.optimizer,
        loader=setup.loader,
    )  # fmt: skip
    hyperparameters.begin_epoch(0, [])
    options.out.mkdir(parents=True, exist_ok=True)
    draw_schedules(curves(courses, config.epochs, steps), options.out / "schedules.png")
    draw_batch(setup.loader, shards.classes, options.out / "batch.png", options.images)
    hardware = setup.hardware
    learned = sum(parameter.numel() for parameter in setup.classifier.parameters() if parameter.requires_grad)
    print(f"{shards.name}: {len(setup.loader.targets)} images, {len(shards.classes)} classes")
    print(f"{params.network}: {learned:,} parameters that learn, on {hardware.device} in {hardware.precision}")
    print(f"{config.epochs} epochs of {steps} batches of {setup.loader.batch_size}")
    for course in courses:
        last = (config.epochs - 1) * steps if not course.each_step else config.epochs * steps - 1
        print(f"  {course.name}: {course.at(0):.3g} to {course.at(last):.3g}")
    print(f"wrote {options.out / 'schedules.png'} and {options.out / 'batch.png'}")
