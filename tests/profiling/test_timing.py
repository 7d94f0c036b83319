import pytest
import torch
from torch import fx, nn

from deepcv.profiling.timing import devices, measure


def test_what_is_timed() -> None:
    network = fx.symbolic_trace(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))).train()
    before, threads = network.get_buffer("2.running_mean").clone(), torch.get_num_threads()
    found = measure(network, (1, 16, 16), batch=4, repeats=5, threads=2)
    assert (found.device, found.threads, found.batch, found.repeats) == ("cpu", 2, 4, 5)
    assert 0 < found.fastest_s <= found.latency_s <= found.slowest_s
    assert found.images_per_s == 4 / found.latency_s
    assert set(found.node_s) == {"_0", "_1", "_2"}
    assert min(found.node_s.values()) > 0
    assert torch.get_num_threads() == threads
    assert network.training
    assert torch.equal(network.get_buffer("2.running_mean"), before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_devices_that_are_there() -> None:
    assert devices("auto") == devices("cpu") == ["cpu"]
    with pytest.raises(ValueError, match="torch sees no GPU here; use --device cpu"):
        devices("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_timed_and_given_back() -> None:
    network = fx.symbolic_trace(nn.Sequential(nn.Conv2d(1, 4, 3)))
    assert measure(network, (1, 16, 16), device="cuda", repeats=3).device == torch.cuda.get_device_name()
    assert network.get_parameter("0.weight").device.type == "cpu"
