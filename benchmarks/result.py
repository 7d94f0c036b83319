"""The one line that every benchmark prints last."""

import json
import os
import platform
import resource
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def emit(name: str, *, value: float, baseline: float | None, target: str, holds: bool, n: int, **more: Any) -> None:
    """Print the result as JSON; `value` is DeepCV's, `baseline` its peer's or None, `ratio` is value over baseline."""
    line = {
        "name": name,
        "value": value,
        "baseline": baseline,
        "ratio": value / baseline if baseline else None,
        "target": target,
        "holds": holds,
        "n": n,
        "cpu_s": round(cpu_s(), 2),
        "hardware": hardware(),
        "commit": commit(),
        **more,
    }
    print(json.dumps(line))


def cpu_s() -> float:
    """CPU seconds of this process and of its children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def hardware() -> str:
    """Processor, its vector instructions that matter here, cores, and the GPU where there is one."""
    import torch  # late: processes whose memory is measured import this module too

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    vector = next((flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if flag in flags), "")
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{model} {vector}, {len(os.sched_getaffinity(0))} cores{gpu}"


def commit() -> str:
    """Short hash of HEAD, with + where the working tree differs; where there is no repository, what DEEPCV_COMMIT says."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=10"]
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("DEEPCV_COMMIT", "")
    return found
