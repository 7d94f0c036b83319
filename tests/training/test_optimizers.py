from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import toys
from torch import nn

from deepcv.errors import DeepcvError
from deepcv.nn.module import DeepcvModule
from deepcv.nn.parts import PartError
from deepcv.nn.spec import ZOO
from deepcv.training.hyperparameters import initial, scheduled
from deepcv.training.optimizers import check, create_optimizer, momentum_of, parameter_groups, set_momentum
from deepcv.training.schedules import Ramp

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
    ("adam", "expected adamw, sgd, muon, .* got 'adam'"), ("torch/Nadam", "got 'torch/Nadam'"),
    ("torch/lr_scheduler", "got"), ("timm/lionn", "timm has no optimizer 'lionn'; there are adabelief"),
    ("torch/Optimizer", "got 'torch/Optimizer'"), ("torch/LBFGS", "torch/LBFGS cannot train a network: .* 'closure'"),
    ("torch/Muon", "torch/Muon cannot train a network: Muon only supports 2D parameters .*; adamw, sgd and muon can"),
    ("torch/SparseAdam", "torch/SparseAdam cannot train a network: SparseAdam does not support dense gradients"),
    ("timm/sgd", "timm/sgd cannot train a network: Nesterov momentum requires a momentum.*; set train.momentum, which auto"),
])  # fmt: skip
def test_an_optimizer_that_cannot_train_is_told_and_draws_nothing(name: str, text: str) -> None:
    state = torch.get_rng_state()
    with pytest.raises(DeepcvError, match=text):
        check(toys.config(optimizer=name, momentum="auto"), torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("name", "own", "key"), [
    ("adamw", (0.9, 0.99), "betas"), ("muon", (0.9, 0.99), "betas"), ("sgd", 0.9, "momentum"), ("torch/SGD", 0, "momentum"),
    ("torch/NAdam", (0.9, 0.999), "betas"), ("torch/RMSprop", 0, "momentum"), ("timm/adan", (0.98, 0.92, 0.99), "betas"),
    ("timm/muon", 0.95, "momentum"),
])  # fmt: skip
def test_the_momentum_is_the_optimizers_own_or_that_of_params(
    name: str, own: float | tuple[float, ...], key: str
) -> None:
    config = toys.config(optimizer=name, momentum="auto")
    assert create_optimizer(Model(), config).param_groups[0][key] == own
    assert momentum_of(config) == (own[0] if isinstance(own, tuple) else own)
    optimizer = create_optimizer(Model(), replace(config, momentum=0.7))
    wanted = (0.7, *own[1:]) if isinstance(own, tuple) else 0.7
    assert {group[key] for group in optimizer.param_groups} == {wanted}
    set_momentum(optimizer, 0.6)
    assert {group[key] for group in optimizer.param_groups} == {(0.6, *own[1:]) if isinstance(own, tuple) else 0.6}
    assert initial(replace(config, momentum=0.7), "momentum") == 0.7


def test_what_has_no_momentum_takes_none() -> None:
    adagrad = toys.config(optimizer="torch/Adagrad", momentum="auto")
    assert "momentum" not in create_optimizer(Model(), adagrad).param_groups[0]
    with pytest.raises(DeepcvError, match=r"train\.momentum: torch/Adagrad has none; expected auto, got 0\.5"):
        create_optimizer(Model(), replace(adagrad, momentum=0.5))
    steady = replace(
        adagrad, schedules={"clip_norm": Ramp("exponential", end=0.1)}, optimizer="torch/SGD", clip_norm=1.0
    )
    assert scheduled(steady, 2)
    with pytest.raises(
        DeepcvError, match=r"train\.schedules\.momentum: an exponential schedule never leaves 0; give it"
    ):
        scheduled(replace(steady, schedules={"momentum": Ramp("exponential", end=0.1)}), 2)
    for name in ("torch/Adagrad", "timm/adafactor"):
        falling = replace(adagrad, optimizer=name, schedules={"momentum": Ramp(start=0.5)})
        with pytest.raises(DeepcvError, match=rf"train\.schedules\.momentum: {name} has no momentum"):
            check(falling, torch.device("cpu"))
        with pytest.raises(DeepcvError, match=rf"train\.schedules\.momentum: {name} has no momentum"):
            initial(falling, "momentum")


