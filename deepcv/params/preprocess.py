"""The size, the channels and the look that every image is brought to."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from deepcv.params.base import MisfitError, Section
from deepcv.task import PATTERN


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
    resize: Literal["stretch", "pad", "reflect", "crop"] = Field(
        "stretch", description="what happens to another aspect ratio"
    )
    keep: float = Field(1.0, gt=0, le=1, description="central share of each side that is kept before resizing")
    denoise: Literal["none", "median", "bilateral", "nlmeans"] = Field("none", description="filter against noise")
    clahe: float = Field(0.0, ge=0, le=100, description="contrast limit of local equalisation of the lightness; 0: off")
    colour: Literal["rgb", "hsv", "lab"] = Field("rgb", description="colour space of 3 channels, each on 0–255")
    reduced: bool = Field(False, description="decode a JPEG at 1/2, 1/4 or 1/8 where it is shrunk at least as much")
    store: Literal["pixels", "encoded"] = Field(
        "pixels",
        description="train images as prepared pixels, or as the files they are, of which training takes random crops",
    )
    target: str = Field(
        "label",
        pattern=PATTERN,
        description="what is learned: label (the class) | boxes | tags.COLUMN (labels) | numbers | numbers.COLUMN",
    )

    @model_validator(mode="after")
    def _colours_have_three_channels(self) -> Self:
        if self.colour != "rgb" and self.channels != 3:
            raise MisfitError((("colour",), f"{self.colour} needs channels: 3, got 1 (grey)"))
        return self

    @model_validator(mode="after")
    def _crops_take_the_recipe(self) -> Self:
        if self.store == "encoded" and self.resize in ("pad", "reflect"):
            text = f"{self.resize} fills up, and random crops (store: encoded) do not; set resize: crop or stretch"
            raise MisfitError((("resize",), f"{text}, or store: pixels"))
        if self.store == "encoded" and self.denoise == "nlmeans":
            text = "nlmeans takes some 0.2 s of each random crop (store: encoded), in every epoch"
            raise MisfitError((("denoise",), f"{text}; set denoise: median or bilateral, or store: pixels"))
        return self
