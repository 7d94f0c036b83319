import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deepcv.training.muon import Muon, orthogonalise


def network(memory_format: torch.memory_format = torch.contiguous_format, filters: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, filters, 3), nn.BatchNorm2d(filters), nn.ReLU(), nn.Flatten(), nn.Linear(filters * 16, 4)
    )
    return layers.to(memory_format=memory_format)


def muon(model: nn.Module, lr: float = 0.02, hold_norms: bool = False) -> Muon:
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return Muon(groups, lr=lr, betas=(0.9, 0.99), hold_norms=hold_norms)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    images = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images), torch.arange(8) % 4).backward()
    optimizer.step()


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99), st.floats(1e-3, 1e3))
def test_singular_values_come_near_one_and_directions_stay(rows: int, columns: int, seed: int, scale: float) -> None:
    drawn = scale * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    left, values, right = torch.linalg.svd(drawn, full_matrices=False)
    found = left.T @ orthogonalise(drawn[None])[0] @ right.T
    diagonal = found.diagonal()
    assert torch.allclose(found, torch.diag(diagonal), atol=1e-9)  # the singular vectors are those of the input
    large = values > 0.1 * values.norm()
    assert ((diagonal[large] > 0.6) & (diagonal[large] < 1.3)).all()
    assert ((diagonal > 0) & (diagonal < 1.3)).all()


@pytest.mark.parametrize("filters", [6, 40])  # fewer and more than a filter has weights, 27
def test_a_kernel_moves_by_the_size_that_adamw_would_give_it(filters: int) -> None:
    model = network(filters=filters)
    kernel = model[0].weight
    before = kernel.detach().clone()
    step(model, muon(model), seed=1)
    moved = (kernel - before * (1 - 0.02 * 0.1)) / 0.02
    values = torch.linalg.svdvals(moved.flatten(1)) / (0.2 * max(filters, 27) ** 0.5)
    assert values.max() < 1.3
    assert values.max() > 0.6
    assert 0.05 < moved.square().mean().sqrt() < 0.3  # AdamW: at most 1, in practice 0.2 to 0.4


def test_held_kernels_turn_by_four_times_the_rate_whatever_their_scale() -> None:
    models = [network(), network()]
    with torch.no_grad():
        models[1][0].weight.mul_(7)
        models[1][0].bias.mul_(7)
    for model in models:
        step(model, muon(model, hold_norms=True), seed=1)
    kernels = [model[0].weight.detach() for model in models]
    assert torch.allclose(*kernels, rtol=1e-4, atol=1e-6)  # but for the norm's eps
    held = 0.05 * kernels[0].numel() ** 0.5
    before = network()[0].weight.detach()
    moved = kernels[0] - before * (held / before.norm())
    values = torch.linalg.svdvals(moved.flatten(1)) / (4 * 0.02 * held / 6**0.5)  # of 6 directions, of equal length
    assert values.max() < 1.3
    assert values.max() > 0.6


