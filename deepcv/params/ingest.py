"""Where the images come from and how they are split."""

import re
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from deepcv.params.base import MisfitError, Section


class IngestParams(Section):
    """Section `ingest`."""

    section: ClassVar[str] = "ingest"

    # The registered model is called deepcv-<dataset>: lower case and no separator that a file system or a URL minds.
    dataset: str = Field(
        pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=100, examples=["digits"], description="name of the dataset"
    )
    path: str = Field(min_length=1, description="file or folder that the dataset is read from")
    labels: dict[str, Annotated[str, Field(min_length=1)]] = Field(
        default_factory=dict, description="other names for classes; those of equal names become one class"
    )
    val_fraction: float = Field(0.1, gt=0, lt=1, description="share of the images that is held out for validation")
    test_fraction: float = Field(0.2, gt=0, lt=1, description="share of the images that is held out for the test")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the split")
    split: Literal["stratified", "stable"] = Field(
        "stratified", description="exact shares of every class, or no image ever moves when others come"
    )
    group_by: str = Field(
        "", description="pattern whose one group, found in an image's id, names what stays in one split"
    )
    folds: int = Field(0, ge=0, le=1000, description="number of parts for cross-validation; 0 for none")
    fold: int = Field(0, ge=0, description="which of the folds is val")

    @model_validator(mode="after")
    def _leaves_images_to_train_on(self) -> Self:
        total = self.val_fraction + self.test_fraction
        if total >= 1:
            text = (
                f"val_fraction + test_fraction must be < 1, got {self.val_fraction} + {self.test_fraction} = {total:g}"
            )
            raise MisfitError((("test_fraction",), text))
        return self

    @model_validator(mode="after")
    def _folds_fit(self) -> Self:
        if self.folds == 1:
            raise MisfitError((("folds",), "must be 0 (no cross-validation) or >= 2, got 1"))
        if self.fold >= max(1, self.folds):
            raise MisfitError((("fold",), f"must be < folds ({self.folds}), got {self.fold}"))
        return self

    @model_validator(mode="after")
    def _groups_by_one_group(self) -> Self:
        try:
            groups = re.compile(self.group_by).groups if self.group_by else 1
        except re.error as error:
            raise MisfitError((("group_by",), f"not a regular expression: {error}")) from error
        if groups != 1:
            text = f"must have exactly one group, such as ^(\\w+)_, got {self.group_by!r} with {groups}"
            raise MisfitError((("group_by",), text))
        return self
