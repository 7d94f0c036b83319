from dataclasses import replace

import pytest
import torch
import toys
from torch import nn

from deepcv.errors import DeepcvError
from deepcv.training.optimizers import create_optimizer, parameter_groups

NAMES = [
    "network.stem.weight",
    "network.stem.bias",
    "network.norm.weight",
    "network.norm.bias",
    "network.head.weight",
    "network.head.bias",
]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential()
        self.network.add_module("stem", nn.Conv2d(1, 2, 3))
        self.network.add_module("norm", nn.BatchNorm2d(2))
        self.network.add_module("head", nn.Conv2d(2, 3, 1))


def test_rates_fall_from_the_last_layer_to_the_first() -> None:
    model = Model()
    names = {id(p): name for name, p in model.named_parameters()}
    found = {
        names[id(p)]: (group["lr_scale"], group["weight_decay"])
        for group in parameter_groups(model, 0.1, 0.5)
        for p in group["params"]
    }
    assert found == dict(
        zip(NAMES, [(0.25, 0.1), (0.25, 0.0), (0.5, 0.0), (0.5, 0.0), (1.0, 0.1), (1.0, 0.0)], strict=True)
    )
    optimizer = create_optimizer(model, toys.config(lr=0.1, layer_decay=0.5))
    assert {group["lr"] for group in optimizer.param_groups if group["params"]} == {0.025, 0.05, 0.1}


def test_what_does_not_learn_has_no_layer() -> None:
    model = Model()
    model.network.stem.requires_grad_(requires_grad=False)
    groups = parameter_groups(model, 0.1, 0.5)
    assert sum(len(group["params"]) for group in groups) == 4
    assert {group["lr_scale"] for group in groups if group["params"]} == {0.5, 1.0}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("torch/NAdam", "NAdam"), ("torch/RMSprop", "RMSprop"), ("timm/lion", "Lion"), ("timm/lamb", "Lamb")],
)
def test_optimizers_of_the_libraries_take_a_step(name: str, kind: str) -> None:
    torch.manual_seed(0)
    model = Model()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = create_optimizer(model, replace(toys.CONFIG, optimizer=name, lr=0.01))
    assert type(optimizer).__name__ == kind
    model.network(torch.randn(4, 1, 5, 5)).square().sum().backward()
    optimizer.step()
    assert not all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(("name", "text"), [
    ("adam", "expected adamw, sgd, muon, .* got 'adam'"), ("torch/Nadam", "got 'torch/Nadam'"), ("torch/LBFGS", "got"),
    ("torch/lr_scheduler", "got"), ("timm/lionn", "timm has no optimizer 'lionn'; there are adabelief"),
    ("torch/Optimizer", "Optimizer cannot be made from groups and a rate"),
])  # fmt: skip
def test_an_unknown_optimizer_is_told(name: str, text: str) -> None:
    with pytest.raises(DeepcvError, match=text):
        create_optimizer(Model(), replace(toys.CONFIG, optimizer=name))
