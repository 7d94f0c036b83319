"""What a candidate must be better at to become the champion."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from deepcv.params.base import Section
from deepcv.task import Kind

METRICS: Mapping[Kind, tuple[str, ...]] = {
    "classification": ("accuracy", "macro_f1"),
    "multi_label": ("mean_average_precision", "macro_f1", "accuracy"),
    "regression": ("r2",),
}


class RegisterParams(Section):
    """Section `register`."""

    section: ClassVar[str] = "register"

    metric: Literal["accuracy", "macro_f1", "mean_average_precision", "r2"] = Field(
        "accuracy", description="test metric that decides; mean_average_precision of labels, r2 of numbers"
    )
