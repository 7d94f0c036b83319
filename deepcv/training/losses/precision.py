"""The arithmetic of a loss."""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec

import torch
from torch import Tensor

Rest = ParamSpec("Rest")


def in_fp32(loss: Callable[Concatenate[Tensor, Rest], Tensor]) -> Callable[Concatenate[Tensor, Rest], Tensor]:
    """Give a loss its first argument, a network's output, in float32 at least (float64 stays) and switch autocast off.

    Autocast would multiply embeddings in bfloat16: a similarity of three digits, divided by a temperature of 0.1.
    """

    @wraps(loss)
    def precise(output: Tensor, /, *args: Rest.args, **kwargs: Rest.kwargs) -> Tensor:
        with torch.autocast(output.device.type, enabled=False):
            return loss(output.to(torch.promote_types(output.dtype, torch.float32)), *args, **kwargs)

    return precise
