"""torch.compile of the network, before the first step rather than in it."""

import sys
import time
from typing import Literal, cast

import torch
from torch import nn

from deepcv.data.loaders import Batch
from deepcv.training.hardware import Hardware

# Without CUDA graphs: they overwrite the outputs of one piece of a batch with those of the next, before both are counted.
_MODES = {True: None, "max-autotune": "max-autotune-no-cudagraphs"}


def compiled(model: nn.Module, kind: Literal[True, "max-autotune"], batch: Batch, hardware: Hardware) -> nn.Module:
    """Return `model`, compiled for batches like this one, forward and backward; its weights and statistics stay as they are.

    Where compiled code computes gradients that are infinite or nan, as torch 2.15's does for some networks in bf16 on a CPU,
    this is said and `model` itself returned.
    """
    _say("compiling the network")
    began_s = time.monotonic()
    torch.compiler.reset()  # it counts compilations of `forward`, which all classifiers share, and would give up after eight
    made = cast(nn.Module, torch.compile(model, mode=_MODES[kind], dynamic=False))
    before = {name: value.clone() for name, value in model.named_buffers()}
    was_training = model.training
    made.train()
    devices = [torch.cuda.current_device()] if hardware.device == "cuda" else []
    with torch.random.fork_rng(devices), hardware.autocast():
        outputs = made(batch.images_nchw)
        total = torch.stack([value.float().mean() for value in outputs.values()]).sum()
    total.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    sound = all(bool(gradient.isfinite().all()) for gradient in gradients)
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    for name, value in model.named_buffers():
        value.copy_(before[name])
    if not sound:
        _say("warning: compiled, the network's gradients are no numbers; it trains as it is")
        return model
    _say(f"compiled in {time.monotonic() - began_s:.0f} s")
    return made


def _say(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201 - for the person who waits