@pytest.mark.parametrize("hold_norms", [False, True])
@pytest.mark.parametrize("together", [2**23, 300])  # all of a shape, and fewer
def test_kernels_that_are_stepped_together_end_as_each_alone(
    hold_norms: bool, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = [(8, 4, 3, 3), (8, 8, 1, 1), (4, 8, 3, 3), (8, 4, 3, 3), (32, 8, 1, 1), (8, 4, 3, 3)]
    torch.manual_seed(0)
    starts = [torch.randn(shape) for shape in shapes]
    gradients = [[torch.randn(shape) for shape in shapes] for _ in range(3)]

    def stepped(places: list[int]) -> list[torch.Tensor]:
        kernels = [nn.Parameter(starts[place].clone()) for place in places]
        optimizer = Muon([{"params": kernels, "weight_decay": 0.1}], 0.02, (0.9, 0.99), hold_norms=hold_norms)
        for drawn in gradients:
            for kernel, place in zip(kernels, places, strict=True):
                kernel.grad = drawn[place].clone()
            optimizer.step()
        return [kernel.detach() for kernel in kernels]

    alone = [stepped([place])[0] for place in range(len(shapes))]
    monkeypatch.setattr("deepcv.training.muon._TOGETHER", together)
    for one, other in zip(stepped(list(range(len(shapes)))), alone, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)


def test_what_has_not_four_axes_is_adamws() -> None:
    tokens = [nn.Parameter(torch.full((1, 3, 5), 0.02)) for _ in range(2)]
    theirs = torch.optim.AdamW(tokens[:1], 0.02, (0.9, 0.99), weight_decay=0.1)
    ours = Muon([{"params": tokens[1:], "weight_decay": 0.1}], 0.02, (0.9, 0.99), hold_norms=True)
    for one, optimizer in zip(tokens, (theirs, ours), strict=True):
        one.grad = torch.linspace(-1, 1, 15).view(1, 3, 5)
        optimizer.step()
    assert torch.equal(*tokens)


def test_a_copy_steps_as_the_optimizer_does() -> None:
    models = [network(), network()]
    optimizer = muon(models[0], hold_norms=True)
    step(models[0], optimizer, seed=1)
    models[1], copied = copy.deepcopy((models[0], optimizer))
    for model, one in zip(models, (optimizer, copied), strict=True):
        step(model, one, seed=2)
    assert torch.equal(models[0][0].weight, models[1][0].weight)


def test_a_kernel_of_zeros_gets_its_norm_from_its_first_step() -> None:
    model = network()
    torch.nn.init.zeros_(model[0].weight)
    optimizer = muon(model, hold_norms=True)
    for seed in range(2):
        step(model, optimizer, seed)
    assert model[0].weight.isfinite().all()
    assert model[0].weight.norm().item() == pytest.approx(0.05 * model[0].weight.numel() ** 0.5, rel=0.2)


def test_all_but_kernels_are_adamws() -> None:
    ours, theirs = network(), network()
    one = muon(ours)
    two = torch.optim.AdamW([dict(group) for group in muon(theirs).param_groups])
    for seed in range(3):
        theirs[0].load_state_dict(ours[0].state_dict())  # the same kernel in front of them
        step(ours, one, seed)
        step(theirs, two, seed)
    assert not torch.equal(ours[0].weight, theirs[0].weight)
    for name in ("0.bias", "1.weight", "1.bias", "4.weight", "4.bias"):
        assert torch.equal(ours.get_parameter(name), theirs.get_parameter(name)), name


def test_the_memory_layout_changes_rounding_alone() -> None:
    one, two = network(), network(torch.channels_last)
    for model in (one, two):
        optimizer = muon(model)
        for seed in range(3):
            step(model, optimizer, seed)
    assert two[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(one[0].weight, two[0].weight, atol=1e-5)


def test_a_loaded_state_goes_on_bit_for_bit() -> None:
    one = network()
    optimizer = muon(one)
    step(one, optimizer, 0)
    two = copy.deepcopy(one)
    resumed = muon(two)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in (1, 2):
        step(one, optimizer, seed)
        step(two, resumed, seed)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_a_closure_computes_the_gradients_and_its_loss_comes_back() -> None:
    one, two = network(), network()
    step(one, muon(one), seed=0)
    images = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))

    def closure() -> float:
        loss = nn.functional.cross_entropy(two(images), torch.arange(8) % 4)
        loss.backward()
        return loss.item()

    assert 0.5 < (muon(two).step(closure) or 0.0) < 5
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_a_kernel_decays_by_lr_times_weight_decay() -> None:
    kernel = torch.nn.Parameter(torch.ones(4, 3, 3, 3))
    kernel.grad = torch.zeros_like(kernel)  # nothing but the decay moves it
    Muon([{"params": [kernel]}], lr=0.5, betas=(0.9, 0.99), weight_decay=0.1).step()
    assert torch.allclose(kernel, torch.full_like(kernel, 0.95))
