"""Which optimizer updates which parameters, and how strongly."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from deepcv.errors import DeepcvError
from deepcv.training.config import TrainConfig
from deepcv.training.muon import Muon


def create_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of all parameters that require gradients; norms and biases are not decayed.

    adamw and muon take `momentum` as first beta, sgd has Nesterov momentum; any other is a class of torch.optim, `torch/NAdam`, or
    one of timm's, `timm/lamb`, with their own defaults beside rate and decay. Each group has `lr_scale`, a factor of its rate
    that is `layer_decay` to the power of its layer's distance from the last one, and `decays`. Raises DeepcvError for an unknown
    name.
    """
    groups = parameter_groups(model, config.weight_decay, config.layer_decay)
    for group in groups:
        group["lr"] = config.lr * group["lr_scale"]
    library, _, name = config.optimizer.rpartition("/")
    match library, name:
        case "", "sgd":
            return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)
        case "", "adamw":
            return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.99))
        case "", "muon":
            return Muon(groups, lr=config.lr, betas=(config.momentum, 0.99), hold_norms=config.hold_norms)
        case "torch", _ if isinstance(found := getattr(torch.optim, name, None), type) and name != "LBFGS":
            return _created(found, groups, config.lr)
        case "timm", _:
            return _of_timm(name, groups, config.lr)
    raise DeepcvError(
        f"train.optimizer: expected adamw, sgd, muon, a class of torch.optim such as torch/NAdam or one of timm such as timm/lamb, "
        f"got {config.optimizer!r}"
    )


def parameter_groups(model: nn.Module, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """Parameters that require gradients, those with and without decay apart, and by layer where rates differ.

    A layer is a part of the network as `train.freeze` names it, in the order of the network file.
    """
    named = {name.removeprefix("network."): p for name, p in model.named_parameters() if p.requires_grad}
    layers = list(dict.fromkeys(name.partition(".")[0] for name in named))
    found: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, True): [], (1.0, False): []}
    for name, parameter in named.items():
        distance = len(layers) - 1 - layers.index(name.partition(".")[0])
        found.setdefault((layer_decay**distance, parameter.ndim > 1), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decays else 0.0, "lr_scale": scale, "decays": decays}
        for (scale, decays), parameters in found.items()
    ]


def _of_timm(name: str, groups: Iterable[Mapping[str, Any]], lr: float) -> torch.optim.Optimizer:
    from timm import optim  # late: a GPU machine may have torch and ignite alone

    if name not in (known := [str(one) for one in optim.list_optimizers()]):  # type: ignore[attr-defined]  # documented
        raise DeepcvError(f"train.optimizer: timm has no optimizer {name!r}; there are {', '.join(known)}")
    return _created(optim.get_optimizer_class(name), groups, lr)  # type: ignore[attr-defined]


def _created(kind: Any, groups: Iterable[Mapping[str, Any]], lr: float) -> torch.optim.Optimizer:
    try:
        made = kind([group for group in groups if group["params"]], lr=lr)
    except TypeError as error:
        raise DeepcvError(f"train.optimizer: {kind.__name__} cannot be made from groups and a rate: {error}") from error
    if not isinstance(made, torch.optim.Optimizer):
        raise DeepcvError(f"train.optimizer: {kind.__name__} is no optimizer of torch")
    return made
