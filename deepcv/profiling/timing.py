"""How long a network takes: a whole batch, and node by node."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from deepcv.profiling.observe import Shape, as_it_answers, input_shapes

_WARM_UP = 3


@dataclass(frozen=True)
class Timing:
    """Wall seconds on one device, in fp32 and eval mode; `threads` are torch's on the CPU that runs or feeds the device."""

    device: str
    threads: int
    batch: int
    repeats: int
    latency_s: float  # median of the repeats, for the whole batch
    fastest_s: float
    slowest_s: float
    node_s: Mapping[str, float]  # by name in the graph, medians; run one by one, hence in sum above the latency

    @property
    def images_per_s(self) -> float:
        """Throughput at this batch size."""
        return self.batch / self.latency_s


def measure(
    network: fx.GraphModule, *shapes: Shape, device: str = "cpu", batch: int = 1, repeats: int = 20, threads: int = 1
) -> Timing:
    """Time the network on random images after a warm-up; it is moved to the device and back."""
    target = torch.device(device)
    images = [torch.randn(batch, *shape, device=target) for shape in shapes or input_shapes(network)]
    places = {tensor.device for tensor in (*network.parameters(), *network.buffers())}
    with torch.no_grad(), as_it_answers(network), _threads(threads):
        network.to(target)
        try:
            whole_s = [_seconds(lambda: network(*images), target) for _ in range(_WARM_UP + repeats)][_WARM_UP:]
            stopwatch = _Stopwatch(network, target)
            for _ in range(1 + repeats):
                stopwatch.run(*images)
        finally:
            network.to(places.pop() if len(places) == 1 else "cpu")
    node_s = {name: statistics.median(times_s[1:]) for name, times_s in stopwatch.times_s.items()}
    return Timing(
        _name(target), threads, batch, repeats, statistics.median(whole_s), min(whole_s), max(whole_s), node_s
    )


class _Stopwatch(fx.Interpreter):
    def __init__(self, network: fx.GraphModule, device: torch.device) -> None:
        super().__init__(network)
        self.device = device
        self.times_s: dict[str, list[float]] = defaultdict(list)

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and wait for it."""
        if n.op in ("placeholder", "get_attr", "output"):
            return super().run_node(n)
        result: list[Any] = []
        run = super().run_node
        self.times_s[n.name].append(_seconds(lambda: result.append(run(n)), self.device))
        return result[0]


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def devices(wanted: str) -> Sequence[str]:
    """`auto` is the CPU and, where there is one, the GPU. Raises ValueError for a GPU that is not there."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: torch sees no GPU here; use --device cpu")
    return ["cpu", *(["cuda"] if torch.cuda.is_available() else [])] if wanted == "auto" else [wanted]
