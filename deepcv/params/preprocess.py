"""The size and the channels that every image is brought to."""

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from deepcv.params.base import Section


def _whole(value: object) -> object:
    # Literal compares with ==, so that it takes true and 1.0 for 1.
    if type(value) is not int:
        raise ValueError("must be a whole number")
    return value


class PreprocessParams(Section):
    """Section `preprocess`."""

    section: ClassVar[str] = "preprocess"

    height: int = Field(ge=1, le=8192, description="height in pixels")
    width: int = Field(ge=1, le=8192, description="width in pixels")
    channels: Annotated[Literal[1, 3], BeforeValidator(_whole)] = Field(description="1: grey, 3: RGB")
    resize: Literal["stretch", "pad", "crop"] = Field("stretch", description="what happens to another aspect ratio")
