"""What a search works from, copied: an edit while it runs reaches no trial, and the next search can be compared."""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import torch

from deepcv.nn import parts, weights_file
from deepcv.nn.module import DeepcvModule
from deepcv.nn.spec import load, lowering
from deepcv.params import document, whole
from deepcv.params.search import SearchParams, ends
from deepcv.params.train import Scalar
from deepcv.search.manager import SearchError
from deepcv.search.tuned import with_tuned
from deepcv.training import optimizers
from deepcv.training.config import TrainConfig
from deepcv.training.setup import freeze

BEST = "best.yaml"  # written last: a search that has it came to its end
DATA = Path("dataset.json")  # holds the digest of every shard
SHARDS = Path("data/shards")
# Keys with a value of which the optimizer, or a part of train.lr_scales, may not go together.
_OPTIMIZERS = ("train.optimizer", "train.momentum", "train.hold_norms", "train.network")


def params_copy(folder: Path) -> Path:
    """Where the copy of params.yaml lies in a search's folder."""
    return folder / "params.yaml"


def network_copy(folder: Path, network: str) -> Path:
    """Where the copy of a network file lies in a search's folder; `network` as train.network has it."""
    return folder / "networks" / quote(network, safe="")


def weights_copy(folder: Path, weights: str) -> Path:
    """Where the copy of a file of train.weights lies in a search's folder."""
    return folder / "weights" / quote(weights, safe="")


def read_inputs(params: SearchParams, params_path: Path) -> dict[Path, bytes]:
    """Return what decides the outcome of a search, by its place in a search's folder: params.yaml, network and weights files, data
    digests.

    Raises SearchError or ParamsError.
    """
    text = document.read(params_path)
    train = whole.loads(text, str(params_path)).train
    networks, weights = _files(params, "network", train.network), _files(params, "weights", train.weights)
    try:
        return {
            params_copy(Path()): text.encode(),
            DATA: (SHARDS / DATA).read_bytes(),
            **{network_copy(Path(), name): Path(name).read_bytes() for name in networks},
            **{weights_copy(Path(), name): Path(name).read_bytes() for name in weights},
        }
    except OSError as error:
        raise SearchError(f"{error.filename}: cannot be read: {error.strerror}") from error


def check_files(params: SearchParams, params_path: Path) -> None:
    """Raise SpecError where a network file that may be searched does not take the ends of the ranges of its parameters and choices.

    Raises WeightsError where a file of weights is wrong, SearchError where a choice would stay open, DeepcvError where the optimizer
    would not take a value.
    """
    train = whole.load(params_path).train
    for weights in _files(params, "weights", train.weights):
        weights_file.read(Path(weights))
    parameters, choices = _searched(params, "network_parameters"), _searched(params, "network_choices")
    given = train.network_parameters | {name: values[0] for name, values in parameters.items()}
    picked = train.network_choices | {name: str(values[0]) for name, values in choices.items()}
    for network in _files(params, "network", train.network):
        _check_network(network, given, picked)
        for name, values in parameters.items():
            for value in values[1:]:
                _check_network(network, {**given, name: value}, picked)
        for name, values in choices.items():
            for value in values[1:]:
                _check_network(network, given, {**picked, name: str(value)})
    _check_optimizers(params, params_path)


def _check_optimizers(params: SearchParams, params_path: Path) -> None:
    """Raise DeepcvError where the optimizer does not take the ends of a range, or the network lacks a part of train.lr_scales."""
    ranges = {key: ends(kind, values) for key, entry in params.space.items() for kind, values in entry.items()}
    first = {key: values[0] for key, values in ranges.items()}
    others = [
        {**first, key: value} for key, values in ranges.items() if key.startswith(_OPTIMIZERS) for value in values[1:]
    ]
    text = document.read(params_path)
    for sample in (first, *others):
        section = whole.loads(with_tuned(text, sample, str(params_path)), str(params_path))
        config = TrainConfig.of(section.train.configuration())
        optimizers.check(config, torch.device("cpu"))
        if config.lr_scales:
            _check_parts(section, config)


def _check_parts(params: whole.Params, config: TrainConfig) -> None:
    train, images = params.train, params.preprocess
    network = load(Path(train.network), train.network_parameters, train.network_choices)
    # Shards may not be there yet; how many classes they have does not change the names of parts.
    built = DeepcvModule.from_spec(network, (images.channels, images.height, images.width), classes=2)
    freeze(built, config.freeze)
    parts.unfreeze(built, *config.unfreeze)
    optimizers.parameter_groups(built, config.weight_decay, config.layer_decay, config.lr_scales)


def _searched(params: SearchParams, key: str) -> dict[str, list[Scalar]]:
    """What the values of a mapping of the train section may be, by their names."""
    prefix = f"train.{key}."
    return {
        full.removeprefix(prefix): ends(kind, values)
        for full, entry in params.space.items()
        for kind, values in entry.items()
        if full.startswith(prefix)
    }


def _check_network(network: str, parameters: Mapping[str, Scalar], choices: Mapping[str, str]) -> None:
    spec = load(Path(network), parameters, choices)
    for name, candidates in lowering.open_choices(lowering.pruned(lowering.decided(spec, {}))).items():
        raise SearchError(
            f"{network}: the choice {name!r} is open; let train.network_choices pick one of {', '.join(candidates)}, or search "
            f"them: search.space: {{train.network_choices.{name}: {{choice: [{', '.join(candidates)}]}}}}"
        )


def _files(params: SearchParams, key: str, otherwise: str) -> list[str]:
    """The files that a key of the train section may name in a trial."""
    return [str(name) for name in params.space.get(f"train.{key}", {}).get("choice", [otherwise])]


def take(folder: Path, params: SearchParams, params_path: Path) -> None:
    """Write the copies into a search's new folder."""
    for place, content in read_inputs(params, params_path).items():
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_bytes(content)


def finished(parent: Path, params: SearchParams, params_path: Path) -> Path | None:
    """Return the folder of the newest search that came to its end and had the very inputs that there are now."""
    inputs = read_inputs(params, params_path)
    for best in sorted(parent.glob(f"*/{BEST}"), reverse=True):
        copies = {best.parent / place: content for place, content in inputs.items()}
        if all(path.is_file() and path.read_bytes() == content for path, content in copies.items()):
            return best.parent
    return None
