"""Blur on activations (op `blur`): the Gaussian's numbers, and no trace of the layer where sigma is 0."""

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from deepcv.nn.layers.blur import Blur, set_blur
from deepcv.nn.spec import SpecError, build, from_canonical


def by_hand(x: Tensor, sigma: float, half: int) -> Tensor:
    """Each pixel: the mean over the window around it, weighted by exp(-distance² / 2 sigma²); zeros beyond the border."""
    total, result = 0.0, torch.zeros_like(x)
    height, width = x.shape[2:]
    for dy in range(-half, half + 1):
        for dx in range(-half, half + 1):
            weight = math.exp(-(dy * dy + dx * dx) / (2 * sigma**2))
            total += weight
            for row in range(max(0, -dy), min(height, height - dy)):
                columns = slice(max(0, -dx), min(width, width - dx))
                moved = slice(max(0, dx), min(width, width + dx))
                result[:, :, row, columns] += weight * x[:, :, row + dy, moved]
    return result / total


@pytest.mark.parametrize(("max_sigma", "sigma"), [(1.0, 1.0), (1.0, 0.3), (2.0, 1.5), (0.5, 0.5), (1.0, 0.01)])
def test_it_is_the_gaussian(max_sigma: float, sigma: float) -> None:
    layer = Blur(max_sigma)
    layer.set_sigma(sigma)
    x = torch.randn(2, 3, 6, 7)
    torch.testing.assert_close(layer(x), by_hand(x, sigma, math.ceil(2 * max_sigma)), rtol=0, atol=1e-6)


def test_the_op_is_the_gaussian() -> None:
    net = network(first=0.4)
    maps = net.get_submodule("a.norm")(net.get_submodule("a.conv")(x := torch.randn(2, 3, 8, 8))).relu()
    soft = by_hand(maps, 0.4, 2)  # the window is that of max_sigma, 1
    expected = net.get_submodule("b.norm")(net.get_submodule("b.conv")(soft)).relu()  # `softer` is off
    torch.testing.assert_close(net(x)["y"], expected, rtol=0, atol=1e-6)


SPECIAL = [0.0, -0.0, 1e-40, math.inf, -math.inf, math.nan, 3.0, -1.5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_sigma_0_is_a_bitwise_identity(dtype: torch.dtype) -> None:
    layer = Blur(1.0, 1.0).to(dtype)
    layer.set_sigma(0)
    x = torch.tensor(SPECIAL, dtype=dtype).repeat(9).view(1, 2, 6, 6)
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    assert torch.equal(layer(x).view(whole), x.view(whole))


def test_as_sigma_goes_to_0_so_does_the_blur() -> None:
    layer, x = Blur(1.0), torch.randn(2, 3, 8, 8)
    distances = []
    for sigma in (1.0, 0.5, 0.3, 0.2, 0.05):
        layer.set_sigma(sigma)
        distances.append(float((layer(x) - x).abs().max()))
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0.1
    assert distances[-1] == 0  # finite values: already before the layer is off


def network(*, first: float = 0.5) -> nn.Module:
    nodes = [
        {"id": "a", "op": "conv", "from": ["input"], "channels": 4},
        {"id": "soft", "op": "blur", "from": ["a"], "sigma": first},
        {"id": "b", "op": "conv", "from": ["soft"], "channels": 4},
        {"id": "softer", "op": "blur", "from": ["b"], "max_sigma": 2.0},
    ]
    return build(from_canonical({"format": 1, "nodes": nodes, "outputs": [["y", "softer"]]}), (3, 8, 8), 10).eval()


def plain(net: nn.Module, x: Tensor) -> Tensor:
    for part in ("a.conv", "a.norm", "", "b.conv", "b.norm", ""):
        x = net.get_submodule(part)(x) if part else torch.relu(x)
    return x


def test_set_blur_sets_all_layers_up_to_their_largest_sigma() -> None:
    net, x = network(), torch.randn(2, 3, 8, 8)
    assert not torch.allclose(net(x)["y"], plain(net, x))
    assert set_blur(net, 1.5) == 2
    assert [float(net.get_buffer(f"{name}.sigma")) for name in ("soft", "softer")] == [1.0, 1.5]
    assert set_blur(net, 0) == 2
    assert torch.equal(net(x)["y"], plain(net, x))


def test_sigma_is_saved_with_the_weights() -> None:
    net, x = network(), torch.randn(2, 3, 8, 8)
    for sigma in (0.8, 0.0):
        set_blur(net, sigma)
        twins = [network(), copy.deepcopy(net), pickle.loads(pickle.dumps(net))]  # noqa: S301  our own bytes
        twins[0].load_state_dict(net.state_dict())
        for twin in twins:
            assert torch.equal(twin(x)["y"], net(x)["y"])
    assert not any(key.endswith("taps") for key in net.state_dict())


@pytest.mark.parametrize("sigma", [0.7, 0.0])
def test_export_keeps_the_sigma_of_that_time(sigma: float) -> None:
    net = network()
    set_blur(net, sigma)
    dynamic = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=4), 3: torch.export.Dim("w", min=4)}
    exported = torch.export.export(net, (torch.randn(2, 3, 8, 8),), dynamic_shapes=(dynamic,))
    x = torch.randn(3, 3, 7, 12)
    torch.testing.assert_close(exported.module()(x)["y"], net(x)["y"], rtol=0, atol=1e-6)
    convolutions = [node for node in exported.graph.nodes if "conv2d" in str(node.target)]
    assert len(convolutions) == (4 if sigma else 2)


def test_the_largest_sigma_survives_its_rounding() -> None:
    layer, twin = Blur(0.1, 0.1), Blur(0.1)  # 0.1 in float32 is above 0.1
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin.taps, layer.taps)
    assert twin.on


def test_a_schedule_does_not_compile_again() -> None:
    layer, x, graphs = Blur(1.0), torch.randn(2, 3, 8, 8), []

    def backend(graph: fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(layer, backend=backend)
    for sigma in (1.0, 0.7, 0.1, 0.0, 0.5, 0.0):
        layer.set_sigma(sigma)
        assert torch.equal(compiled(x), layer(x))
    assert len(graphs) == 1  # where the layer is off, there is nothing to compile


def test_gradients_are_those_of_a_fixed_convolution() -> None:
    layer = Blur(0.5, 0.5).double()
    assert not list(layer.parameters())
    assert torch.autograd.gradcheck(layer, torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("sigma", [-0.1, 1.1, math.nan])
def test_a_sigma_out_of_range_is_refused(sigma: float) -> None:
    layer = Blur(1.0)
    with pytest.raises(ValueError, match="from 0 to max_sigma = 1"):
        layer.set_sigma(sigma)
    with pytest.raises(SpecError, match="sigma"):
        network(first=sigma)
