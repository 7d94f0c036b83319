"""Which optimizer updates which parameters, and how strongly."""

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from deepcv.errors import DeepcvError
from deepcv.nn.parts import PartError, belongs
from deepcv.nn.spec.errors import closest
from deepcv.training.config import TrainConfig
from deepcv.training.depth import depths
from deepcv.training.muon import Muon

_BETAS = (0.9, 0.99)  # of adamw and muon; the first is sgd's momentum too
_ELSEWHERE = ("lr", "weight_decay", "momentum", "hold_norms")  # options that are keys of the train section
_SHAPES = ((4,), (4, 3), (1, 4, 4), (4, 3, 3, 3))  # of a bias, a matrix, tokens and a kernel
_NO_SCALES: Mapping[str, float] = {}
_FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def create_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of all parameters that require gradients; norms, biases, class tokens and positions are not decayed.

    adamw and muon take `momentum` as first beta, sgd has Nesterov momentum; any other is a class of torch.optim, `torch/NAdam`, or
    one of timm's, `timm/lamb`. `optimizer_options` are keywords of its constructor. Each group has `lr_scale`, a factor of its
    rate, and `decays`, as `parameter_groups` says. Raises DeepcvError as `check` does, and PartError as `parameter_groups` does.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    check(config, device)
    groups = parameter_groups(model, config.weight_decay, config.layer_decay, config.lr_scales)
    for group in groups:
        group["lr"] = config.lr * group["lr_scale"]
    kind, options = _chosen(config)
    if "/" in config.optimizer:
        groups = [group for group in groups if group["params"]]
    made: torch.optim.Optimizer = kind(groups, lr=config.lr, **options)
    return made


def check(config: TrainConfig, device: torch.device) -> None:
    """Raise DeepcvError for an optimizer that there is not, that lacks an option or cannot train.

    To tell, one of a library, or one with options, takes a step on a few small parameters.
    """
    kind, options = _chosen(config)
    if (betas := agreeing_betas(config)) is not None:
        raise DeepcvError(
            f"train.momentum {config.momentum} and train.optimizer_options.betas, which begin with "
            f"{config.optimizer_options['betas'][0]}, contradict each other; set momentum to auto, or betas to {betas}"
        )
    if "/" not in config.optimizer and not config.optimizer_options:
        return
    few = [nn.Parameter(torch.ones(shape, device=device)) for shape in _SHAPES]
    group = {"params": few, "weight_decay": config.weight_decay, "lr_scale": 1.0, "decays": True}
    for parameter in few:
        parameter.grad = torch.ones_like(parameter)
    with torch.random.fork_rng(devices=[]):
        try:
            made = kind([group], lr=config.lr, **options)
            made.step()
        except _FAILURES as error:
            given = f" with the options {dict(config.optimizer_options)}" if config.optimizer_options else ""
            none = config.momentum == "auto" and momentum_of(config) == 0
            raise DeepcvError(
                f"train.optimizer: {config.optimizer}{given} cannot train a network: {error}; adamw, sgd and muon can"
                + ("; set train.momentum, which auto leaves at 0" if none else "")
            ) from error
    if "momentum" in config.schedules and not has_momentum(made):
        raise DeepcvError(
            f"train.schedules.momentum: {config.optimizer} has no momentum that can change during training; remove the schedule"
        )


def agreeing_betas(config: TrainConfig) -> list[float] | None:
    """The betas of `optimizer_options` with `momentum` as the first; None where they agree with it, or it is none of them."""
    kind, _ = _chosen(config)
    betas = config.optimizer_options.get("betas")
    if betas is None or config.momentum in ("auto", betas[0]) or "momentum" in inspect.signature(kind).parameters:
        return None
    return [float(config.momentum), *betas[1:]]


def momentum_of(config: TrainConfig) -> float | None:
    """The momentum of a training, the first beta where the optimizer has betas instead; None where it has neither."""
    kind, options = _chosen(config)
    defaults = {name: one.default for name, one in inspect.signature(kind).parameters.items()} | options
    if "momentum" in defaults:
        return float(defaults["momentum"])
    return float(defaults["betas"][0]) if defaults.get("betas") else None


