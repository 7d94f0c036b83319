"""The network and how it is trained."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from deepcv.params.augmentation import FITTING, AugmentationParams
from deepcv.params.base import Group, MisfitError, Place, Section
from deepcv.params.losses import LossParams, ViewsParams
from deepcv.params.schedules import ScheduleParams, problem

NO_WEIGHTS = "networks/weights/none.yaml"
# What a network's parameter or a choice of the search may be; whole numbers fit 64 bits, as databases want them.
Scalar = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | float | str | bool
_Few = Annotated[list[float], Field(min_length=1, max_length=16)]


class ProgressiveResizeParams(Group):
    """Smaller images in the first epochs: they cost less and teach almost as much."""

    scale: float = Field(1.0, gt=0, le=1, description="side of the first images, as a share of the whole")
    until: float = Field(0.0, ge=0, le=1, description="share of the epochs that see them; 0: none")


class TrainParams(Section):
    """Section `train`."""

    section: ClassVar[str] = "train"
    also_called: ClassVar[Mapping[str, str]] = {
        "learning_rate": "lr",
        "max_lr": "lr",
        "model": "network",
        "num_epochs": "epochs",
        "num_workers": "threads",
        "dtype": "precision",
        "memory_format": "channels_last",
        "pct_start": "warmup",
        "pretrained": "weights",
        "test_time_flip": "test_time_views",
    }

    network: str = Field(min_length=1, description="network file")
    network_parameters: dict[str, Scalar] = Field(
        default_factory=dict, description="values for the network file's $parameters"
    )
    network_choices: dict[str, Annotated[str, Field(min_length=1)]] = Field(
        default_factory=dict, description="what the network file's choices pick, by the id of their node"
    )
    weights: str = Field(NO_WEIGHTS, min_length=1, description="file that says which weights to start from")
    freeze: list[str] = Field(default_factory=list, description="parts of the network that do not learn")
    unfreeze: dict[str, Annotated[int, Field(ge=1, le=100_000)]] = Field(
        default_factory=dict, description="parts that learn from an epoch on, counted from 1"
    )
    epochs: int = Field(12, ge=1, le=100_000, description="passes over the train split")
    balance: float = Field(
        0.0, ge=0, le=1, description="0: classes are visited as often as they are; 1: all equally often"
    )
    batch_size: int = Field(64, ge=1, le=65_536, description="images per step")
    optimizer: Literal["adamw", "sgd", "muon"] | Annotated[str, Field(pattern=r"^(torch|timm)/\w+$")] = Field(
        "adamw", description="or a class of torch.optim, such as torch/NAdam, or one of timm, such as timm/lamb"
    )
    lr: float = Field(0.01, gt=0, le=100, description="peak learning rate of the OneCycle schedule")
    optimizer_options: dict[str, Scalar | _Few] = Field(
        default_factory=dict, description="other keywords of the optimizer: {betas: [0.9, 0.95], eps: 1.0e-6}"
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = Field(
        "auto", description="or the first beta; auto: 0.9 of adamw, sgd and muon, of others what is theirs"
    )
    weight_decay: float = Field(0.01, ge=0, le=10, description="weight decay")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share of the target spread over all classes")
    clip_norm: float = Field(0.0, ge=0, le=1e6, description="largest norm of the gradients; 0: any")
    accumulate: int = Field(1, ge=1, le=10_000, description="batches per step of the optimizer")
    ema: float = Field(
        0.0, ge=0, lt=1, description="share of its past that a running mean of the weights keeps; 0: none"
    )
    layer_decay: float = Field(1.0, gt=0, le=1, description="rate of each layer, times that of the one after it")
    lr_scales: dict[str, Annotated[float, Field(gt=0, le=1000)]] = Field(
        default_factory=dict, description="factors of the rates of parts, by their names as `freeze` has them"
    )
    hold_norms: bool = Field(
        False, description="muon keeps the norm of every kernel: for networks with a norm behind each convolution"
    )
    losses: list[LossParams] = Field(
        default_factory=list, description="what is minimised, instead of the cross entropy of `logits`"
    )
    views: ViewsParams = Field(
        default_factory=lambda: ViewsParams.model_validate({}), description="pictures of each image in a step"
    )
    schedules: dict[str, ScheduleParams] = Field(
        default_factory=dict, description="how hyperparameters change over the training"
    )
    warmup: float = Field(0.25, ge=0, lt=1, description="share of the steps in which the learning rate rises")
    flip: bool = Field(False, description="mirror images left to right at random")
    shift: int = Field(1, ge=0, le=4096, description="largest random translation, in pixels")
    cutout: int = Field(0, ge=0, le=4096, description="side of the random square that is blanked, in pixels; 0: none")
    least_crop: float = Field(
        0.08,
        gt=0,
        le=1,
        description="least area of a random crop as a share of the image, where images are stored encoded",
    )
    progressive_resize: ProgressiveResizeParams = Field(
        default_factory=lambda: ProgressiveResizeParams.model_validate({}),
        description="smaller images in the first epochs",
    )
    augmentation: AugmentationParams = Field(
        default_factory=lambda: AugmentationParams.model_validate({}),
        description="what else happens to training images",
    )
    test_time_views: Literal["one", "flip", "flip_shift"] = Field(
        "one", description="pictures of an image whose mean is the answer: 1, 2 or 6 times the work"
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the weights, the order and the augmentation")
    threads: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = Field(
        1, description="CPU threads; another number, other last bits"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="arithmetic of the forward pass")
    channels_last: Literal["auto"] | bool = Field("auto", description="memory layout of the images")
    processes: Annotated[int, Field(ge=1, le=10_000)] | Literal["auto"] = Field(
        1, description="that share every batch, each with a GPU or threads of its own; auto: one per GPU"
    )
    fsdp: bool = Field(
        False,
        description="spread weights, gradients and optimizer state over the processes, where training does not fit one GPU",
    )
    compile: bool | Literal["max-autotune"] = Field(
        False, description="compile the network with torch.compile; max-autotune tries kernels for minutes"
    )
    deterministic: bool = Field(
        True, description="a GPU computes the same bits each time; false: what it finds to be fastest"
    )
    patience: int = Field(
        0, ge=0, le=100_000, description="epochs without progress after which training ends; 0: never"
    )
    select: Literal["last", "best"] = Field("last", description="which epoch's weights become the model")
    keep_best: int = Field(
        0, ge=0, le=1000, description="epochs whose models are kept for the archive, the best ones; 0: none"
    )
    checkpoint_minutes: float = Field(10.0, gt=0, le=100_000, description="longest work that a crash may cost")
    log_every: int = Field(
        50,
        ge=0,
        le=1_000_000,
        description="least batches between two points of the curve, of which an epoch has one at least; 0: that",
    )
    archive: bool = Field(
        False, description="copy the checkpoints to the MLflow run when training ends or is interrupted"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        values = self.model_dump(exclude={"schedules"})
        found: list[tuple[Place, str]] = [
            (("schedules", name), text)
            for name, schedule in self.schedules.items()
            if (text := problem(name, schedule, values)) is not None
        ]
        if self.losses and "label_smoothing" in self.schedules:
            found.append(
                (
                    ("schedules", "label_smoothing"),
                    "it is that of the loss which `losses` replaces; theirs is losses.0.label_smoothing",
                )
            )
        if self.views.count > 1 and self.augmentation.mixup.probability + self.augmentation.cutmix.probability:
            found.append(
                (("views", "count"), "MixUp and CutMix change one view of an image alone; expected 1 with them")
            )
        if self.hold_norms and self.optimizer != "muon":
            found.append((("hold_norms",), f"is for muon, and the optimizer is {self.optimizer}; expected false"))
        if self.keep_best and not self.archive:
            found.append(
                (
                    ("keep_best",),
                    "the models of the best epochs are removed with the checkpoints when training ends; "
                    "set archive: true, which copies both to the MLflow run, or keep_best: 0",
                )
            )
        if found:
            raise MisfitError(*found)
        return self

    def false_colours(self, colour: str) -> dict[str, str]:
        """Say, by key, what would make colours that images in this space (preprocess.colour) do not have; empty: nothing."""
        fitting, found, recipe = FITTING[colour], {}, self.augmentation
        mixes = [
            name
            for name, mix in (("mixup", recipe.mixup), ("cutmix", recipe.cutmix))
            if mix.probability or f"augmentation.{name}.probability" in self.schedules
        ]
        policy = [] if recipe.policy == "none" else [recipe.policy]
        chains = ["chains"] if recipe.chains and recipe.operations else []
        used = dict.fromkeys([*(own.name for own in recipe.operations), *chains, *policy, *mixes])
        if wrong := [name for name in used if name not in fitting]:
            right = ", ".join(sorted(fitting - {"cutout"}))
            found["augmentation"] = (
                f"{' and '.join(wrong)} would make false colours of the {colour} of preprocess.colour; expected {right} alone, or "
                "preprocess.colour: rgb"
            )
        if (self.cutout or "cutout" in self.schedules) and "cutout" not in fitting:
            found["cutout"] = f"0 in each channel is no black in preprocess.colour {colour}; expected 0, or colour: rgb"
        return found

    def described(self) -> dict[str, Any]:
        """What a training is known by, as plain values: all but what it keeps and tells, which may change meanwhile.

        Nor what hardware settings come from, which are told as what they became: so `auto` may be replaced by that meanwhile.
        """
        hardware = {"device", "precision", "channels_last", "threads", "processes"}
        return self.model_dump(exclude_none=True, exclude={"archive", "log_every", *hardware})

    def configuration(self) -> dict[str, Any]:
        """How to train, as plain values: all but the files, what goes into them and where they end."""
        return self.model_dump(exclude={"network", "network_parameters", "network_choices", "weights", "archive"})