@pytest.mark.parametrize(("name", "options", "found"), [
    ("adamw", {"betas": [0.8, 0.95], "eps": 1e-6}, {"betas": (0.8, 0.95), "eps": 1e-6}),
    ("sgd", {"nesterov": False, "dampening": 0.1}, {"nesterov": False, "dampening": 0.1, "momentum": 0.9}),
    ("torch/RMSprop", {"alpha": 0.9, "centered": True}, {"alpha": 0.9, "centered": True}),
    ("timm/lamb", {"betas": [0.8, 0.95], "trust_clip": True}, {"betas": (0.8, 0.95), "trust_clip": True}),
])  # fmt: skip
def test_options_reach_the_optimizer(name: str, options: dict[str, Any], found: dict[str, Any]) -> None:
    config = toys.config(optimizer=name, momentum="auto", optimizer_options=options)
    (first, *_) = create_optimizer(Model(), config).param_groups
    assert {key: first[key] for key in found} == found
    if "betas" in options:
        (first, *_) = create_optimizer(Model(), replace(config, momentum=0.8)).param_groups
        assert first["betas"] == (0.8, 0.95)
        with pytest.raises(
            DeepcvError, match=r"momentum 0\.5 and .*betas, which begin with 0\.8, .* betas to \[0\.5, 0\.95\]"
        ):
            create_optimizer(Model(), replace(config, momentum=0.5))


