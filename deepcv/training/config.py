"""How a network is trained, as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from deepcv.data.augmentation import Recipe
from deepcv.data.loaders import Views
from deepcv.nn.classifier import TestTimeViews
from deepcv.training import schedules
from deepcv.training.losses import Term
from deepcv.training.schedules import Schedule

Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class ProgressiveResize:
    """Images of `scale` times the side in the first `until` (a share) of the epochs."""

    scale: float = 1.0
    until: float = 0.0

    def epochs(self, total: int) -> int:
        """How many of `total` epochs see smaller images."""
        return round(self.until * total) if self.scale < 1 else 0

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the smaller images."""
        return max(1, round(self.scale * height)), max(1, round(self.scale * width))


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Field names are those of the `train` section; `auto` is resolved once, at the start."""

    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    momentum: float | Literal["auto"]
    weight_decay: float
    label_smoothing: float
    warmup: float
    flip: bool
    shift: int
    cutout: int
    seed: int
    threads: int | Literal["auto"]
    device: Literal["auto", "cpu", "cuda"]
    precision: Precision
    channels_last: Literal["auto"] | bool
    test_time_views: TestTimeViews = "one"
    least_crop: float = 0.08
    progressive_resize: ProgressiveResize = field(default_factory=ProgressiveResize)
    augmentation: Recipe = field(default_factory=Recipe)
    freeze: tuple[str, ...] = ()
    unfreeze: Mapping[str, int] = field(default_factory=dict)
    accumulate: int = 1
    clip_norm: float = 0.0
    ema: float = 0.0
    layer_decay: float = 1.0
    lr_scales: Mapping[str, float] = field(default_factory=dict)
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    hold_norms: bool = False
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    losses: tuple[Term, ...] = ()
    views: Views = field(default_factory=Views)
    balance: float = 0.0
    patience: int = 0
    select: Literal["last", "best"] = "last"
    keep_best: int = 0
    checkpoint_minutes: float = 10.0
    log_every: int = 50
    compile: bool | Literal["max-autotune"] = False
    deterministic: bool = True
    processes: int | Literal["auto"] = 1
    fsdp: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """Return the configuration of plain values, as params.yaml has them."""
        typed = {
            "progressive_resize": ProgressiveResize(**values["progressive_resize"]),
            "augmentation": Recipe.of(values["augmentation"]),
            "freeze": tuple(values["freeze"]),
            "losses": tuple(_term(term) for term in values["losses"]),
            "views": Views(**values["views"]),
            "schedules": {name: schedules.of(schedule) for name, schedule in values["schedules"].items()},
        }
        return cls(**{**values, **typed})


def _term(values: Mapping[str, Any]) -> Term:
    own = {key: value for key, value in values.items() if value is not None}
    known = {key: own.pop(key) for key in ("loss", "output", "target", "weight") if key in own}
    return Term(**known, options=own)
