"""The size, the channels and the look that every image is brought to."""

import re
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from deepcv.params.base import MisfitError, Place, Section
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

    further_targets: list[str] = Field(
        default_factory=list,
        description="what other outputs of the network may learn too: boxes, tags.COLUMN, numbers, …",
    )

    @model_validator(mode="after")
    def _further_targets_are_others(self) -> Self:
        problems = ((place, self._problem(place, name)) for place, name in enumerate(self.further_targets))
        found: list[tuple[Place, str]] = [(("further_targets", place), text) for place, text in problems if text]
        if found:
            raise MisfitError(*found)
        return self

    def _problem(self, place: int, name: str) -> str:
        """What is wrong with a further target, if anything."""
        if not re.match(PATTERN, name):
            return f"expected boxes, tags.COLUMN, numbers or numbers.COLUMN, got {name!r}"
        if name == self.target:
            return f"{name} is preprocess.target already; list other ones"
        if name == "label":
            text = "the class can only be the main target, which `target: label` of a loss means"
            return f"{text}; set preprocess.target: label, and list {self.target} here"
        if name.startswith("numbers.") and "numbers" in (self.target, *self.further_targets):
            where = "preprocess.target" if self.target == "numbers" else "listed"
            return f"{name} is one of numbers, which is {where}; expected either"
        if name == "numbers" and self.target.startswith("numbers."):
            return f"{self.target} is one of numbers, and is preprocess.target; list the other numbers one by one"
        if name in self.further_targets[:place]:
            return f"{name} is listed twice; expected each target once"
        return ""

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
