"""Networks of timm and torchvision as one node. Their weights are drawn as those libraries draw them; nothing is downloaded."""

import copy
import operator
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from difflib import get_close_matches
from typing import Annotated, Any

import torch
from torch import nn

from deepcv.nn import modes
from deepcv.nn.emitter import Emitter, FitError, Shape, Value, run_on_meta
from deepcv.nn.ops.op import Op, Range, maps

Classes = Annotated[int, Range(0, 10_000_000)]
Index = Annotated[int, Range(-64, 64)]


@dataclass(frozen=True)
class Timm(Op):
    """A network of timm by its name, `{id: net, timm: resnet18, classes: $classes}`.

    With `classes: 0`, the default, it gives its pooled features; with `features: true` its feature maps, from fine to coarse, of
    which `op: feature` takes one. `out_indices: [1, 2, 3]` takes these of them, and leaves out the stages behind the last.
    `pool: false` gives the last feature maps or tokens as they are.
    """

    name: str
    classes: Classes = 0
    features: bool = False
    pool: bool = True
    _: KW_ONLY
    out_indices: tuple[Index, ...] | None = None

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (classes,) or (F,), or with `features` to several (C', H', W')."""
        (x,) = inputs
        channels, height, width = maps(x)
        timm = _timm()
        if not timm.is_model(self.name):
            raise FitError(f"has no model {self.name!r}; {_near(self.name, timm.list_models())}")
        options: dict[str, Any] = {"features_only": True} if self.features else {"num_classes": self.classes}
        if self.out_indices is not None:
            _check_rising(self.out_indices)
            options["out_indices"] = self.out_indices
        if not self.features and not self.pool:
            options["global_pool"] = ""
        if getattr(timm.get_pretrained_cfg(self.name), "fixed_input_size", False):
            options["img_size"] = (height, width)
        try:
            with torch.device("cpu"):  # a model may compute as it is made
                module = timm.create_model(self.name, pretrained=False, in_chans=channels, **options)
        except (RuntimeError, TypeError, ValueError, AssertionError, LookupError) as error:
            told = f" with out_indices: {list(self.out_indices)}" if self.out_indices else ""
            raise FitError(f"{self.name} cannot be made for {x}{told}: {error}") from None
        return _called(emitter, module, x)


@dataclass(frozen=True)
class Torchvision(Op):
    """A network of torchvision by its name; with `at` the value of its node of that name, e.g. `at: layer3`, is given.

    `at: [layer2, layer3, layer4]` gives the values of several, in this order, of which `op: feature` takes one.
    """

    name: str
    classes: Classes = 1000
    at: str | tuple[str, ...] | None = None

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """(C, H, W) to (classes,), or to the shape that its node has, or to several."""
        (x,) = inputs
        maps(x)
        from torchvision import models  # a machine that trains other networks may lack it

        known = models.list_models(module=models)
        if self.name not in known:
            raise FitError(f"has no model {self.name!r} for classification; {_near(self.name, known)}")
        try:
            with torch.device("cpu"):
                module: nn.Module = models.get_model(self.name, weights=None, num_classes=max(self.classes, 1))
                if isinstance(self.at, str):
                    module = _First(_cut(module, (self.at,)))
                elif self.at is not None:
                    module = _Several(_cut(module, self.at), self.at)
        except (RuntimeError, TypeError, ValueError) as error:
            raise FitError(f"{self.name} cannot be made for {x}: {error}") from None
        return _called(emitter, module, x)


@dataclass(frozen=True)
class Feature(Op):
    """One of the feature maps of a network that gives several, by its place; -1 is the last and coarsest."""

    level: Index = -1

    def emit(self, emitter: Emitter, *inputs: Value) -> Value:
        """Several (C, H, W) to one."""
        (x,) = inputs
        if not x.shape or not isinstance(x.shape[0], tuple):
            raise FitError(
                f"needs a node with several feature maps, such as timm with features: true or torchvision with a list at, got {x}"
            )
        if not -len(x.shape) <= self.level < len(x.shape):
            raise FitError(f"level: {self.level} of {len(x.shape)} feature maps")
        return emitter.function(operator.getitem, (x, self.level), x.shape[self.level])


class _First(nn.Module):
    """The one value of a network that gives a dict."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def __deepcopy__(self, memo: dict[int, Any]) -> "_First":
        """A copy in the same mode, layer by layer: the deepcopy of torchvision's cut networks gives one in train mode."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        vars(copied).update(copy.deepcopy(vars(self), memo))
        modes.restore(copied, modes.resting(self))
        return copied

    def forward(self, images: torch.Tensor) -> Any:
        (value,) = self.body(images).values()
        return value


class _Several(_First):
    """Several values of a network that gives a dict, in the order of their names."""

    def __init__(self, body: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__(body)
        self.names = names

    def extra_repr(self) -> str:
        """What distinguishes it."""
        return ", ".join(self.names)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = self.body(images)
        return tuple(values[name] for name in self.names)


def _check_rising(indices: Sequence[int]) -> None:
    """Raise FitError for places that do not rise: timm gives feature maps from fine to coarse whatever the order."""
    if list(indices) != sorted(set(indices), key=lambda index: (index < 0, index)):
        raise FitError(f"out_indices must rise, from fine to coarse, each once, got {list(indices)}")


def _cut(module: nn.Module, at: Sequence[str]) -> nn.Module:
    """The network up to some nodes; a layer's name stands for the last node within. A FitError where there is none."""
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    try:
        cut: nn.Module = create_feature_extractor(module, list(at))
    except ValueError as error:
        problem = error
    else:
        return cut
    ways = [name.split(".") for names in get_graph_node_names(module, suppress_diff_warning=True) for name in names]
    nodes = dict.fromkeys(".".join(way[: depth + 1]) for way in ways for depth in range(len(way)))
    for name in at:
        if name not in nodes:
            raise FitError(f"at: no node {name!r}; {_near(name, list(nodes))}") from None
    raise problem


def _near(name: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name: the closest few, else the first few."""
    if near := get_close_matches(name, known, n=5, cutoff=0.6):
        return f"the closest are {', '.join(near)}" if len(near) > 1 else f"the closest is {near[0]}"
    return (
        f"there are {', '.join(known[:5])} and {len(known) - 5} more"
        if len(known) > 5
        else f"there are {', '.join(known)}"
    )


def _timm() -> Any:
    try:
        import timm
    except ImportError:
        raise FitError("needs the package timm: pip install timm") from None
    return timm


def _called(emitter: Emitter, module: nn.Module, x: Value) -> Value:
    shape: Shape = run_on_meta(copy.deepcopy(module).to("meta").eval(), x.shape)
    return emitter.module(module, x, shape)
