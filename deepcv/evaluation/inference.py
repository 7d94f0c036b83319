"""Run a classifier over packed images."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


def logits_of(
    classifier: nn.Module,
    images_nhwc: NDArray[np.uint8],
    *,
    batch_size: int,
    device: torch.device,
    memory_format: torch.memory_format = torch.contiguous_format,
    autocast: torch.autocast | None = None,
) -> NDArray[np.float32]:
    """Logits (n, classes) of uint8 images (n, h, w, c), in order; the classifier's train or eval mode is put back after."""
    logits, *_ = outputs_of(
        classifier, images_nhwc, ["logits"], batch_size=batch_size, device=device, memory_format=memory_format,
        autocast=autocast,
    )  # fmt: skip
    return logits


@torch.inference_mode()
def outputs_of(
    classifier: nn.Module,
    images_nhwc: NDArray[np.uint8],
    names: Sequence[str],
    *,
    batch_size: int,
    device: torch.device,
    memory_format: torch.memory_format = torch.contiguous_format,
    autocast: torch.autocast | None = None,
) -> list[NDArray[np.float32]]:
    """What `logits_of` gives, of each output named, from one pass over the images."""
    was_training = classifier.training
    classifier.eval()
    collected: list[list[torch.Tensor]] = [[] for _ in names]
    for start in range(0, len(images_nhwc), batch_size):
        batch = torch.from_numpy(np.array(images_nhwc[start : start + batch_size])).to(device).permute(0, 3, 1, 2)
        with autocast or torch.autocast(device.type, enabled=False):
            outputs = classifier(batch.contiguous(memory_format=memory_format))
        for name, parts in zip(names, collected, strict=True):
            parts.append(outputs[name].float().cpu())
    classifier.train(was_training)
    return [torch.cat(parts).numpy() for parts in collected]
