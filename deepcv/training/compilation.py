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
    """Return `model`, compiled for batches like this one, forward and backward; its weights and statistics stay as they are."""
    print("compiling the network", file=sys.stderr)  # noqa: T201 - for the person who waits
    began_s = time.monotonic()
    torch.compiler.reset()  # it counts compilations of `forward`, which all classifiers share, and would give up after eight
    made = cast(nn.Module, torch.compile(model, mode=_MODES[kind], dynamic=False))
    before = {name: value.clone() for name, value in model.named_buffers()}
    was_training = model.training
    made.train()
    devices = [torch.cuda.current_device()] if hardware.device == "cuda" else []
    with torch.random.fork_rng(devices), hardware.autocast():
        outputs = made(batch.images_nchw)
        total = torch.stack([value.float().sum() for value in outputs.values()]).sum()
    total.backward()
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    for name, value in model.named_buffers():
        value.copy_(before[name])
    print(f"compiled in {time.monotonic() - began_s:.0f} s", file=sys.stderr)  # noqa: T201
    return made
