"""Second opinions on parameters and MACs: torch's counter over the whole network, torchinfo and fvcore, where installed."""

import copy
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from deepcv.profiling.observe import as_it_answers, device_of

TOLERANCE = 0.02
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

    found = summary(network, input_data=images, verbose=0)
    told = "sees modules, not functions; counts a linear layer once per image, however many tokens; counts weights of norms"
    return Opinion("torchinfo", found.total_params, found.total_mult_adds, told)


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
    told += (
        [f"counts also {', '.join(f'{name} {count / 1e6:.3g} M' for name, count in others.items())}"] if others else []
    )
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
