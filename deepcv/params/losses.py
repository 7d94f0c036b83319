"""What a training minimises: the entries of `train.losses`, and how many views of an image they see."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from deepcv.params.base import Group, MisfitError
from deepcv.task import Kind

# The options of each loss and what they are where params do not say; what they mean and must be is deepcv.training.losses', and a
# test holds the two together.
OPTIONS: Mapping[str, Mapping[str, float | str]] = {
    "cross_entropy": {"label_smoothing": 0.0, "class_weights": "none"},
    "focal": {"gamma": 2.0, "class_weights": "none"},
    "one_vs_rest": {"label_smoothing": 0.0, "target_threshold": 0.0, "sum_classes": False, "pos_weight": 1.0},
    "jensen_shannon": {},
    "triplet": {"margin": 0.2, "mining": "hard", "distance": "euclidean"},
    "nt_xent": {"temperature": 0.5},
    "supcon": {"temperature": 0.1},
    "bce": {"label_smoothing": 0.0, "pos_weight": 1.0},
    "sigmoid_focal": {"gamma": 2.0, "alpha": 0.25},
    "mse": {},
    "l1": {},
    "smooth_l1": {"beta": 1.0},
    "huber": {"delta": 1.0},
    "none": {},
}
# The tasks of each loss; `deepcv.training.losses` has them by kinds of targets.
_EVERY: tuple[Kind, ...] = ("classification", "multi_label", "regression")
_OTHERS: Mapping[str, tuple[Kind, ...]] = {
    "bce": ("multi_label",), "sigmoid_focal": ("multi_label",),
    "mse": ("regression",), "l1": ("regression",), "smooth_l1": ("regression",), "huber": ("regression",),
    "nt_xent": _EVERY, "none": _EVERY,
}  # fmt: skip
TASKS: Mapping[str, tuple[Kind, ...]] = {name: _OTHERS.get(name, ("classification",)) for name in OPTIONS}
MAIN = "label"  # what a loss calls preprocess.target, whatever that is
WITHOUT_TARGET = ("jensen_shannon", "nt_xent", "none")
_Share = Annotated[float, Field(ge=0, lt=1)]
_Positive = Annotated[float, Field(gt=0, le=1e6)]


class LossParams(Group):
    """One loss of one output of the network; `none` says that nothing is learned from an output."""

    also_called: ClassVar[Mapping[str, str]] = {"name": "loss", "smoothing": "label_smoothing", "tau": "temperature"}

    loss: Literal[
        "cross_entropy", "focal", "one_vs_rest", "jensen_shannon", "triplet", "nt_xent", "supcon",
        "bce", "sigmoid_focal", "mse", "l1", "smooth_l1", "huber", "none",
    ] = Field(description="loss")  # fmt: skip
    output: str = Field("logits", min_length=1, description="output of the network")
    target: str = Field(
        "label",
        min_length=1,
        description="label: what preprocess.target names; images: the augmented ones, normalised; or one of preprocess.further_targets",
    )
    weight: float = Field(1.0, ge=0, le=1e6, description="factor in the sum of all losses")
    label_smoothing: _Share | None = Field(None, description="share of the target spread over all classes; else 0")
    class_weights: Literal["none", "balanced"] | None = Field(None, description="balanced: rare classes count for more")
    gamma: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, description="how much less easy images count; else 2"
    )
    target_threshold: _Share | None = Field(None, description="soft targets above it are 1, others 0; else 0: kept")
    sum_classes: bool | None = Field(None, description="sum over the classes, instead of their mean")
    pos_weight: _Positive | None = Field(None, description="how much a present class counts; else 1")
    margin: _Positive | None = Field(None, description="by how much nearer images of one class should be; else 0.2")
    mining: Literal["hard", "semi_hard", "all"] | None = Field(None, description="which triplets count; else hard")
    distance: Literal["euclidean", "cosine"] | None = Field(None, description="between embeddings; else euclidean")
    temperature: _Positive | None = Field(None, description="of similarities; else 0.5 of nt_xent, 0.1 of supcon")

    alpha: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="weight of present labels; else 0.25")
    beta: _Positive | None = Field(None, description="error from which it counts by itself, not squared; else 1")
    delta: _Positive | None = Field(None, description="likewise, of huber; else 1")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        own = OPTIONS[self.loss]
        for key in self.model_dump(exclude_none=True).keys() - {"loss", "output", "target", "weight", *own}:
            raise MisfitError(
                ((key,), f"{self.loss} has no {key}; it has {', '.join(('output', 'target', 'weight', *own))}")
            )
        if self.target == "images" and "regression" not in TASKS[self.loss]:
            raise MisfitError((("target",), f"{self.loss} cannot learn images; mse, l1, smooth_l1 and huber can"))
        return self


class ViewsParams(Group):
    """How many pictures of each image a step sees."""

    count: int = Field(1, ge=1, le=16, description="pictures of an image, each augmented by itself")
    first: Literal["augmented", "clean"] = Field(
        "augmented",
        description="clean: the first has no operations and no policy, and all have its flip, shift and cutout",
    )
