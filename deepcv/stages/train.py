"""Stage `train`: fit the network that `train.network` describes; every epoch goes to MLflow."""

import csv
import hashlib
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from deepcv import network_registry, tracking
from deepcv.data import crops  # noqa: F401 - `fit` imports it late, and a training's key takes in all loaded code
from deepcv.data.loaders import TrainLoader
from deepcv.data.shards import Dataset, open_shards
from deepcv.errors import DeepcvError
from deepcv.evaluation.figures import draw_schedules
from deepcv.files import sha256, write_text
from deepcv.lifetime import Grace
from deepcv.locks import locked
from deepcv.nn import classifier, parts, spec
from deepcv.nn.spec import NetworkSpec
from deepcv.params.base import load_section
from deepcv.params.train import TrainParams
from deepcv.stages import archive, ended, entry, tensorboard
from deepcv.stages.tensorboard import TensorBoard
from deepcv.stages.training_log import TrainingLog
from deepcv.training import distributed, optimizers, sharding
from deepcv.training.checkpoints import CheckpointError, InterruptedTrainingError
from deepcv.training.config import TrainConfig
from deepcv.training.distributed import World
from deepcv.training.engine import DivergedError
from deepcv.training.fit import Fitted, fit, joined
from deepcv.training.hardware import Hardware, resolve
from deepcv.training.history import EpochRecord, Point
from deepcv.training.hyperparameters import scheduled
from deepcv.training.objective import check_losses, further_outputs
from deepcv.training.preview import curves, draw_batch
from deepcv.training.setup import freeze, output_shapes
from deepcv.training.start import Start

SHARDS = Path("data/shards")
MODEL = Path("data/model")
_FORGOTTEN_S = 30 * 24 * 3600
_GRACE_S = 5.0  # for the running step and its checkpoint; who cancels a flow waits longer
_LOOK_S = 0.5  # between two looks whether another training of the same has ended


def main() -> Callable[[], None] | None:
    """Read data/shards and the network file, write data/model; what is returned closes the run and removes the checkpoints.

    With `train.processes` this process starts them and waits; the first of them does what one process does alone.
    """
    params = load_section(TrainParams)
    shards = open_shards(SHARDS)
    if found := params.false_colours(shards.recipe.get("colour", "rgb")):
        raise DeepcvError("; ".join(f"train.{key}: {text}" for key, text in found.items()))
    network = spec.load(Path(params.network), params.network_parameters, params.network_choices)
    start = Start.read(Path(params.weights), network_registry.weights)
    config = TrainConfig.of(params.configuration())
    hardware = resolve(config.device, config.precision, config.channels_last, config.threads, config.processes)
    if not distributed.launched():
        check(network, start, config, shards)  # a misfit opens no run
        sharding.check(config, hardware.processes)
        optimizers.check(config, checking_device(config, hardware))
        if hardware.processes > 1:
            distributed.launch(hardware.processes, "deepcv.stages.train")
            return None
    key = training_key(params, network, hardware, shards)
    with ExitStack() as held:
        world = joined(config)
        waited = hold(key, world, held)
        (had_ended,) = world.any(world.leads and has_ended(key, waited))
        if had_ended:
            if world.leads:
                take_back(key, waited)
            distributed.leave()
            return None
        folder = checkpoint_folder(key)
        if not world.leads:
            follow(partial(fit, network, shards, config, start=start, checkpoints=folder))
            return None
        ended.sweep()
        log = TrainingLog(
            tracking.experiment_of(shards.name), key, described(params, network, hardware, shards), shards.task,
            bool(archive.files_of(folder)),
        )  # fmt: skip
        board = TensorBoard(tensorboard.folder_of(shards.name, key), shards.task)

        def on_point(point: Point) -> None:
            log.point(point)
            board.point(point)

        def on_epoch(record: EpochRecord) -> None:
            log.epoch(record)
            board.epoch(record)

        with closing(board), Grace(_GRACE_S) as grace:
            try:
                fitted = fit(
                    network, shards, config, start=start, checkpoints=folder, on_point=on_point, on_epoch=on_epoch, on_note=log.note,
                    on_start=lambda loader: log.pictures(partial(draw_preview, loader, config, shards)),
                    interrupted=lambda: grace.asked is not None, progress=True,
                )  # fmt: skip
            except InterruptedTrainingError:
                if params.archive:
                    archive_if_possible(log, folder)
                grace.obey()
                raise
            except CheckpointError:  # the run goes on when they can be taken over
                raise
            except DeepcvError:
                log.end("FAILED")
                raise
        distributed.leave()
        write_outputs(fitted, network.canonical(), described(params, network, fitted.hardware, shards))
        still_held = held.pop_all()

    def finish() -> None:
        with still_held:
            if params.archive:
                archive.store(log.run_id(), folder)
                os.sync()  # else a power cut could take the copy, which may not be on the disk yet, after the original
            log.end("FINISHED", {tracking.MODEL_TAG: sha256(MODEL / "model.pt")})
            ended.keep(key, MODEL)
            archive.remove(folder)  # so that `dvc repro --force` trains

    return finish


