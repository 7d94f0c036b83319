"""Meta-convolution (op `meta_conv`): the formula of its docstring with a kernel per sample written out, and gradients."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepcv.nn.layers.meta_convolution import MetaConv2d
from deepcv.nn.spec import SpecError, build, from_canonical


def layer(
    channels: int = 5, out: int = 7, kernel: int = 3, stride: int = 1, padding: int = 1, rank: int = 2
) -> MetaConv2d:
    made = MetaConv2d(channels, out, kernel, stride, padding, rank, 6, bias=True)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made


def by_hand(made: MetaConv2d, x: Tensor) -> Tensor:
    """Sample by sample: the kernel W + U Vᵀ / sqrt(rank * C * k²) as a matrix, then a plain convolution."""
    weight, rank = made.static.weight, made.rank
    results = []
    for sample in x:
        mean = sample.mean((1, 2))
        seen = (made.look.weight @ mean + made.look.bias).clamp(min=0)
        u = (made.left.weight @ seen + made.left.bias).view(weight.shape[0], rank)
        v = (made.right.weight @ seen + made.right.bias).view(rank, -1).T
        kernel = weight.flatten(1) + u @ v.T / (rank * weight[0].numel()) ** 0.5
        options = (made.static.stride, made.static.padding)
        results.append(F.conv2d(sample[None], kernel.view_as(weight), made.static.bias, *options))
    return torch.cat(results)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "rank"),
    [(3, 1, 1, 1), (3, 2, 1, 2), (1, 1, 0, 2), (5, 1, 2, 3), (4, 3, 0, 1), (3, 1, 0, 4)],
)
def test_it_is_a_convolution_with_a_kernel_per_sample(kernel: int, stride: int, padding: int, rank: int) -> None:
    torch.manual_seed(0)
    made = layer(5, 7, kernel, stride, padding, rank).double()
    x = torch.randn(4, 5, 9, 11, dtype=torch.float64)
    torch.testing.assert_close(made(x), by_hand(made, x), rtol=0, atol=1e-12)
    # In float32 both roundings count: 1e-6 of the largest value.
    with torch.no_grad():
        single, expected = made.float()(x.float()), by_hand(made, x.float())
    torch.testing.assert_close(single, expected, rtol=0, atol=1e-6 * float(expected.abs().max().clamp(min=1)))


def test_gradients() -> None:
    torch.manual_seed(0)
    made = layer(2, 3, rank=1).double()
    names, tensors = zip(*made.named_parameters(), strict=True)

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(made, dict(zip(names, values, strict=True)), (x,))  # type: ignore[no-any-return]

    x = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(call, (x, *(tensor.detach().requires_grad_() for tensor in tensors)))


def network(**options: object) -> nn.Module:
    node = {"id": "x", "op": "meta_conv", "from": ["input"], **options}
    return build(from_canonical({"format": 1, "nodes": [node], "outputs": [["y", "x"]]}), (6, 12, 10), 10)


def test_it_starts_as_the_static_convolution_and_leaves_it() -> None:
    torch.manual_seed(0)
    net = network(channels=8, norm="none", activation="none")
    x = torch.randn(4, 6, 12, 10)
    static = net.get_submodule("x.conv.static")
    assert torch.equal(net(x)["y"], static(x))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (net(x)["y"] - x.flip(1).repeat(1, 2, 1, 1)[:, :8]).square().mean().backward()
        optimizer.step()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())
    assert not torch.allclose(net(x)["y"], static(x), atol=1e-3)


def test_norm_and_activation_follow_as_in_conv() -> None:
    net = network(channels=8, stride=2)
    x = torch.randn(4, 6, 12, 10)
    made = net.get_submodule("x.conv")
    assert made.static.bias is None  # type: ignore[union-attr]
    expected = F.relu(F.batch_norm(made(x), None, None, training=True))
    torch.testing.assert_close(net(x)["y"], expected, rtol=0, atol=1e-6)


def test_it_takes_any_norm() -> None:
    net = network(channels=8, norm="layer")
    x = torch.randn(4, 6, 12, 10)
    expected = F.layer_norm(net.get_submodule("x.conv")(x).movedim(1, 3), (8,)).movedim(3, 1).relu()
    torch.testing.assert_close(net(x)["y"], expected, rtol=0, atol=1e-6)


def test_they_may_stand_before_it_and_dropout_comes_last() -> None:
    torch.manual_seed(0)
    net = network(channels=8, pre_activation=True, dropout=0.3)
    nn.init.normal_(net.get_parameter("x.conv.left.weight"))
    x = torch.randn(4, 6, 12, 10)
    torch.manual_seed(1)
    y = net(x)["y"]
    torch.manual_seed(1)
    expected = F.dropout(net.get_submodule("x.conv")(F.relu(F.batch_norm(x, None, None, training=True))), 0.3)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-6)


def test_export_with_any_batch_height_and_width() -> None:
    net = network(channels=8, stride=2, rank=2).eval()
    nn.init.normal_(net.get_parameter("x.conv.left.weight"))
    dynamic = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=4), 3: torch.export.Dim("w", min=4)}
    exported = torch.export.export(net, (torch.randn(2, 6, 12, 10),), dynamic_shapes=(dynamic,)).module()
    for shape in ((1, 6, 12, 10), (3, 6, 7, 16)):
        x = torch.randn(shape)
        torch.testing.assert_close(exported(x)["y"], net(x)["y"], rtol=0, atol=1e-5)


def test_what_does_not_fit() -> None:
    with pytest.raises(SpecError, match="a window of"):
        network(channels=8, kernel=15, padding=0)
