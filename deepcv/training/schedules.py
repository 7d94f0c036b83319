"""How a hyperparameter changes over a training: curves that depend on the step alone, so that a resumed training goes on along them.

A schedule is what params name; `curve` gives the values of one training. Plateaus follow the learning curve instead.
"""

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Shape = Literal["cosine", "linear", "exponential", "step"]


@dataclass(frozen=True)
class Curve:
    """Values at `points` (step, value), ascending, and between them by `shape`; before the first and after the last point, theirs.

    `step` keeps a point's value up to the next.
    """

    points: tuple[tuple[float, float], ...]
    shape: Shape = "linear"

    def at(self, step: float) -> float:
        """The value at a step, counted from 0."""
        points = self.points
        following = bisect.bisect_left(points, step, key=_step_of)
        if following == 0:
            return points[0][1]
        if following == len(points):
            return points[-1][1]
        (begin, start), (finish, end) = points[following - 1], points[following]
        if step == finish:
            return end
        share = (step - begin) / (finish - begin)
        match self.shape:
            case "cosine":
                return end + (start - end) / 2.0 * (math.cos(math.pi * share) + 1)
            case "linear":
                return (end - start) * share + start
            case "exponential":
                return start * math.pow(end / start, share)
            case "step":
                return start


def _step_of(point: tuple[float, float]) -> float:
    return point[0]


@dataclass(frozen=True)
class OneCycle:
    """Up from `start` to `peak` in the share `warmup` of the steps, then down to `end` (Smith and Topin 2017, arXiv 1708.07120).

    With `phases: 3` as long down to `start` as it went up, then to `end`. Where they are not given, `peak` is the value
    that params give the hyperparameter, `start` a 25th of it and `end` a 10,000th of `start`: torch's OneCycleLR. For a
    momentum set `start` and `end` above `peak`.
    """

    warmup: float = 0.25
    peak: float | None = None
    start: float | None = None
    end: float | None = None
    phases: Literal[2, 3] = 2
    shape: Literal["cosine", "linear"] = "cosine"

    def curve(self, value: float, steps: int) -> Curve:
        """The values over `steps` steps of what params give `value`."""
        peak = value if self.peak is None else self.peak
        start = peak / 25 if self.start is None else self.start
        end = start / 1e4 if self.end is None else self.end
        rise = self.warmup * steps - 1
        points = [(0.0, start), (rise, peak)] if rise > 0 else [(min(rise, 0.0), peak)]
        if self.phases == 3 and steps - 1 > 2 * rise + 1 > rise:
            points.append((2 * rise, start))
        return Curve(_ascending(points, (steps - 1, end)), self.shape)


@dataclass(frozen=True)
class Ramp:
    """From `start` to `end` by a shape, after `warmup` (a share of the steps) of a linear rise from zero.

    Where they are not given, `start` is the value that params give the hyperparameter, and `end` is 0. `until` is the share
    of the steps at which `end` is reached.
    """

    shape: Shape = "cosine"
    start: float | None = None
    end: float = 0.0
    warmup: float = 0.0
    until: float = 1.0

    def begin(self, value: float) -> float:
        """The value of the first step behind the warm-up, of what params give `value`."""
        return value if self.start is None else self.start

    def curve(self, value: float, steps: int) -> "Curve | Joined":
        """The values over `steps` steps of what params give `value`."""
        start = self.begin(value)
        rise, last = self.warmup * steps, self.until * steps - 1
        if steps == 1:
            return Curve(((0.0, start),))
        falling = Curve(_ascending([(rise, start)], (last, self.end)), self.shape)
        if rise <= 0:
            return falling
        return Joined(Curve(((-1.0, 0.0), (rise, start)), "linear"), falling, rise)


@dataclass(frozen=True)
class Joined:
    """One curve before a step, another from it on."""

    first: Curve
    second: Curve
    step: float

    def at(self, step: float) -> float:
        """The value at a step, counted from 0."""
        return (self.first if step < self.step else self.second).at(step)


@dataclass(frozen=True)
class Piecewise:
    """Through `points`, pairs of (share of the steps, value)."""

    points: tuple[tuple[float, float], ...]
    shape: Shape = "linear"

    def curve(self, value: float, steps: int) -> Curve:  # noqa: ARG002 - one signature for all schedules
        """The values over `steps` steps."""
        last = steps - 1
        return Curve(tuple((min(share * steps, last) if share else 0.0, at) for share, at in self.points), self.shape)


@dataclass(frozen=True)
class Plateau:
    """Times `factor` whenever `metric` has not become better by `least` for `patience` epochs, down to `floor`."""

    factor: float = 0.5
    patience: int = 3
    metric: Literal["val_loss", "val_accuracy", "train_loss"] = "val_loss"
    least: float = 1e-4
    floor: float = 0.0

    def value(self, value: float, history: Sequence[Mapping[str, float]]) -> float:
        """The value after the epochs of `history`; a function of it alone, so that no state can be lost."""
        sign = -1.0 if self.metric == "val_accuracy" else 1.0
        best, waited = math.inf, 0
        for record in history:
            found = sign * record[self.metric]
            if found < best - self.least:
                best, waited = found, 0
            elif (waited := waited + 1) > self.patience:
                value, waited = min(value, max(self.floor, value * self.factor)), 0
        return value


Schedule = OneCycle | Ramp | Piecewise | Plateau


def of(values: Mapping[str, Any]) -> Schedule:
    """Return the schedule of plain values, as params.yaml has them: `kind`, and what that kind has."""
    rest = {key: value for key, value in values.items() if key != "kind" and value is not None}
    match values["kind"]:
        case "one_cycle":
            return OneCycle(**rest)
        case "piecewise":
            points = tuple((float(share), float(value)) for share, value in rest.pop("points"))
            return Piecewise(points, **rest)
        case "plateau":
            return Plateau(**rest)
        case shape:
            return Ramp(shape, **rest)


def _ascending(points: Sequence[tuple[float, float]], last: tuple[float, float]) -> tuple[tuple[float, float], ...]:
    """All points that come before the last one, and it."""
    kept = [point for point in points if point[0] < last[0]]
    return (*kept, last)
