"""How the exported ONNX file is checked against the trained network."""

from typing import ClassVar

from pydantic import Field

from deepcv.params.base import Section


class ExportParams(Section):
    """Section `export`."""

    section: ClassVar[str] = "export"

    check_images: int = Field(64, ge=1, le=100_000, description="test images that both networks see")
    tolerance: float = Field(1e-4, gt=0, le=1, description="largest difference, times max(1, |output|)")
