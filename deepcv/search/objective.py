"""What a search maximises: val accuracy after a training that is exactly the train stage's."""

import os
from functools import partial
from pathlib import Path

from deepcv import network_registry, tracking
from deepcv.data.shards import open_shards
from deepcv.files import sha256, write_text
from deepcv.lifetime import Interrupts, end_by_signal
from deepcv.nn.spec import load
from deepcv.params.base import load_section
from deepcv.params.search import SearchParams
from deepcv.params.train import TrainParams
from deepcv.search.channel import (
    EXPERIMENT_VARIABLE,
    PARENT_RUN_VARIABLE,
    SNAPSHOT_VARIABLE,
    Channel,
    open_channel,
)
from deepcv.search.manager import SearchError
from deepcv.search.snapshot import DATA, SHARDS, network_copy, params_copy, weights_copy
from deepcv.search.space import to_values
from deepcv.search.tuned import with_tuned
from deepcv.training.config import TrainConfig
from deepcv.training.fit import fit
from deepcv.training.history import EpochRecord
from deepcv.training.start import Start


def run_trial() -> None:
    """Train with the parameters that NNI hands out; report val accuracy per epoch, and the last epoch's as final."""
    channel = open_channel()
    snapshot = Path(os.environ[SNAPSHOT_VARIABLE])
    base = params_copy(snapshot)
    values = to_values(load_section(SearchParams, base), channel.parameters)
    # The very text that `deepcv search --apply` would leave: then `dvc repro` trains with the same bits.
    own = Path(os.environ["NNI_OUTPUT_DIR"]) / "params.yaml"
    write_text(own, with_tuned(base.read_text(encoding="utf-8"), values, str(base)))
    params = load_section(TrainParams, own)
    interrupts = Interrupts()  # held back while the run is opened: a run that nobody knows would stay open for ever
    run_id = tracking.start_trial_run(os.environ[EXPERIMENT_VARIABLE], os.environ[PARENT_RUN_VARIABLE], values)
    try:
        interrupts.deliver()
        _train(params, snapshot, channel, run_id)
        tracking.finish(run_id, "FINISHED")
    except KeyboardInterrupt:
        tracking.finish(run_id, "KILLED")
        end_by_signal()
    except BaseException:
        tracking.finish(run_id, "FAILED")
        raise


def _train(params: TrainParams, snapshot: Path, channel: Channel, run_id: str) -> None:
    records: list[EpochRecord] = []

    def report(record: EpochRecord) -> None:
        channel.report_intermediate(len(records), record.val_accuracy)
        tracking.log_metrics(run_id, record.metrics(shards.task), step=record.epoch)
        records.append(record)

    shards = open_shards(SHARDS)
    if shards.digest != sha256(snapshot / DATA):  # too large to be copied as the other inputs are
        raise SearchError(f"{SHARDS} has changed since the search began: a value would not compare with earlier ones")
    spec = load(network_copy(snapshot, params.network), params.network_parameters, params.network_choices)
    # As the stage `train` does: by the data's digest `deepcv data who-saw` finds a trial.
    tracking.log_params(run_id, {"data_digest": shards.digest, "network_sha256": spec.sha256()})
    config = TrainConfig.of(params.configuration())
    weights = Path(params.weights)
    start = Start.read(weights_copy(snapshot, params.weights), network_registry.weights, relative_to=weights.parent)
    fit(spec, shards, config, start=start, on_epoch=report, on_note=partial(tracking.note, run_id), progress=False)
    channel.report_final(records[-1].val_accuracy)
