"""Run a classifier over packed images."""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from deepcv.errors import DeepcvError


class TooLargeError(DeepcvError):
    """There is no memory, and nothing left to divide."""


class Pieces:
    """Into how many pieces a batch goes through a network one after the other: more where memory does not suffice.

    `tell` learns each new count. Where processes have to work in step, none may divide its batches: `fixed`.
    """

    def __init__(self, *, fixed: bool = False, tell: Callable[[int], None] = lambda _count: None) -> None:
        self.count = 1
        self._fixed, self._tell = fixed, tell

    def fit(self, work: Callable[[], object], images: int) -> bool:
        """Whether there was memory for `work`; where there was not, a batch of `images` is taken in twice as many pieces from now on.

        Raises TooLargeError where that cannot be.
        """
        try:
            work()
        except RuntimeError as error:
            if not (isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)):
                raise
            if self._fixed or self.count >= images:
                size = -(-images // self.count)
                raise TooLargeError(
                    f"no memory for {size} image{'s' * (size > 1)} at a time; use a smaller network or smaller images"
                ) from error
            self.count = min(images, self.count * 2)
        else:
            return True
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        size = -(-images // self.count)
        print(f"warning: out of memory; {size} images at a time go through the network from now on", file=sys.stderr)  # noqa: T201 - for the person who waits
        self._tell(self.count)
        return False

    def state_dict(self) -> dict[str, Any]:
        """The count, so that a resumed training computes the same."""
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.count = int(state["count"])
        if self.count > 1:
            self._tell(self.count)


def logits_of(
    classifier: nn.Module,
    images_nhwc: NDArray[np.uint8],
    *,
    batch_size: int,
    device: torch.device,
    memory_format: torch.memory_format = torch.contiguous_format,
    autocast: torch.autocast | None = None,
) -> NDArray[np.float32]:
    """Logits (n, classes) of uint8 images (n, h, w, c), in order; the classifier's train or eval mode is put back after.

    Batches that do not fit into memory are taken in pieces.
    """
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
    pieces: Pieces | None = None,
) -> list[NDArray[np.float32]]:
    """What `logits_of` gives, of each output named, from one pass over the images.

    `pieces` remembers for the next pass how many images there is memory for.
    """
    pieces = pieces or Pieces()
    batch_size = min(batch_size, len(images_nhwc))
    was_training = classifier.training
    classifier.eval()
    collected: list[list[torch.Tensor]] = [[] for _ in names]

    def judge(start: int, size: int) -> None:
        batch = torch.from_numpy(np.array(images_nhwc[start : start + size])).to(device).permute(0, 3, 1, 2)
        with autocast or torch.autocast(device.type, enabled=False):
            outputs = classifier(batch.contiguous(memory_format=memory_format))
        found = [outputs[name].float().cpu() for name in names]
        for parts, part in zip(collected, found, strict=True):
            parts.append(part)

    start = 0
    while start < len(images_nhwc):
        size = -(-batch_size // pieces.count)
        if pieces.fit(partial(judge, start, size), batch_size):
            start += size
    classifier.train(was_training)
    return [torch.cat(parts).numpy() for parts in collected]
