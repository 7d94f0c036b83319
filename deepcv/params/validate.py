"""What the data must satisfy before anything is trained on it."""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from deepcv.params.base import MisfitError, Section, closest

Severity = Literal["fail", "quarantine", "warn"]

NO_REFERENCE = "data/references/none.md"
REGISTERED = "data/references/registered"  # a folder, where `register` puts what the champion's data looked like
SEVERITIES: Mapping[str, Severity] = {
    "readable": "fail",
    "size": "fail",
    "mode": "fail",
    "labels": "fail",
    "balance": "fail",
    "duplicates": "fail",
    "label_conflict": "warn",
    "near_duplicates": "warn",
    "leakage": "warn",
    "near_leakage": "warn",
    "uniform": "warn",
    "blurred": "warn",
    "odd_shape": "warn",
    "odd_mode": "warn",
    "label_noise": "warn",
    "label_set": "fail",
    "class_shares": "warn",
    "brightness": "warn",
    "channel_order": "fail",
}
# These are about all images together: no image can be left out for them.
WHOLE = frozenset({"balance", "label_set", "class_shares", "brightness", "channel_order"})
# How a file stores its pixels; deepcv.images.modes says what the parts mean, and a test holds the two together.
MODE = r"(palette|(grey|colour|cmyk)\d+f?)(\+alpha)?(\+animated|\+pages)?(\+dim)?"
_OWN_KEYS = ("expectation", "kwargs", "severity")


class ValidateParams(Section):
    """Section `validate`."""

    section: ClassVar[str] = "validate"

    reference: str = Field(
        NO_REFERENCE,
        min_length=1,
        description=f"data to compare with: a .parquet file, {REGISTERED} (the champion's) or {NO_REFERENCE}",
    )
    classes: list[str] = Field(default_factory=list, description="names of the classes that there may be; none: any")
    min_images: int = Field(10, ge=1, description="fewest images of the whole dataset")
    min_images_per_class: int = Field(2, ge=1, description="fewest images of a class")
    max_class_ratio: float = Field(50.0, ge=1, description="largest class over smallest class, in images")
    min_side: int = Field(4, ge=1, description="shortest side of an image, in pixels")
    max_side: int = Field(10000, ge=1, description="longest side of an image, in pixels")
    modes: list[str] = Field(
        default_factory=list, description="how files may store their pixels, such as colour8; none: any"
    )
    max_duplicate_share: float = Field(0.05, ge=0, le=1, description="share of images that repeat another one")
    max_near_duplicate_share: float = Field(0.05, ge=0, le=1, description="share that nearly repeat another one")
    max_leaks: int = Field(0, ge=0, description="images of one split that stand in another split too")
    max_near_leaks: int = Field(0, ge=0, description="the same for images that are nearly equal")
    min_contrast: float = Field(0.005, ge=0, le=0.5, description="below: all black or of one colour")
    max_uniform_share: float = Field(0.0, ge=0, le=1, description="share of images of one colour")
    min_sharpness: float = Field(1e-5, ge=0, description="below: blurred; variance of the Laplacian at 64×64")
    max_blurred_share: float = Field(0.01, ge=0, le=1, description="share of images that are blurred")
    max_contradicted_share: float = Field(
        0.05, ge=0, le=1, description="share of labels that similar images contradict"
    )
    sample: int = Field(20000, ge=0, description="images decoded to compare labels; 0: none")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the sample")
    alpha: float = Field(0.001, gt=0, lt=1, description="chance of a false alarm of each test against the reference")
    severity: dict[str, Severity] = Field(
        default_factory=dict, description="fail, quarantine (leave the images out) or warn, by check"
    )
    expectations: list[dict[str, Any]] = Field(
        default_factory=list, description="your own: {expectation: NAME, kwargs: {column: …}, severity: warn}"
    )

    @field_validator("reference")
    @classmethod
    def _plain(cls, path: str) -> str:
        return str(PurePosixPath(path))  # a shell completes a folder with a slash

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems: list[tuple[tuple[str | int, ...], str]] = []
        if self.min_side > self.max_side:
            problems.append((("max_side",), f"must be >= min_side = {self.min_side}, got {self.max_side}"))
        if self.reference not in (NO_REFERENCE, REGISTERED) and not self.reference.endswith(".parquet"):
            problems.append(
                (("reference",), f"must be a .parquet file, {REGISTERED} or {NO_REFERENCE}, got {self.reference!r}")
            )
        problems += [
            (("modes", number), text) for number, mode in enumerate(self.modes) if (text := _mode_problem(mode))
        ]
        problems += [(("severity", key), text) for key in self.severity if (text := self._severity_problem(key))]
        problems += [
            (("expectations", number), text)
            for number, own in enumerate(self.expectations)
            if (text := _own_problem(own))
        ]
        if problems:
            raise MisfitError(*problems)
        return self

    @property
    def severities(self) -> dict[str, Severity]:
        """The severity of every check."""
        return {**SEVERITIES, **self.severity}

    def _severity_problem(self, check: str) -> str:
        if check not in SEVERITIES:
            near = closest(check, SEVERITIES)
            hint = f"the closest is '{near[0]}'" if near else f"there are {', '.join(SEVERITIES)}"
            return f"not a check; {hint}"
        if check == "readable" and self.severity[check] == "warn":
            return "must be 'fail' or 'quarantine', got 'warn': a file that is no image cannot be prepared"
        if check in WHOLE and self.severity[check] == "quarantine":
            return "must be 'fail' or 'warn', got 'quarantine': it is about all images together, none can be left out"
        return ""


def _mode_problem(mode: str) -> str:
    if re.fullmatch(MODE, mode):
        return ""
    usual = ("grey1", "grey8", "grey8+alpha", "grey16", "colour8", "colour8+alpha", "colour16", "palette", "cmyk8")
    near = closest(mode, usual)
    return f"not a mode: {mode!r}; " + (
        f"the closest is {near[0]!r}" if near else f"there are {', '.join(usual)} and more"
    )


def _own_problem(own: Mapping[str, Any]) -> str:
    for key in own:
        if key not in _OWN_KEYS:
            near = closest(key, _OWN_KEYS)
            return f"unknown key {key!r}; " + (f"the closest is {near[0]!r}" if near else f"there are {_OWN_KEYS}")
    if not isinstance(own.get("expectation"), str):
        return "needs `expectation`, the name of one of Great Expectations'"
    if not isinstance(own.get("kwargs", {}), dict):
        return f"kwargs must be a mapping, got {own['kwargs']!r}"
    if own.get("severity", "fail") not in ("fail", "quarantine", "warn"):
        return f"severity must be fail, quarantine or warn, got {own['severity']!r}"
    return ""
