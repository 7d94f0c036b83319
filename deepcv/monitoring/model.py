"""The registered model whose features are compared."""

from pathlib import Path

from deepcv import artifacts, registry, tracking
from deepcv.home import NoProjectError
from deepcv.params.base import load_section
from deepcv.params.ingest import IngestParams
from deepcv.receipts import database_file
from deepcv.serving.features import FeatureExtractor


def find(wanted: str | None, params_file: Path) -> tuple[FeatureExtractor | None, str]:
    """Open the model that `wanted` names and return it with its URI, or None with the reason why there is none.

    None is the champion of the params file's dataset, where there is one. Raises RegistryError.
    """
    if wanted is None:
        try:
            known = params_file.is_file() and database_file().is_file()
        except NoProjectError:
            known = False
        name = tracking.experiment_of(load_section(IngestParams, params_file).dataset) if known else ""
        if not known or registry.champion_of(name) is None:
            return None, f"there is no champion{f' of {name}' if name else ' here'}"
        wanted = f"models:/{name}@champion"
    return FeatureExtractor(artifacts.onnx_file(wanted)), wanted
