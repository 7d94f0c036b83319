import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from deepcv.errors import DeepcvError
from deepcv.training.hardware import Hardware, resolve

GPU = torch.cuda.is_available()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("cpu", "fp32", True, 1), Hardware("cpu", "fp32", True, 1)),
        (("cpu", "bf16", False, 3), Hardware("cpu", "bf16", False, 3)),
        (("cpu", "fp32", "auto", 2), Hardware("cpu", "fp32", True, 2)),
        (("auto", "fp32", "auto", 2), Hardware("cuda" if GPU else "cpu", "fp32", True, 2)),
        (("cpu", "fp32", True, "auto"), Hardware("cpu", "fp32", True, len(os.sched_getaffinity(0)))),
    ],
)
def test_auto_is_resolved_and_the_rest_kept(given: tuple[Any, ...], expected: Hardware) -> None:
    assert resolve(*given) == expected
    assert resolve(*given) == resolve(*given)


def test_bf16_is_chosen_where_the_processor_multiplies_it() -> None:
    with open("/proc/cpuinfo") as file:  # noqa: PTH123 - not a file of ours
        flags = file.read()
    expected = "bf16" if "amx_bf16" in flags or "avx512_bf16" in flags else "fp32"
    assert resolve("cpu", "auto", "auto", 1).precision == expected


@pytest.mark.skipif(GPU, reason="this machine has a GPU")
def test_a_missing_gpu_is_named() -> None:
    with pytest.raises(DeepcvError, match=r"train\.device is cuda, but torch sees no GPU"):
        resolve("cuda", "auto", "auto", 1)


def test_what_torch_is_told() -> None:
    hardware = Hardware("cpu", "bf16", True, 1)
    assert hardware.torch_device == torch.device("cpu")
    assert hardware.memory_format == torch.channels_last
    one = torch.ones(2, 2)
    with hardware.autocast():
        assert (one @ one).dtype == torch.bfloat16
    plain = Hardware("cpu", "fp32", False, 1)
    assert plain.memory_format == torch.contiguous_format
    with plain.autocast():
        assert (one @ one).dtype == torch.float32


PAGE_FAULTS = """
import resource, torch
from torch import nn
from deepcv.training.hardware import keep_freed_memory
keep_freed_memory()
torch.set_num_threads(1)
network = nn.Sequential(*[nn.Sequential(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.GELU()) for _ in range(6)])
images = torch.randn(64, 16, 32, 32)
def step():
    network(images).square().mean().backward()
for _ in range(4):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_a_step_gets_the_memory_that_the_last_one_freed() -> None:
    script = [sys.executable, "-c", PAGE_FAULTS]
    faults = int(subprocess.run(script, capture_output=True, text=True, check=True).stdout)
    assert (
        faults < 3_000
    )  # of some 70,000 pages that five steps write; what glibc does by itself varies from run to run
