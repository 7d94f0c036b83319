"""Named parts of networks: frozen, shared between networks, forked and merged again.

A part is named by the id of a node or of a template use (`stem`, `res1.first`); `freeze` and `unfreeze` also take `*` for any
letters (`res*`, `stem.*`).
`share`, `fork` and `merge` work on the tensors of layers, never on the layers: graphs and their subgraphs stay as they are.
Make optimizers after sharing and forking: they hold parameters.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from deepcv.errors import DeepcvError
from deepcv.nn.layers.norms import has_statistics
from deepcv.nn.module import is_frozen

State = Mapping[str, Tensor]


class PartError(DeepcvError):
    """A network has no such part, or two parts do not fit each other."""


def freeze(network: nn.Module, *parts: str) -> list[str]:
    """Let the parameters of parts learn no more and return their names.

    Batch norms that learn nothing any more use their statistics, and in a `DeepcvModule` go on to do so in train mode. Raises
    PartError for a part without parameters.
    """
    return _set_frozen(network, parts, frozen=True)


def unfreeze(network: nn.Module, *parts: str) -> list[str]:
    """Let the parameters of parts learn and return their names; batch norms take the network's mode. Raises PartError."""
    return _set_frozen(network, parts, frozen=False)


def _set_frozen(network: nn.Module, parts: Sequence[str], *, frozen: bool) -> list[str]:
    parameters = dict(network.named_parameters())
    chosen: dict[str, nn.Parameter] = {}
    for part in parts:
        found = {name: parameter for name, parameter in parameters.items() if belongs(name, part)}
        if not found:
            raise PartError(f"no part {part!r} with parameters; there are {_known(network)}")
        chosen |= found
    for parameter in chosen.values():
        parameter.requires_grad_(not frozen)
    for name, module in network.named_modules():
        if has_statistics(module) and any(key.rpartition(".")[0] == name for key in chosen):
            module.train(network.training and not is_frozen(module))
    return list(chosen)


def belongs(name: str, part: str) -> bool:
    """Whether a parameter of this name is one of a part, whose name may have a `*`."""
    return fnmatchcase(name, part) or fnmatchcase(name, f"{part}.*")


def _known(network: nn.Module) -> str:
    return ", ".join(dict.fromkeys(name.partition(".")[0] for name in network.state_dict()))


def state_of(network: nn.Module, part: str) -> dict[str, Tensor]:
    """A copy of the tensors of one part, by their keys inside it, e.g. `conv.weight`. Raises PartError."""
    return {name: tensor.detach().clone() for name, (_, _, tensor) in _tensors(network, part).items()}


def load_state(network: nn.Module, part: str, state: State) -> None:
    """Copy tensors into a part, whose keys and shapes they must have; who shares it sees them. Raises PartError."""
    own = {name: tensor for name, (_, _, tensor) in _tensors(network, part).items()}
    _check_fit(own, state, part, "the state")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])


def share(base: nn.Module, base_part: str, other: nn.Module, other_part: str) -> None:
    """Let `other` use the very parameters and buffers of `base`'s part: what one learns, both have.

    Move both to their device and dtype before. A copy or a pickle of one network alone has tensors of its own. Raises PartError
    where keys or shapes differ, and for one network twice: `share` in its network file does that.
    """
    if base is other:
        raise PartError("these are one network; write `share: NODE` in its network file to use a node's weights twice")
    theirs, own = _tensors(base, base_part), _tensors(other, other_part)
    _check_fit(
        {n: t for n, (_, _, t) in own.items()}, {n: t for n, (_, _, t) in theirs.items()}, other_part, repr(base_part)
    )
    for name, (module, key, _) in own.items():
        _put(module, key, theirs[name][2])


def fork(network: nn.Module, part: str) -> None:
    """Give a part parameters and buffers of its own, of the same values; who shared it keeps the former. Raises PartError."""
    for module, key, tensor in _tensors(network, part).values():
        copied = tensor.detach().clone()
        if isinstance(tensor, nn.Parameter):
            copied = nn.Parameter(copied, requires_grad=tensor.requires_grad)
        _put(module, key, copied)


