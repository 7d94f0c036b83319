"""What `auto` means on this machine; decided once, recorded with the model."""

import ctypes
import os
from dataclasses import dataclass
from typing import Literal

import torch

from deepcv.errors import DeepcvError
from deepcv.training.distributed import launched

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


@dataclass(frozen=True)
class Hardware:
    """The settings a run really used."""

    device: Literal["cpu", "cuda"]
    precision: Literal["fp32", "bf16", "fp16"]
    channels_last: bool
    threads: int
    processes: int = 1

    @property
    def torch_device(self) -> torch.device:
        """The device as torch names it."""
        return torch.device(self.device)

    @property
    def memory_format(self) -> torch.memory_format:
        """Memory layout of images and convolution weights."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self) -> torch.autocast:
        """Context in which the forward pass runs."""
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device, dtype=dtype, enabled=self.precision != "fp32")

    def scaler(self) -> torch.amp.GradScaler:
        """What keeps small gradients from vanishing in fp16; elsewhere it does nothing."""
        return torch.amp.GradScaler(self.device, enabled=self.precision == "fp16")


def resolve(
    device: Literal["auto", "cpu", "cuda"],
    precision: Literal["auto", "fp32", "bf16", "fp16"],
    channels_last: Literal["auto"] | bool,
    threads: int | Literal["auto"],
    processes: int | Literal["auto"] = 1,
) -> Hardware:
    """Replace each `auto` by what helps here: a GPU if there is one, bf16 where the hardware multiplies it, channels last.

    Of processes, as many as `torchrun` started, else one per GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise DeepcvError("train.device is cuda, but torch sees no GPU here; set it to auto or cpu")
    chosen: Literal["cpu", "cuda"] = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    gpus = torch.cuda.device_count() if chosen == "cuda" else 0
    if precision == "auto":
        precision = (
            "bf16" if _multiplies_bf16(chosen) else "fp16" if chosen == "cuda" and _multiplies_fp16() else "fp32"
        )
    return Hardware(
        device=chosen,
        precision=precision,
        channels_last=True if channels_last == "auto" else channels_last,
        threads=len(os.sched_getaffinity(0)) if threads == "auto" else threads,
        processes=(launched() or max(1, gpus)) if processes == "auto" else processes,
    )


def _multiplies_bf16(device: str) -> bool:
    """Whether bf16 is faster than fp32: emulated bf16 is slower, so support in name only does not count."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def _multiplies_fp16() -> bool:
    """Whether the GPU has tensor cores, which Volta (7.0) brought."""
    return torch.cuda.get_device_capability() >= (7, 0)


def keep_freed_memory() -> None:
    """Have glibc keep what this process frees, to the process's end; elsewhere, do nothing.

    Else each training step on a CPU hands its feature maps back and faults them in again: 5,000 page faults of a step.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        # Old glibcs take no more than 32 MiB.
        _ = libc.mallopt(_M_MMAP_THRESHOLD, 2**30) or libc.mallopt(_M_MMAP_THRESHOLD, 2**25)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
