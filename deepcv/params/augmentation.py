"""What happens to training images beyond flip, shift and cutout: the mapping `train.augmentation`."""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from deepcv.params.base import Group, MisfitError, Place, closest

# Lowest and highest magnitude of each operation and what it counts; None: the operation has none.
MAGNITUDES: Mapping[str, tuple[float, float, str] | None] = {
    "autocontrast": None,
    "brightness": (0, 10, "times the brightness"),
    "colour": (0, 10, "times the saturation"),
    "contrast": (0, 10, "times the contrast"),
    "crop": (0.05, 1, "of each side kept"),
    "elastic": (0, 256, "pixels"),
    "equalize": None,
    "erase": (0, 1, "of the image's area"),
    "flip": None,
    "gamma": (0.05, 20, "as exponent"),
    "noise": (0, 255, "grey levels"),
    "posterize": (1, 8, "bits kept"),
    "rotate": (-360, 360, "degrees"),
    "scale": (0.05, 20, "times the size"),
    "sharpness": (0, 10, "times the sharpness"),
    "shear_x": (-5, 5, "as slope"),
    "shear_y": (-5, 5, "as slope"),
    "shift": (0, 4096, "pixels"),
    "solarize": (0, 256, "as threshold"),
    "translate_x": (-4096, 4096, "pixels"),
    "translate_y": (-4096, 4096, "pixels"),
}

# What is right in other colour spaces than RGB. The others take the channels for R, G and B, take in 0 in each from outside the
# image, which is no black in Lab, or put values between two hues, which are on a circle.
FITTING: Mapping[str, frozenset[str]] = {
    "rgb": frozenset({*MAGNITUDES, "chains", "cutout", "mixup", "cutmix", "augmix", "randaugment", "trivialaugment"}),
    "hsv": frozenset({"cutmix", "cutout", "erase", "flip", "shift"}),
    "lab": frozenset({"chains", "cutmix", "elastic", "flip", "mixup", "shift"}),
}
_DRAWS = 256  # random numbers of an image in the own operations: draws.STREAMS_PER_STEP


class OperationParams(Group):
    """One operation of an own list; its magnitude is drawn for each image."""

    also_called: ClassVar[Mapping[str, str]] = {"p": "probability", "operation": "name", "range": "magnitude"}

    name: str = Field(description="operation", examples=["rotate"])
    magnitude: list[float] = Field(
        default_factory=list, description="[lowest, highest], drawn evenly", examples=[[-15, 15]]
    )
    probability: float = Field(1.0, ge=0, le=1, description="share of the images that it happens to")

    @model_validator(mode="after")
    def _magnitude_fits(self) -> Self:
        if self.name not in MAGNITUDES:
            near = closest(self.name, MAGNITUDES)
            hint = f"the closest is {' or '.join(map(repr, near))}" if near else f"there are {', '.join(MAGNITUDES)}"
            raise MisfitError((("name",), f"there is no operation '{self.name}'; {hint}"))
        if (text := _magnitude_problem(self.name, self.magnitude)) is not None:
            raise MisfitError((("magnitude",), text))
        return self


class MixParams(Group):
    """MixUp or CutMix."""

    alpha: float = Field(1.0, gt=0, le=100, description="both parameters of the Beta distribution of the shares")
    probability: float = Field(0.0, ge=0, le=1, description="share of the images that are mixed so; 0: none")


class AugMixParams(Group):
    """Settings of `policy: augmix`."""

    severity: float = Field(3.0, ge=0.1, le=10, description="largest strength of an operation")
    chains: int = Field(3, ge=1, le=8, description="chains of operations that are mixed")
    depth: list[int] = Field(
        default_factory=lambda: [1, 3], description="least and most operations of a chain", examples=[[1, 3]]
    )
    alpha: float = Field(1.0, gt=0, le=100, description="parameter of the Dirichlet and Beta distributions")

    @model_validator(mode="after")
    def _depth_fits(self) -> Self:
        if (text := _depth_problem(self.depth, 1, 6)) is not None:
            raise MisfitError((("depth",), text))
        return self


