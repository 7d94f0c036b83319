"""Where the images come from and how they are split."""

from typing import ClassVar, Self

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
    val_fraction: float = Field(0.1, gt=0, lt=1, description="share of the images that is held out for validation")
    test_fraction: float = Field(0.2, gt=0, lt=1, description="share of the images that is held out for the test")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the split")

    @model_validator(mode="after")
    def _leaves_images_to_train_on(self) -> Self:
        total = self.val_fraction + self.test_fraction
        if total >= 1:
            text = (
                f"val_fraction + test_fraction must be < 1, got {self.val_fraction} + {self.test_fraction} = {total:g}"
            )
            raise MisfitError((("test_fraction",), text))
        return self
