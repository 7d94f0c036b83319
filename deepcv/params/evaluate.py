"""How the trained network is measured on the test split."""

from typing import ClassVar

from pydantic import Field

from deepcv.params.base import Section


class EvaluateParams(Section):
    """Section `evaluate`."""

    section: ClassVar[str] = "evaluate"

    batch_size: int = Field(500, ge=1, le=65_536, description="images per step")
    threads: int = Field(1, ge=1, le=1024, description="CPU threads; another number, other last bits")
    worst: int = Field(
        25, ge=0, le=1000, description="how many of the most wrong images to show, and of the most confident mistakes"
    )
