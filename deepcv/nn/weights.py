"""Weights from elsewhere into a network: keys renamed, another head, a report of what did not fit, the images they expect."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepcv.errors import DeepcvError

Rule = tuple[str, str | None]

_PREFIX = re.compile(r"[\w.]*")
_COUNTER = "num_batches_tracked"  # of batch norms; files of old libraries lack it, and it decides nothing
_SHOWN = 10  # keys of one kind in a report
_SAME = 1e-3  # mean and std on the scale 0-1
_OURS = ("bilinear", "linear", "area", "box")  # DeepCV's resizing, by its closest names elsewhere
_STEPS: dict[str, object] = {"denoise": "none", "clahe": 0.0, "colour": "rgb"}  # of a recipe, where they are off


class WeightsError(DeepcvError):
    """Weights cannot be had, or do not fit."""


@dataclass(frozen=True)
class Preprocessing:
    """The images that weights were trained on: mean and std per channel on the scale 0–1, size (height, width) in pixels.

    The images were resized with `interpolation` and the central share `crop` of each side was kept. `resize` and `steps` are what
    the section `preprocess` calls them, steps those that are on, such as `colour: hsv`.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    interpolation: str
    crop: float = 1.0
    resize: str = "crop"
    steps: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True)
class Weights:
    """Tensors by key, where they are from, and what images they expect, where that is known."""

    state: Mapping[str, Tensor]
    origin: str
    preprocessing: Preprocessing | None = None