def set_momentum(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Change `momentum`, or the first beta where the optimizer has betas instead."""
    for group in optimizer.param_groups:
        if "momentum" in optimizer.defaults:
            group["momentum"] = value
        else:
            group["betas"] = (value, *group["betas"][1:])


def has_momentum(optimizer: torch.optim.Optimizer) -> bool:
    """Whether there is one that can be set."""
    return "momentum" in optimizer.defaults or "betas" in optimizer.defaults


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float = 1.0, lr_scales: Mapping[str, float] = _NO_SCALES
) -> list[dict[str, Any]]:
    """Parameters that require gradients, those with and without decay apart, and by the factor of their rate.

    Decayed are those of two axes or more, but for what a layer, or a network of timm, names in `no_weight_decay()`. The factor is
    `layer_decay` to the power of the layer's distance from the last one, times each of `lr_scales` whose part, as `train.freeze`
    names them, the parameter belongs to. Raises PartError for a part without parameters that learn.
    """
    named = {name.removeprefix("network."): p for name, p in model.named_parameters() if p.requires_grad}
    network = getattr(model, "network", model)
    places = depths(network, named) if layer_decay < 1 else dict.fromkeys(named, 0)
    last, kept = max(places.values(), default=0), list(_not_decayed(network))
    for part in lr_scales:
        if not any(belongs(name, part) for name in named):
            raise PartError(f"train.lr_scales: no part {part!r} with parameters that learn")
    found: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, True): [], (1.0, False): []}
    for name, parameter in named.items():
        own = math.prod(scale for part, scale in lr_scales.items() if belongs(name, part))
        decays = parameter.ndim > 1 and not any(fnmatchcase(name, pattern) for pattern in kept)
        found.setdefault((layer_decay ** (last - places[name]) * own, decays), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decays else 0.0, "lr_scale": scale, "decays": decays}
        for (scale, decays), parameters in found.items()
    ]


def _not_decayed(network: nn.Module) -> Iterator[str]:
    """The names that its parts give, which may have a `*`, as timm takes them."""
    for path, module in network.named_modules():
        if callable(names := getattr(module, "no_weight_decay", None)):
            yield from (f"{path}.{name}".lstrip(".") for name in names())


def _chosen(config: TrainConfig) -> tuple[Any, dict[str, Any]]:
    """What makes the optimizer, and the keywords that it takes beside groups and rate."""
    library, _, name = config.optimizer.rpartition("/")
    kind: Any
    given: dict[str, Any] = {}
    match library, name:
        case "", "sgd":
            kind, given = torch.optim.SGD, {"momentum": _BETAS[0], "nesterov": config.momentum != 0}
        case "", "adamw":
            kind, given = torch.optim.AdamW, {"betas": _BETAS}
        case "", "muon":
            kind, given = Muon, {"betas": _BETAS, "hold_norms": config.hold_norms}
        case "torch", _ if isinstance(found := getattr(torch.optim, name, None), type) and name != "Optimizer":
            kind = found
        case "timm", _:
            kind = _of_timm(name)
        case _:
            raise DeepcvError(
                "train.optimizer: expected adamw, sgd, muon, a class of torch.optim such as torch/NAdam or one of timm such as "
                f"timm/lamb, got {config.optimizer!r}"
            )
    known = inspect.signature(kind).parameters
    given |= _options(config, known)
    if config.momentum == "auto":
        return kind, given
    if "momentum" in known:
        return kind, given | {"momentum": config.momentum}
    if "betas" in known and (betas := given.get("betas", known["betas"].default)):
        _, *others = betas
        return kind, given | {"betas": (config.momentum, *others)}
    raise DeepcvError(f"train.momentum: {config.optimizer} has none; expected auto, got {config.momentum:g}")


def _of_timm(name: str) -> Any:
    from timm import optim  # late: a GPU machine may have torch and ignite alone

    if name not in (known := [str(one) for one in optim.list_optimizers()]):  # type: ignore[attr-defined]  # documented
        raise DeepcvError(f"train.optimizer: timm has no optimizer {name!r}; there are {', '.join(known)}")
    try:
        return optim.get_optimizer_class(name)  # type: ignore[attr-defined]
    except (AssertionError, ImportError) as error:  # which it raises where a GPU or a further package is missing
        raise DeepcvError(f"train.optimizer: timm/{name} cannot be used here: {error}") from error


def _options(config: TrainConfig, known: Iterable[str]) -> dict[str, Any]:
    """The options of params, lists as tuples. DeepcvError for one that the constructor does not take, or that has a key of its own."""
    own = [name for name in known if name not in ("params", *_ELSEWHERE)]
    for name, value in config.optimizer_options.items():
        what = f"train.optimizer_options.{name}"
        if name in _ELSEWHERE:
            raise DeepcvError(f"{what}: set train.{name}, which is the same")
        if name not in own:
            raise DeepcvError(f"{what}: {config.optimizer} has no such option; {closest(name, own)}")
        if name == "betas" and not (isinstance(value, list | tuple) and len(value) > 1):
            raise DeepcvError(f"{what}: expected a list of two numbers or more, got {value!r}")
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in config.optimizer_options.items()
    }
