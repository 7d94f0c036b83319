"""Parametrizations (`torch.nn.utils.parametrize`) as plain data: which tensor is computed how, so that a file can say it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

# What torch's own functions register; torch exports the functions, not these classes.
from torch.nn.utils.parametrizations import _Orthogonal, _SpectralNorm, _WeightNorm

Description = Mapping[str, Any] | nn.Module  # plain data for torch's own, the module itself for any other

_KINDS: Mapping[str, Callable[..., nn.Module]] = {
    "spectral_norm": parametrizations.spectral_norm,
    "weight_norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
}


def describe(root: nn.Module) -> dict[str, list[Description]]:
    """The parametrizations of each tensor, by its path (`head.weight`), in the order in which they are applied."""
    found: dict[str, list[Description]] = {}
    for path, module in root.named_modules():
        if parametrize.is_parametrized(module):
            for name, chain in module.parametrizations.items():
                found[f"{path}.{name}"] = [_described(one) for one in chain]
    return found


def restore(root: nn.Module, described: Mapping[str, Sequence[Description]]) -> None:
    """Give the tensors of a new network these parametrizations and no others; their values are loaded afterwards."""
    for path in describe(root):
        if path not in described:
            owner, _, name = path.rpartition(".")
            parametrize.remove_parametrizations(root.get_submodule(owner), name)
    for path, chain in described.items():
        owner, _, name = path.rpartition(".")
        module = root.get_submodule(owner)
        if not parametrize.is_parametrized(module, name):  # the network file may have said so itself
            for one in chain:
                _register(module, name, one)


def _described(one: nn.Module) -> Description:
    if isinstance(one, _SpectralNorm):
        iterations = getattr(one, "n_power_iterations", 1)  # a vector's norm is no estimate
        return {"kind": "spectral_norm", "n_power_iterations": iterations, "dim": one.dim, "eps": one.eps}
    if isinstance(one, _WeightNorm):
        return {"kind": "weight_norm", "dim": one.dim}
    if isinstance(one, _Orthogonal):
        return {
            "kind": "orthogonal",
            "orthogonal_map": one.orthogonal_map.name,
            "use_trivialization": hasattr(one, "base"),
        }
    return one


def _register(module: nn.Module, name: str, one: Description) -> None:
    if isinstance(one, nn.Module):
        parametrize.register_parametrization(module, name, one, unsafe=True)  # its checks were made the first time
        return
    options = {key: value for key, value in one.items() if key != "kind"}
    with torch.no_grad():
        _KINDS[one["kind"]](module, name, **options)
