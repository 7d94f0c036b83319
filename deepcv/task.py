"""What is learned of an image: its class, which of several labels it has, or numbers."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["classification", "multi_label", "regression"]
PATTERN = r"^(label|boxes|tags\..+|numbers(\..+)?)$"
LIKELY = 0.5  # the probability from which a label is said to be there


@dataclass(frozen=True)
class Task:
    """What `preprocess.target` names, and of numbers their mean and standard deviation over the train images.

    `of` is `label`, the image's class; `boxes` or `tags.COLUMN`, the labels of its boxes or of a column of the table; `numbers` or
    `numbers.COLUMN`, numbers of the table.
    """

    of: str = "label"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not re.match(PATTERN, self.of):
            raise ValueError(f"expected label, boxes, tags.COLUMN, numbers or numbers.COLUMN, got {self.of!r}")

    @property
    def kind(self) -> Kind:
        """Classification, multi-label or regression."""
        if self.of == "label":
            return "classification"
        return "regression" if self.of.startswith("numbers") else "multi_label"

    @property
    def score_name(self) -> str:
        """What the score of an epoch is called: that of numbers is the share of their variance which is explained."""
        return "r2" if self.kind == "regression" else "accuracy"

    def stored(self) -> dict[str, Any]:
        """The entry `task` of a description, for `of_description`; none of classification, as before there were others."""
        return {} if self == CLASSIFICATION else {"task": asdict(self)}

    @classmethod
    def of_description(cls, description: Mapping[str, Any]) -> "Task":
        """Read what `stored` gave."""
        found = description.get("task", {"of": "label"})
        return cls(found["of"], tuple(found.get("mean", ())), tuple(found.get("std", ())))

    def columns(self, names: Sequence[str]) -> tuple[str, ...]:
        """Of a prediction, where this is the main target; `names` are the task's."""
        match self.kind:
            case "classification":
                return "label", "probability", "probabilities"
            case "multi_label":
                return "labels", "probabilities"
            case "regression":
                return tuple(names)

    def in_words(self, names: Sequence[str], answer: Sequence[float]) -> str:
        """Say the labels that are likely (`;` between them) of probabilities, or the numbers; `names` are the task's."""
        if self.kind == "regression":
            return ", ".join(f"{number:.4g}" for number in answer)
        return ";".join(name for name, share in zip(names, answer, strict=True) if share >= LIKELY)


CLASSIFICATION = Task()


@dataclass(frozen=True)
class FurtherTarget:
    """One of `preprocess.further_targets`: labels or numbers that outputs beside `logits` may learn, and what they are called."""

    task: Task
    names: tuple[str, ...]

    @property
    def of(self) -> str:
        """What params call it: `boxes`, `tags.COLUMN`, `numbers` or `numbers.COLUMN`."""
        return self.task.of

    @property
    def columns(self) -> tuple[str, ...]:
        """Of a prediction: `numbers.NAME` of each number; of labels those that are likely, and the probabilities."""
        if self.task.kind == "regression":
            return tuple(f"numbers.{name}" for name in self.names)
        return self.of, f"{self.of}.probabilities"

    def stored(self) -> dict[str, Any]:
        """As plain values, for `of_description`."""
        return {**asdict(self.task), "names": self.names}

    @classmethod
    def of_description(cls, values: Mapping[str, Any]) -> "FurtherTarget":
        """Read what `stored` gave."""
        return cls(Task(values["of"], tuple(values["mean"]), tuple(values["std"])), tuple(values["names"]))
