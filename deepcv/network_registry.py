"""Networks in the registry, and parts that networks share."""

import fcntl
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from torch import Tensor, nn

from deepcv import tracking
from deepcv.files import sha256
from deepcv.nn import classifier, network_file, parts
from deepcv.nn.module import DeepcvModule
from deepcv.nn.weights import Weights, of_recipe
from deepcv.receipts import store_dir
from deepcv.tracking import RegistryError

NETWORK = Path("network/network.pt")  # inside a run's artifacts
SPEC_TAG = "deepcv.spec_sha256"
PART_TAG = "deepcv.part"
CONTENT_TAG = "deepcv.content_sha256"

_REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")
_PART_FILE = Path("part/part.pt")
_TRAINED = Path("training/model.pt")  # as `lineage.write_training` leaves it


def network(model_uri: str) -> DeepcvModule:
    """Return the network of a registered model (`models:/NAME@champion`, `models:/NAME/3`) or of a run (`runs:/ID`).

    One that the pipeline has trained is in eval mode. Raises RegistryError.
    """
    return _read(model_uri)[0]


def weights(model_uri: str) -> Weights:
    """Return the weights of a registered model's network, and the images that one of the pipeline expects. Raises RegistryError."""
    found, info = _read(model_uri)
    return Weights(found.state_dict(), model_uri, of_recipe(info.mean, info.std, info.recipe) if info else None)


def _read(model_uri: str) -> tuple[DeepcvModule, classifier.ModelInfo | None]:
    tracking.connect()
    run_id = model_uri.removeprefix("runs:/").strip("/")
    if model_uri.startswith("models:/"):
        run_id = str(_version(model_uri).run_id or "")
    try:
        if any(MlflowClient().list_artifacts(run_id, str(_TRAINED.parent))):
            trained, info = classifier.load(tracking.artifact_file(run_id, str(_TRAINED)))
            assert isinstance(trained.network, DeepcvModule)  # noqa: S101  # for mypy
            return trained.network, info
        return network_file.load(tracking.artifact_file(run_id, str(NETWORK))), None
    except (MlflowException, RegistryError, network_file.NetworkFileError, classifier.ModelFileError) as error:
        raise RegistryError(f"{model_uri} holds no network that can be read: {error}") from error


def log_network(run_id: str, network: DeepcvModule) -> None:
    """Write a network to a run, and the digest of its spec as a tag. Raises NetworkFileError where no file can hold it."""
    with tempfile.TemporaryDirectory() as folder:
        network_file.save(Path(folder) / NETWORK.name, network)
        tracking.log_artifacts(run_id, Path(folder), str(NETWORK.parent))
    tracking.set_tags(run_id, {SPEC_TAG: network.spec.sha256()})


def register_network(name: str, network: DeepcvModule, tags: Mapping[str, str] | None = None) -> str:
    """Put a network into the registry, in a run of its own, and return the number of the new version."""
    own_tags = {SPEC_TAG: network.spec.sha256(), **(tags or {})}
    run_id = tracking.start_run(name, "network", {}, own_tags)
    log_network(run_id, network)
    tracking.finish(run_id)
    return _add_version(name, run_id, NETWORK.parent, own_tags)


def publish_part(
    name: str, network: nn.Module, part: str, *, read: str | None = None, tags: Mapping[str, str] | None = None
) -> str:
    """Put a part of a network into the registry, once per content, and return the number of its version.

    `read` is the newest version that it was made from: where another has been published since, RegistryError and nothing is
    published. Without it the part is published in any case. Two processes publish one after the other.
    """
    state = {key: tensor.cpu().contiguous() for key, tensor in parts.state_of(network, part).items()}
    tracking.connect()
    with tempfile.TemporaryDirectory() as folder, _one_at_a_time():
        file = Path(folder) / _PART_FILE.name
        network_file.write(file, state, {"part": part})
        newest = _newest(name)
        if newest is not None and newest.tags.get(CONTENT_TAG) == sha256(file):
            return str(newest.version)
        number = "0" if newest is None else str(newest.version)
        if read is not None and read != number:
            raise RegistryError(
                f"{name}: version {number} was published since version {read} was read; merge with it and publish again"
            )
        own_tags = {PART_TAG: part, CONTENT_TAG: sha256(file), **(tags or {})}
        if isinstance(network, DeepcvModule):
            own_tags[SPEC_TAG] = network.spec.sha256()
        run_id = tracking.start_run(name, "part", {}, own_tags)
        tracking.log_artifacts(run_id, Path(folder), str(_PART_FILE.parent))
        tracking.finish(run_id)
        return _add_version(name, run_id, _PART_FILE.parent, own_tags)


def part(model_uri: str) -> tuple[str, dict[str, Tensor]]:
    """Return a published part's version and tensors, for `parts.load_state`. Raises RegistryError."""
    tracking.connect()
    version = _version(model_uri)
    try:
        state, _ = network_file.read(tracking.artifact_file(str(version.run_id), str(_PART_FILE)))
    except (RegistryError, network_file.NetworkFileError) as error:
        raise RegistryError(f"{model_uri} holds no part that can be read: {error}") from error
    return str(version.version), state


def _version(model_uri: str) -> ModelVersion:
    if not (found := _REGISTERED.fullmatch(model_uri)):
        raise RegistryError(f"{model_uri}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
    try:
        if found["alias"]:
            return MlflowClient().get_model_version_by_alias(found["name"], found["alias"])
        return MlflowClient().get_model_version(found["name"], found["version"])
    except MlflowException as error:
        raise RegistryError(
            f"{model_uri} cannot be loaded: {tracking.reason(error)}; `make ui` shows what there is"
        ) from error


def _newest(name: str) -> ModelVersion | None:
    versions = MlflowClient().search_model_versions(f"name = '{name}'")
    return max(versions, key=lambda version: int(version.version), default=None)


def _add_version(name: str, run_id: str, folder: Path, tags: Mapping[str, str]) -> str:
    client = MlflowClient()
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    source = f"{client.get_run(run_id).info.artifact_uri}/{folder}"
    return str(client.create_model_version(name, source, run_id, tags=dict(tags)).version)


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """One publisher on this machine, whose disk the database is on."""
    with (store_dir() / "publish.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
