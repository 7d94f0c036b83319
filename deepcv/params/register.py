"""What a candidate must be better at to become the champion."""

from typing import ClassVar, Literal

from pydantic import Field

from deepcv.params.base import Section


class RegisterParams(Section):
    """Section `register`."""

    section: ClassVar[str] = "register"

    metric: Literal["accuracy", "macro_f1"] = Field("accuracy", description="test metric that decides")