def merge(base: nn.Module, forks: Sequence[nn.Module], part: str, weights: Sequence[float] | None = None) -> None:
    """Write the weighed mean of the forks' part into `base`'s, in place; equal weights by default (FedAvg, McMahan 2017).

    See `averaged` for batch norms. To count what `base` has, put it among the forks. Raises PartError where parts differ.
    """
    norms = [name for name, module in _submodule(base, part).named_modules() if has_statistics(module)]
    load_state(base, part, averaged([state_of(one, part) for one in forks], weights, norms))


def averaged(
    states: Sequence[State], weights: Sequence[float] | None = None, norms: Sequence[str] = ()
) -> dict[str, Tensor]:
    """The weighed mean of states of one part, in their dtype; weights are made to sum to 1.

    `norms` are paths of batch norms: the running variance of a mixture also counts how far the means are apart,
    Σ w (var + mean²) − (Σ w mean)². Of counters (whole numbers) the largest stays. Raises PartError.
    """
    if not states:
        raise PartError("nothing to merge: expected at least one fork")
    given = [1.0] * len(states) if weights is None else list(weights)
    if len(given) != len(states) or not all(0 <= weight < math.inf for weight in given) or not sum(given):
        raise PartError(f"expected {len(states)} weights of at least 0, one per fork and not all 0, got {given}")
    shares = [weight / sum(given) for weight in given]
    for place, state in enumerate(states[1:], start=2):
        _check_fit(states[0], state, "the first fork", f"fork {place}")
    merged = {name: _mean([state[name] for state in states], shares) for name in states[0]}
    for norm in norms:
        mean, variance = f"{norm}.running_mean".lstrip("."), f"{norm}.running_var".lstrip(".")
        if mean in merged and variance in merged:
            squares = [s[variance].double() + s[mean].double().square() for s in states]
            centre = _mean([s[mean].double() for s in states], shares)
            merged[variance] = (_mean(squares, shares) - centre.square()).to(merged[variance].dtype)
    return merged


def _mean(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    if not tensors[0].is_floating_point():
        return torch.stack(list(tensors)).amax(0)
    total = sum((tensor.double() * share for tensor, share in zip(tensors, shares, strict=True)), start=torch.zeros(()))
    return total.to(tensors[0].dtype)


def _tensors(network: nn.Module, part: str) -> dict[str, tuple[nn.Module, str, Tensor]]:
    """Every parameter and stored buffer of a part by its key inside it, with the layer that holds it under which name."""
    found = {}
    for path, module in _submodule(network, part).named_modules():
        for key, tensor in _own(module):
            found[f"{path}.{key}".lstrip(".")] = (module, key, tensor)
    if not found:
        raise PartError(f"part {part!r} has no weights")
    return found


def _submodule(network: nn.Module, part: str) -> nn.Module:
    try:
        return network.get_submodule(part)
    except AttributeError:
        pattern = "; only freeze and unfreeze take a *" if "*" in part else ""
        raise PartError(f"no part {part!r}; there are {_known(network)}{pattern}") from None


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from ((key, value) for key, value in module._parameters.items() if value is not None)
    for key, value in module._buffers.items():
        if value is not None and key not in module._non_persistent_buffers_set:
            yield key, value


def _put(module: nn.Module, key: str, tensor: Tensor) -> None:
    if isinstance(tensor, nn.Parameter):
        module._parameters[key] = tensor
    else:
        module._buffers[key] = tensor


def _check_fit(own: State, other: State, part: str, name: str) -> None:
    if different := set(own) ^ set(other):
        raise PartError(f"{part!r} and {name} have different tensors: {', '.join(sorted(different)[:5])}")
    for key, tensor in own.items():
        if tensor.shape != other[key].shape:
            raise PartError(
                f"{part!r} and {name}: {key} is {tuple(tensor.shape)} here and {tuple(other[key].shape)} there"
            )
