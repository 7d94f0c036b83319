"""The learning curve of a training, by epochs and within them."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from deepcv.task import Task
from deepcv.training.sharding import WholeModel


@dataclass(frozen=True)
class EpochRecord:
    """One point of the learning curve; losses in nats, accuracies 0–1, `lr` that of the next step or else the last.

    Accuracy is the `score` of `evaluation.metrics`, which knows the task; `further` has that of each further target on val, as
    `numbers.age.r2`.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    lr: float
    further: Mapping[str, float] = field(default_factory=dict)

    @property
    def rank(self) -> tuple[float, float]:
        """Greater is better: val accuracy, and among equal ones val loss."""
        return self.val_accuracy, -self.val_loss

    def named(self, task: Task) -> dict[str, Any]:
        """Plain values as people read them: the score of numbers is called r2."""
        values = asdict(self)
        further = {f"val_{name}": value for name, value in values.pop("further").items()}
        return {key.replace("accuracy", task.score_name): value for key, value in values.items()} | further

    def metrics(self, task: Task) -> dict[str, float]:
        """The same without the number of the epoch, which is where a curve has them."""
        values = self.named(task)
        del values["epoch"]
        return values


@dataclass(frozen=True)
class Point:
    """A point within an epoch: mean train loss since the one before, and what `values` the scheduled hyperparameters had at its end.

    `step` is the number of batches so far, as the progress bar counts them.
    """

    step: int
    train_loss: float
    values: Mapping[str, float]

    def metrics(self) -> dict[str, float]:
        """Plain values by the names that people read, without the number of the step, which is where a curve has them."""
        return {"train_loss": self.train_loss, **self.values}


@dataclass
class History:
    """The learning curve so far; part of every checkpoint.

    `points` are at least `every` batches apart, and one for an epoch is the least; `on_point` is told each new one.
    """

    records: list[EpochRecord] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    every: int = 0
    on_point: Callable[[Point], None] = lambda _point: None

    def due(self, step: int, length: int) -> bool:
        """Whether the batches since the last point are one of the equal parts that an epoch of `length` batches has."""
        parts = max(1, length // self.every) if self.every else 1
        last = self.points[-1].step if self.points else 0
        return step * parts // length > last * parts // length

    def add(self, point: Point) -> None:
        """Take the next point."""
        self.points.append(point)
        self.on_point(point)

    def waited(self) -> int:
        """Epochs since the best one."""
        ranks = [record.rank for record in self.records]
        return len(ranks) - 1 - ranks.index(max(ranks)) if ranks else 0

    def rows(self) -> list[dict[str, Any]]:
        """The records as plain values."""
        return [asdict(record) for record in self.records]

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        points = [(point.step, point.train_loss, dict(point.values)) for point in self.points]
        return {"records": self.rows(), "points": points}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.records = [EpochRecord(**record) for record in state["records"]]
        self.points = [Point(*point) for point in state["points"]]


class Best:
    """The weights of the best epoch so far, on the CPU; part of every checkpoint."""

    def __init__(self) -> None:
        self._rank: tuple[float, float] | None = None
        self._weights: dict[str, Tensor] = {}

    def offer(self, record: EpochRecord, model: WholeModel) -> None:
        """Keep a copy of the model's weights where the epoch is better than all before."""
        if self._rank is None or record.rank > self._rank:
            self._rank = record.rank
            self._weights = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}

    def put_into(self, model: WholeModel) -> None:
        """Give a model the weights that were kept, where there are any."""
        if self._weights:
            model.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers, for a checkpoint."""
        return {"rank": self._rank, "weights": self._weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self._rank = None if state["rank"] is None else tuple(state["rank"])
        self._weights = dict(state["weights"])