@dataclass(frozen=True)
class LoadReport:
    """What became of every key: of the network (loaded, missing, misshaped, new head) and of the weights (unexpected).

    `misshaped` are keys with the network's shape and that of the weights. `head` keeps the values that the network had.
    """

    origin: str
    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    head: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether every key of both sides has found its place, or belongs to the replaced head."""
        return not (self.missing or self.unexpected or self.misshaped)

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.missing) + len(self.misshaped) + len(self.head)
        lines = [f"{self.origin}: {len(self.loaded)} of the network's {total} tensors loaded"]
        shapes = [f"{key}: the network has {wanted}, the weights {got}" for key, wanted, got in self.misshaped]
        kinds = {
            "new head, not loaded": self.head,
            "missing in the weights": self.missing,
            "unexpected, not in the network": self.unexpected,
            "of another shape": shapes,
        }
        for kind, keys in kinds.items():
            if keys:
                more = f", and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
                lines.append(f"  {kind} ({len(keys)}): {', '.join(keys[:_SHOWN])}{more}")
        return "\n".join(lines)


def rename(state: Mapping[str, Tensor], rules: Sequence[Rule]) -> dict[str, Tensor]:
    r"""The tensors under other keys: each rule in turn, on what the rules before have made of a key.

    A rule is (pattern, replacement) and changes the beginning of the keys that it matches. A pattern of letters, digits,
    underscores and dots is that beginning, letter by letter; any other is a regular expression, e.g. `(r"layer(\d+)\.", r"stage\1.")`.
    A key that meets the replacement None is left out. Raises WeightsError where a rule is wrong or two keys become one.
    """
    compiled = [(_pattern(pattern), replacement) for pattern, replacement in rules]
    result: dict[str, Tensor] = {}
    for old, tensor in state.items():
        key: str | None = old
        for (pattern, literal), replacement in compiled:
            if key is None or not (found := pattern.match(key)):
                continue
            if replacement is None:
                key = None
                break
            try:
                key = (replacement if literal else found.expand(replacement)) + key[found.end() :]
            except (re.error, IndexError) as error:
                raise WeightsError(f"replacement {replacement!r} of {pattern.pattern!r}: {error}") from None
        if key is None:
            continue
        if key in result:
            raise WeightsError(f"after renaming, two tensors are called {key!r}; one of them was {old!r}")
        result[key] = tensor
    return result


def _pattern(pattern: str) -> tuple[re.Pattern[str], bool]:
    if _PREFIX.fullmatch(pattern):
        return re.compile(re.escape(pattern)), True
    try:
        return re.compile(pattern), False
    except re.error as error:
        raise WeightsError(f"pattern {pattern!r} is no regular expression: {error}") from None


def load_into(
    network: nn.Module,
    weights: Weights,
    *,
    rules: Sequence[Rule] = (),
    head: Sequence[str] = (),
    strict: bool = True,
) -> LoadReport:
    """Copy weights into a network, in the network's dtype and on its device.

    `head` names parts (`head`, `net.fc`) that may differ: one with a tensor that is missing or has another shape is left out
    whole and keeps the values that it has, in a new network those that were drawn. With `strict` everything else must
    fit: else WeightsError with the report, and nothing is changed. Without it, what fits is loaded.
    """
    own = network.state_dict()
    state = rename(weights.state, rules)
    for part in head:
        if not any(_inside(key, part) for key in own):
            raise WeightsError(f"head {part!r}: the network has no such part; it has {', '.join(_parts(own))}")
    replaced = [part for part in head if any(_inside(key, part) and not _same_shape(own, state, key) for key in own)]
    new_head = [key for key in own if any(_inside(key, part) for part in replaced)]
    left = {key: tensor for key, tensor in state.items() if not any(_inside(key, part) for part in replaced)}
    rest = [key for key in own if key not in set(new_head)]
    report = LoadReport(
        weights.origin,
        loaded=tuple(key for key in rest if _same_shape(own, left, key)),
        missing=tuple(key for key in rest if key not in left and not key.endswith(_COUNTER)),
        unexpected=tuple(key for key in left if key not in own),
        misshaped=tuple(
            (key, tuple(own[key].shape), tuple(left[key].shape))
            for key in rest
            if key in left and not _same_shape(own, left, key)
        ),
        head=tuple(new_head),
    )
    if strict and not report.fits:
        raise WeightsError(f"the weights do not fit, nothing is loaded. {report}")
    with torch.no_grad():
        for key in report.loaded:
            own[key].copy_(left[key])
    return report


def _inside(key: str, part: str) -> bool:
    return f"{key}.".startswith(f"{part}.")


def _same_shape(own: Mapping[str, Tensor], state: Mapping[str, Tensor], key: str) -> bool:
    return key in state and state[key].shape == own[key].shape


def _parts(state: Mapping[str, Tensor]) -> list[str]:
    return list(dict.fromkeys(key.partition(".")[0] for key in state))


def of_recipe(mean: Sequence[float], std: Sequence[float], recipe: Mapping[str, Any]) -> Preprocessing:
    """The images of a training of DeepCV, from what `ModelInfo` holds of them."""
    return Preprocessing(
        tuple(mean), tuple(std), (int(recipe["height"]), int(recipe["width"])), "bilinear", float(recipe.get("keep", 1.0)),
        str(recipe["resize"]), steps_of(recipe),
    )  # fmt: skip


def steps_of(recipe: Mapping[str, Any]) -> tuple[tuple[str, object], ...]:
    """The steps of a recipe that are on, but for size, `resize` and `keep`."""
    return tuple((name, recipe[name]) for name, off in _STEPS.items() if recipe.get(name, off) != off)


def check_preprocessing(
    expected: Preprocessing,
    mean: Sequence[float],
    std: Sequence[float],
    size: tuple[int, int],
    resize: str = "stretch",
    keep: float = 1.0,
    steps: tuple[tuple[str, object], ...] = (),
) -> list[str]:
    """One sentence for each thing in which the images differ from those that the weights were trained on; [] where nothing does.

    Values are those of `ModelInfo`: mean and std on the scale 0–1, size (height, width), `resize` and `keep` of the recipe,
    and its other steps as `steps_of` tells them.
    """
    found = []
    for name, wanted, got in (("mean", expected.mean, mean), ("std", expected.std, std)):
        if len(wanted) != len(got):
            found.append(f"the weights expect {len(wanted)} channels, the images have {len(got)}")
            break
        if any(abs(a - b) > _SAME for a, b in zip(wanted, got, strict=True)):
            found.append(f"the weights expect the {name} {_numbers(wanted)}, preprocessing has {_numbers(got)}")
    if expected.size != tuple(size):
        found.append(f"the weights expect images of {_size(expected.size)} pixels, preprocess makes {_size(size)}")
    if resize != expected.resize:
        what = "the centre of the image" if expected.resize == "crop" else "images prepared in another way"
        found.append(f"the weights expect {what} (preprocess.resize: {expected.resize}), not {resize!r}")
    if abs(expected.crop - keep) > 0.01:
        found.append(
            f"the weights expect the central {expected.crop:.3f} of each side (preprocess.keep), preprocess keeps {keep:.3f}"
        )
    if expected.interpolation not in _OURS:
        found.append(
            f"the weights expect {expected.interpolation} interpolation; preprocess averages areas or interpolates linearly"
        )
    wanted_steps, got_steps = _STEPS | dict(expected.steps), _STEPS | dict(steps)
    for name, step in wanted_steps.items():
        if got_steps[name] != step:
            found.append(f"the weights expect images of preprocess.{name}: {step}, preprocess has {got_steps[name]}")
    return found


def _numbers(values: Sequence[float]) -> str:
    return f"({', '.join(f'{value:.4g}' for value in values)})"


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"