def hold(key: str, world: World, held: ExitStack) -> bool:
    """Let `held` hold the lock of the training with this key, in the first process of `world`; return whether another had it.

    Two experiments may train the same, with one folder of checkpoints and one run: the second one waits. All its processes look
    together, as who waits for another in a process group does so for half an hour at most.
    """
    waited = False
    while True:
        taken = False
        if world.leads:
            with suppress(BlockingIOError):
                held.enter_context(locked(archive.lock(key), wait=False))
                taken = True
        (taken,) = world.any(taken)
        if taken:
            return waited
        if world.leads and not waited:
            print("train: another process trains the same; this one waits until it has ended", file=sys.stderr)
        waited = True
        time.sleep(_LOOK_S)


def has_ended(key: str, waited: bool) -> bool:
    """Whether the training with this key has ended and needs no other: DVC has not recorded it, or it was `waited` for.

    Who was waited for may have been interrupted: then there are checkpoints.
    """
    return ended.is_unrecorded(key) or (waited and ended.is_kept(key) and not archive.local_folder(key).exists())


def take_back(key: str, waited: bool) -> None:
    """Write the outputs of the training that had ended again, and do what was left to do at its end."""
    why = "has ended" if waited else "had ended before, and DVC has recorded nothing since"
    print(
        f"train: this training {why}: its outputs are written again. "
        "When they are recorded, `dvc repro --force train` trains once more",
        file=sys.stderr,
    )
    ended.restore(key, MODEL)
    if (folder := archive.local_folder(key)).exists():
        archive.remove(folder)


def draw_preview(loader: TrainLoader, config: TrainConfig, shards: Dataset, folder: Path) -> None:
    """Draw what `deepcv preview` shows, batch.png and schedules.png, the latter only where there is matplotlib."""
    draw_batch(loader, shards, folder / "batch.png")
    courses = scheduled(config, config.epochs * len(loader))
    with suppress(ImportError):  # a GPU machine may have torch and ignite alone
        draw_schedules(curves(courses, config.epochs, len(loader)), folder / "schedules.png")


def archive_if_possible(log: TrainingLog, folder: Path) -> None:
    """Copy an interrupted training to its run, to go on elsewhere; where the grace ends before, it goes on here alone."""
    try:
        run_id = log.run_id()
        archive.store(run_id, folder)
    except DeepcvError as error:
        print(f"train: {error}", file=sys.stderr)
    else:
        print(f"train: MLflow run {run_id} has the checkpoints: `deepcv resume {run_id}`", file=sys.stderr)


def follow(train: Callable[..., Fitted]) -> None:
    """Train as one of several processes, of which the first says how it ended."""
    with Grace(_GRACE_S) as grace:
        try:
            train(interrupted=lambda: grace.asked is not None)
        except (InterruptedTrainingError, DivergedError):
            sys.exit(1)
    distributed.leave()


