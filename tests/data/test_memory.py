"""Memory that is freed must leave the process."""

import subprocess
import sys

import pytest

_SCRIPT = """
from pathlib import Path
import numpy as np
import pyarrow as pa
from deepcv.data import memory

def anonymous_mb():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

if {helped}:
    memory.keep_little()
    memory.give_back()
for _ in range(2):  # glibc raises its threshold when a large block is freed: the next one of that size comes from the heap
    held = np.ones(24 * 2**20, np.uint8)
    pin = [bytes(1000) for _ in range(100)]  # above it on the heap
    before = anonymous_mb()
    del held
    freed = before - anonymous_mb()
print(pa.default_memory_pool().backend_name, round(freed))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux's glibc")
@pytest.mark.parametrize(("helped", "expected"), [(True, ["system", "24"]), (False, ["mimalloc", "0"])])
def test_freed_arrays_leave_the_process(helped: bool, expected: list[str]) -> None:
    """In a process of its own: the settings hold for all of one, and the second case shows that they are what does it."""
    command = [sys.executable, "-c", _SCRIPT.format(helped=helped)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=60)
    assert done.stdout.split() == expected