@pytest.mark.parametrize(("name", "options", "text"), [
    ("adamw", {"beta": [0.9, 0.99]}, "optimizer_options.beta: adamw has no such option; the closest is 'betas'"),
    ("timm/lamb", {"trustclip": True}, "timm/lamb has no such option; the closest is 'trust_clip'"),
    ("adamw", {"lr": 0.1}, r"optimizer_options\.lr: set train\.lr, which is the same"),
    ("muon", {"hold_norms": True}, r"set train\.hold_norms"), ("adamw", {"params": 1}, "has no such option"),
    ("adamw", {"betas": 0.9}, r"optimizer_options\.betas: expected a list of two numbers or more, got 0\.9"),
    ("adamw", {"eps": -1.0}, r"adamw with the options \{'eps': -1\.0\} cannot train a network: Invalid epsilon"),
    ("torch/Adam", {"eps": "small"}, "torch/Adam with the options .* cannot train a network"),
])  # fmt: skip
def test_an_option_that_does_not_fit_is_told(name: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(DeepcvError, match=text):
        create_optimizer(Model(), toys.config(optimizer=name, momentum="auto", optimizer_options=options))


def scales(folder: Path, text: str, side: int = 32, **named: Any) -> dict[str, tuple[float, bool]]:
    """By parameter of a network, the factor of its rate and whether it is decayed."""
    network = DeepcvModule.from_spec(toys.network(folder, text), (3, side, side), 10)
    names = {id(p): name for name, p in network.named_parameters()}
    groups = parameter_groups(network, 0.1, **named)
    return {names[id(p)]: (g["lr_scale"], g["weight_decay"] > 0) for g in groups for p in g["params"]}


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto"])
def test_rates_and_decay_inside_a_network_of_timm_are_timms(name: str, tmp_path: Path) -> None:
    peer = timm.create_model(name, num_classes=10)
    left_out = getattr(peer, "no_weight_decay", set)()
    names = {id(p): name for name, p in peer.named_parameters()}
    groups = timm.optim.param_groups_layer_decay(peer, 0.1, no_weight_decay_list=left_out, layer_decay=0.5)
    theirs = {f"net.{names[id(p)]}": (g["lr_scale"], g["weight_decay"] > 0) for g in groups for p in g["params"]}
    one = f"nodes:\n  - {{id: net, timm: {name}, classes: $classes}}\noutputs: {{logits: net}}\n"
    assert scales(tmp_path, one, 224, layer_decay=0.5) == theirs
    # Behind it, a head of one's own is the last layer.
    headed = one.replace(", classes: $classes}", "}\n  - {id: head, op: linear, features: $classes}")
    found = scales(tmp_path, headed.replace("logits: net", "logits: head"), 224, layer_decay=0.5)
    assert found["head.weight"] == (1.0, True)
    assert max(scale for name, (scale, _) in found.items() if name.startswith("net.")) == 0.5


LAYERED = {
    "templates": (
        "templates:\n  pair:\n    nodes:\n      - {id: first, op: conv, channels: 4}\n"
        "      - {id: second, op: conv, channels: 4}\n"
        "nodes:\n  - {id: stem, op: conv, channels: 4}\n  - {id: body, template: pair, repeat: 2}\n"
        "  - {id: last, template: pair}\n",
        {"stem": 4, "body.0": 3, "body.1": 2, "last.first": 1, "last.second": 0},
    ),
    "spec": (
        "nodes:\n  - {id: net, spec: resnet-18, parameters: {width: 4}}\n",
        {"net.stem": 9, "net.stage1.0": 8, "net.stage1.1": 7, "net.stage2.down": 6, "net.stage4.body.0": 1, "net.head": 0},
    ),
    "torchvision": (
        "nodes:\n  - {id: net, torchvision: resnet18}\n",
        {"net.conv1": 9, "net.bn1": 9, "net.layer1.0": 8, "net.layer4.1": 1, "net.fc": 0},
    ),
    "torchvision, unnumbered": (
        "nodes:\n  - {id: net, torchvision: inception_v3}\n",
        {"net.Conv2d_1a_3x3": 17, "net.Conv2d_2a_3x3": 16, "net.Mixed_7c": 1, "net.fc": 0},
    ),
    "torchvision, lettered": (
        "nodes:\n  - {id: net, torchvision: googlenet}\n",
        {"net.conv1": 12, "net.conv3": 12, "net.inception3a": 11, "net.inception5b": 3, "net.aux2": 1, "net.fc": 0},
    ),
    "feature maps": (
        "nodes:\n  - {id: net, timm: convnext_atto, features: true}\n  - {id: map, op: feature}\n"
        "  - {id: pool, op: global_avg_pool}\n",
        {"net.stem_0": 4, "net.stem_1": 4, "net.stages_0": 3, "net.stages_2": 1, "net.stages_3": 0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", LAYERED)
def test_rates_fall_inside_a_node_that_is_made_of_others(kind: str, tmp_path: Path) -> None:
    text, expected = LAYERED[kind]
    tail = "  - {id: out, op: activation, kind: relu}\noutputs: {logits: out}\n"
    found = scales(tmp_path, text + tail, 96, layer_decay=0.5)
    for part, distance in expected.items():
        inside = {scale for name, (scale, _) in found.items() if name.startswith(f"{part}.")}
        assert inside == {0.5**distance}, part


def test_the_parts_of_params_scale_the_rates(tmp_path: Path) -> None:
    text = (
        "nodes:\n" + "".join(f"  - {{id: c{n}, op: conv, channels: 4}}\n" for n in range(3)) + "outputs: {logits: c2}\n"
    )
    found = scales(tmp_path, text, layer_decay=0.5, lr_scales={"c0": 0.5, "c*.norm": 0.1})
    assert {found[f"c{n}.conv.weight"][0] for n in range(3)} == {0.125, 0.5, 1.0}
    assert [found[f"c{n}.norm.weight"][0] for n in range(3)] == pytest.approx([0.0125, 0.05, 0.1])
    with pytest.raises(PartError, match=r"train\.lr_scales: no part 'c3' with parameters that learn"):
        scales(tmp_path, text, lr_scales={"c3": 0.5})


def test_tokens_and_positions_are_not_decayed(tmp_path: Path) -> None:
    found = scales(tmp_path, (ZOO / "vit-tiny.yaml").read_text())
    kept = {name for name, (_, decays) in found.items() if not decays and not name.endswith((".bias", "norm.weight"))}
    assert {name for name in kept if ".norm" not in name} == {"token.token", "places.embedding"}
    assert found["body.0.wide.weight"] == (1.0, True)
