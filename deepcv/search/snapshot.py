"""What a search works from, copied: an edit while it runs reaches no trial, and the next search can be compared."""

from pathlib import Path
from urllib.parse import quote

from deepcv.nn import weights_file
from deepcv.nn.spec import load
from deepcv.params import document, whole
from deepcv.params.search import SearchParams, ends
from deepcv.search.manager import SearchError

BEST = "best.yaml"  # written last: a search that has it came to its end
DATA = Path("dataset.json")  # holds the digest of every shard
SHARDS = Path("data/shards")
_NETWORK_PARAMETER = "train.network_parameters."


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
    """Raise SpecError where a network file that may be searched does not take the ends of the ranges of its parameters.

    Raises WeightsError where a file of weights is wrong.
    """
    train = whole.load(params_path).train
    for weights in _files(params, "weights", train.weights):
        weights_file.read(Path(weights))
    ranges = {
        key.removeprefix(_NETWORK_PARAMETER): ends(kind, values)
        for key, entry in params.space.items()
        for kind, values in entry.items()
        if key.startswith(_NETWORK_PARAMETER)
    }
    given = train.network_parameters | {name: values[0] for name, values in ranges.items()}
    for network in _files(params, "network", train.network):
        load(Path(network), given)
        for name, values in ranges.items():
            for value in values[1:]:
                load(Path(network), {**given, name: value})


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