class RandAugmentParams(Group):
    """Settings of `policy: randaugment`."""

    also_called: ClassVar[Mapping[str, str]] = {"magnitude": "strength", "num_ops": "count"}

    count: int = Field(2, ge=1, le=14, description="operations that an image gets")
    strength: float = Field(0.3, ge=0, le=1, description="strength of each of them")


class AugmentationParams(Group):
    """Mapping `train.augmentation`; the own operations come first, then the policy, then mixing."""

    also_called: ClassVar[Mapping[str, str]] = {"ops": "operations", "transforms": "operations"}

    policy: Literal["none", "augmix", "randaugment", "trivialaugment"] = Field(
        "none", description="published list of random operations"
    )
    operations: list[OperationParams] = Field(default_factory=list, max_length=50, description="own operations")
    order: Literal["fixed", "random"] = Field("fixed", description="order of the own operations")
    depth: Literal["all"] | list[int] = Field(
        "all", description="how many of the own operations an image gets, [least, most]", examples=[[1, 2]]
    )
    chains: int = Field(
        0, ge=0, le=8, description="copies of an image that get own operations and are mixed, as AugMix does; 0: none"
    )
    alpha: float = Field(
        1.0, gt=0, le=100, description="parameter of the Dirichlet and Beta distributions by which chains are mixed"
    )
    mixup: MixParams = Field(default_factory=lambda: MixParams.model_validate({}), description="blend pairs of images")
    cutmix: MixParams = Field(
        default_factory=lambda: MixParams.model_validate({}), description="paste a part of another image"
    )
    augmix: AugMixParams = Field(
        default_factory=lambda: AugMixParams.model_validate({}), description="settings of the policy augmix"
    )
    randaugment: RandAugmentParams = Field(
        default_factory=lambda: RandAugmentParams.model_validate({}), description="settings of the policy randaugment"
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        problems = list(self._problems())
        if problems:
            raise MisfitError(*problems)
        return self

    def _problems(self) -> Iterator[tuple[Place, str]]:
        if self.depth != "all" and (text := _depth_problem(self.depth, 0, len(self.operations))) is not None:
            yield ("depth",), f"{text} (so many operations are listed)"
        elif self.chains and (text := self._chains_problem()) is not None:
            yield ("chains",), text
        shares = self.mixup.probability, self.cutmix.probability
        if sum(shares) > 1:
            text = f"with mixup.probability it must be <= 1, got {shares[0]} + {shares[1]}"
            yield ("cutmix", "probability"), text

    def _chains_problem(self) -> str | None:
        every = len(self.operations)
        if not every:
            return "mixes copies of an image after own operations, and none are listed; expected 0 or operations"
        most = every if self.depth == "all" else self.depth[1]
        draws = self.chains * (every + 3 * most + 2)
        if draws <= _DRAWS:
            return None
        what = f"{self.chains} chains of up to {most} out of {every} operations"
        return f"{what} draw {draws} numbers for each image, at most {_DRAWS} are there; lower chains or depth"


def _depth_problem(depth: list[int], lowest: int, highest: int) -> str | None:
    if len(depth) == 2 and lowest <= depth[0] <= depth[1] <= highest:
        return None
    return f"must be [least, most] with {lowest} <= least <= most <= {highest}, got {depth}"


def _magnitude_problem(name: str, magnitude: list[float]) -> str | None:
    limits = MAGNITUDES[name]
    if limits is None:
        return f"{name} has no magnitude, got {magnitude}" if magnitude else None
    low, high, unit = limits
    if len(magnitude) != 2 or not low <= magnitude[0] <= magnitude[1] <= high:
        return f"{name} takes [lowest, highest] from {low} to {high} {unit}, got {magnitude or 'nothing'}"
    return "one of the two must not be 0" if magnitude == [0, 0] else None
