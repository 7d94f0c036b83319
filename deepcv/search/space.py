"""Search ranges of params.yaml, as NNI wants them, and NNI's samples as values of params.yaml."""

from collections.abc import Mapping
from typing import Any

from deepcv.params.search import SearchParams
from deepcv.params.train import Scalar


def to_nni(params: SearchParams) -> dict[str, dict[str, Any]]:
    """Translate the ranges to NNI's search space; a choice becomes one of its indices.

    The space passes through JavaScript, where 1.0 is 1 and a long integer is rounded: an index comes back as it was.
    """
    return {
        key: {"_type": kind, "_value": list(range(len(values))) if kind == "choice" else list(values)}
        for key, spec in params.space.items()
        for kind, values in spec.items()
    }


def to_values(params: SearchParams, sample: Mapping[str, Any]) -> dict[str, Scalar]:
    """Return a sample of NNI's as {key: value} for params.yaml, each value of the type that the key takes."""
    return {
        key: params.space[key]["choice"][drawn] if "choice" in params.space[key] else params.typed(key, drawn)
        for key, drawn in sample.items()
    }
