"""Run a classifier over packed images."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


@torch.inference_mode()
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
    was_training = classifier.training
    classifier.eval()
    collected = []
    for start in range(0, len(images_nhwc), batch_size):
        batch = torch.from_numpy(np.array(images_nhwc[start : start + batch_size])).to(device).permute(0, 3, 1, 2)
        with autocast or torch.autocast(device.type, enabled=False):
            collected.append(classifier(batch.contiguous(memory_format=memory_format))["logits"].float().cpu())
    classifier.train(was_training)
    return torch.cat(collected).numpy()
