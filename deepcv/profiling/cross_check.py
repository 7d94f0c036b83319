"""Second opinions on parameters and MACs: torch's counter over the whole network, torchinfo and fvcore, where installed."""

import copy
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from deepcv.nn.layers.subgraphs import Checkpointed, OpenChoice, SampledChoice
from deepcv.profiling.amounts import short
from deepcv.profiling.observe import as_it_answers, device_of

TOLERANCE = 0.02
_WORTH_TELLING = 0.001  # of all MACs
# What fvcore counts, though no multiply-add of a convolution, a matrix product or attention.
_NOT_MACS = (
    "batch_norm",
    "layer_norm",
    "group_norm",
    "instance_norm",
    "adaptive_avg_pool2d",
    "upsample",
    "grid_sampler",
)


@dataclass(frozen=True)
class Opinion:
    """What another counter says of the same network; None where it does not say."""

    counter: str
    parameters: int | None
    macs: int | None
    told: str  # why it may differ, or why it says nothing

    def disagrees(self, parameters: int, macs: int) -> tuple[str, ...]:
        """Which figures are more than 2 % away from ours."""
        pairs = {"parameters": (self.parameters, parameters), "MACs": (self.macs, macs)}
        return tuple(
            name
            for name, (theirs, ours) in pairs.items()
            if theirs is not None and abs(theirs - ours) > TOLERANCE * max(ours, 1)
        )


def opinions(network: nn.Module, *shapes: tuple[int, ...]) -> tuple[Opinion, ...]:
    """Ask every counter about one image of these shapes; one that is missing or fails says why."""
    images = [torch.zeros(1, *shape, device=device_of(network)) for shape in shapes]
    with torch.no_grad(), as_it_answers(network), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tuple(_ask(name, ask, network, images) for name, ask in _COUNTERS.items())


def _ask(
    name: str, ask: Callable[[nn.Module, list[Tensor]], Opinion], network: nn.Module, images: list[Tensor]
) -> Opinion:
    try:
        return ask(network, images)
    except ImportError:
        return Opinion(name, None, None, f"{name} is not installed: pip install 'deepcv-mlops[profile]'")
    except Exception as error:  # a second opinion that fails must not take the first one along
        lines = str(error).strip().splitlines() or [""]
        return Opinion(name, None, None, f"could not count: {type(error).__name__}: {lines[0][:120]}")


def _flop_counter(network: nn.Module, images: list[Tensor]) -> Opinion:
    with FlopCounterMode(display=False) as counter:
        network(*images)
    return Opinion("torch.utils.flop_counter", None, counter.get_total_flops() // 2, "half its FLOPs")


def _torchinfo(network: nn.Module, images: list[Tensor]) -> Opinion:
    from torchinfo import summary

    ours, total = _macs_by_layer(network, images)
    found = summary(network, input_data=images, verbose=0)
    theirs: Counter[str] = Counter()
    for layer in found.summary_list:
        if layer.is_leaf_layer:
            theirs[layer.class_name] += layer.macs
    away = {name: theirs[name] - ours[name] for name in (theirs | ours)}
    told = [
        f"{name} {_signed(count)}: {_why_torchinfo(name, ours[name], theirs[name])}"
        for name, count in sorted(away.items(), key=lambda pair: -abs(pair[1]))
        if abs(count) >= _WORTH_TELLING * max(total, 1)
    ]
    if (rest := total - ours.total()) >= _WORTH_TELLING * max(total, 1):
        told.append(f"functions and layers made of others {_signed(-rest)}: it sees plain layers alone")
    return Opinion("torchinfo", found.total_params, found.total_mult_adds, "; ".join(told))


def _why_torchinfo(name: str, ours: int, theirs: int) -> str:
    """Why torchinfo counts a kind of layer otherwise: it multiplies the parameters by the places of the output, if at all."""
    if "ConvTranspose" in name and theirs > ours:
        return "it applies the kernel at each place of the output, not of the input"
    if not ours:
        return "it counts weights that no product takes"
    if not theirs:
        return "it does not count it"
    if theirs < ours:
        return "it counts the weights once per image, however many tokens" if "Linear" in name else "it counts less"
    return "it counts biases too"


def _macs_by_layer(network: nn.Module, images: list[Tensor]) -> tuple[Counter[str], int]:
    """Multiply-adds by the class of the layers that hold no others, and those of the whole network."""
    macs: Counter[str] = Counter()
    with FlopCounterMode(display=False) as counter, ExitStack() as hooks:

        def before(layer: nn.Module, _inputs: Any) -> None:
            macs[type(layer).__name__] -= counter.get_total_flops() // 2

        def after(layer: nn.Module, _inputs: Any, _result: Any) -> None:
            macs[type(layer).__name__] += counter.get_total_flops() // 2

        for layer in network.modules():
            if not any(layer.children()) and not isinstance(layer, Checkpointed | OpenChoice):
                hooks.callback(layer.register_forward_pre_hook(before).remove)
                hooks.callback(layer.register_forward_hook(after).remove)
        network(*images)
    return macs, counter.get_total_flops() // 2


def _signed(count: float) -> str:
    return f"{'+' if count >= 0 else '−'}{short(abs(count))}"


def _fvcore(network: nn.Module, images: list[Tensor]) -> Opinion:
    from fvcore.nn import FlopCountAnalysis, parameter_count

    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    twin = copy.deepcopy(network)  # it traces, which leaves marks
    analysis = FlopCountAnalysis(twin, tuple(images)).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    others = {
        name: int(count) for name, count in analysis.by_operator().items() if count and name.startswith(_NOT_MACS)
    }
    skipped = sorted(name.removeprefix("aten::") for name in analysis.unsupported_ops() if "attention" in name)
    told = [f"skips {', '.join(skipped)}"] if skipped else []
    told += [f"counts also {', '.join(f'{name} {short(count)}' for name, count in others.items())}"] if others else []
    if not skipped and any(isinstance(layer, SampledChoice) for layer in network.modules()):
        away = int(analysis.total()) - sum(others.values()) - _macs_by_layer(network, images)[1]
        told += [f"leaves out what no running candidate takes {_signed(away)}"] if away < 0 else []
    return Opinion("fvcore", parameter_count(twin)[""], int(analysis.total()), "; ".join(told))


_COUNTERS: Mapping[str, Callable[[nn.Module, list[Tensor]], Opinion]] = {
    "torch.utils.flop_counter": _flop_counter,
    "torchinfo": _torchinfo,
    "fvcore": _fvcore,
}


def flagged(found: Sequence[Opinion], parameters: int, macs: int) -> list[str]:
    """One sentence for each counter that disagrees."""
    return [
        f"{one.counter} disagrees on {' and '.join(names)}" + (f" ({one.told})" if one.told else "")
        for one in found
        if (names := one.disagrees(parameters, macs))
    ]
