"""What the manifest must satisfy before anything is trained on it."""

from typing import ClassVar, Self

from pydantic import Field, model_validator

from deepcv.params.base import MisfitError, Section


class ValidateParams(Section):
    """Section `validate`."""

    section: ClassVar[str] = "validate"

    min_images: int = Field(10, ge=1, description="fewest images of the whole dataset")
    min_images_per_class: int = Field(2, ge=1, description="fewest images of a class")
    max_class_ratio: float = Field(50.0, ge=1, description="largest class over smallest class, in images")
    min_side: int = Field(4, ge=1, description="shortest side of an image, in pixels")
    max_side: int = Field(10000, ge=1, description="longest side of an image, in pixels")
    max_duplicate_share: float = Field(0.05, ge=0, le=1, description="share of images that repeat another one")

    @model_validator(mode="after")
    def _sides_in_order(self) -> Self:
        if self.min_side > self.max_side:
            raise MisfitError((("max_side",), f"must be >= min_side = {self.min_side}, got {self.max_side}"))
        return self