def check(network: NetworkSpec, start: Start | None, config: TrainConfig, shards: Dataset) -> None:
    """Raise DeepcvError where network, weights, schedules, losses and data do not fit; say what was loaded, and what nothing learns."""
    built = classifier.build_network(network, shards.input_shape, len(shards.classes))
    if start:
        print(start.load_into(built))
        for sentence in start.differences(shards):
            print(f"warning: {sentence}", file=sys.stderr)
    freeze(built, config.freeze)
    parts.unfreeze(built, *config.unfreeze)
    optimizers.parameter_groups(built, config.weight_decay, config.layer_decay, config.lr_scales)
    scheduled(config, steps=1)
    learned = {target.of for target in further_outputs(config, shards.further).values()}
    sizes = {target.of: len(target.names) for target in shards.further}
    check_losses(config, output_shapes(built), shards.task, len(shards.classes), sizes, shards.input_shape)
    if idle := [name for name in sizes if name not in learned]:
        print(
            f"warning: the further targets {', '.join(idle)} are in {SHARDS}, and none of train.losses learns them",
            file=sys.stderr,
        )


def checking_device(config: TrainConfig, hardware: Hardware) -> torch.device:
    """Where to try the optimizer: not on a GPU that other processes train on, unless it needs one."""
    needs_gpu = "/bnb" in config.optimizer or "/fused" in config.optimizer
    return hardware.torch_device if hardware.processes == 1 or needs_gpu else torch.device("cpu")


def described(params: TrainParams, network: NetworkSpec, hardware: Hardware, shards: Dataset) -> dict[str, Any]:
    """What the run and data/model/training.json say of a training; content only."""
    return {
        "dataset": shards.name,
        "data_digest": shards.digest,
        "network_sha256": network.sha256(),
        "params": params.described(),
        "hardware": asdict(hardware),
    }


def write_outputs(fitted: Fitted, canonical_spec: dict[str, Any], training: dict[str, Any]) -> None:
    """Write the model file, the learning curve, by epochs and within them, and what `auto` became."""
    MODEL.mkdir(parents=True, exist_ok=True)
    write_text(MODEL / "history.csv", table([record.named(fitted.info.task) for record in fitted.history]))
    write_text(MODEL / "steps.csv", table([{"step": point.step, **point.metrics()} for point in fitted.points]))
    if fitted.pieces > 1:  # batch norms saw smaller parts, so that another machine may come to another result
        training = {**training, "pieces": fitted.pieces}
    write_text(MODEL / "training.json", json.dumps(training, indent=2) + "\n")
    classifier.save(MODEL / "model.pt", fitted.classifier, canonical_spec, fitted.info)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The text of a CSV file; all rows have the keys of the first one."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def training_key(params: TrainParams, network: NetworkSpec, hardware: Hardware, shards: Dataset) -> str:
    """Digest of all that decides the result: params, hardware settings, data, network, first weights, loaded code, library versions."""
    weights = Path(params.weights).read_text(encoding="utf-8")
    values = [params.described(), network.canonical(), weights, asdict(hardware), shards.digest]
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    sources = [module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "deepcv"]
    for path in ["versions.yaml", *sorted(source for source in sources if source)]:
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()[:16]


def checkpoint_folder(key: str) -> Path:
    """Folder of this training's checkpoints; those that nobody took up again for a month are removed."""
    folder = archive.local_folder(key)
    folder.mkdir(parents=True, exist_ok=True)
    for other in set(folder.parent.iterdir()) - {folder}:  # locks among them, which a kill leaves
        with suppress(FileNotFoundError, BlockingIOError):
            if time.time() - other.stat().st_mtime > _FORGOTTEN_S:
                with locked(other.with_suffix(".lock"), wait=False):
                    shutil.rmtree(other, ignore_errors=True)
    return folder


if __name__ == "__main__":
    entry.run(main)
