"""Networks of timm and torchvision as nodes."""

import copy
import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from ignite.handlers import EMAHandler
from torchvision import models

from deepcv.nn import DeepcvModule
from deepcv.nn.spec import SpecError, build, from_canonical, load

CUT = "nodes: [{id: net, torchvision: resnet18, at: layer2}]\noutputs: {out: net}\n"


def network_of(folder: Path, *nodes: str, shape: tuple[int, int, int] = (3, 64, 64)) -> torch.fx.GraphModule:
    path = folder / "net.yaml"
    lines = "".join(f"  - {{{node}}}\n" for node in nodes)
    path.write_text(f"nodes:\n{lines}outputs: {{out: {nodes[-1].split(',')[0].removeprefix('id: ')}}}\n")
    torch.manual_seed(0)
    return build(load(path), shape, 10)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "vit_tiny_patch16_224", "convnext_atto"])
def test_a_timm_network_is_what_timm_makes(tmp_path: Path, name: str) -> None:
    network = network_of(tmp_path, f"id: net, timm: {name}, classes: $classes").eval()
    size = {"img_size": (64, 64)} if name.startswith("vit") else {}
    torch.manual_seed(0)
    peer = timm.create_model(name, num_classes=10, **size).eval()
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(network(x)["out"], peer(x))
    assert [key.removeprefix("net.") for key in network.state_dict()] == list(peer.state_dict())


def test_timm_features_are_taken_by_level(tmp_path: Path) -> None:
    network = network_of(tmp_path, "id: net, timm: resnet18, features: true", "id: c3, op: feature, level: 3").eval()
    torch.manual_seed(0)
    peer = timm.create_model("resnet18", features_only=True).eval()
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(network(x)["out"], peer(x)[3])
    (node,) = (node for node in network.graph.nodes if node.meta.get("id") == "c3")
    assert node.meta["shape"] == (256, 4, 4)


def several(folder: Path, node: str, levels: dict[str, int]) -> torch.fx.GraphModule:
    """The network with an output for each feature map."""
    nodes = "".join(f"  - {{id: {name}, op: feature, level: {level}, from: net}}\n" for name, level in levels.items())
    outputs = ", ".join(f"{name}: {name}" for name in levels)
    (folder / "net.yaml").write_text(f"nodes:\n  - {{id: net, {node}}}\n{nodes}outputs: {{{outputs}}}\n")
    torch.manual_seed(0)
    return build(load(folder / "net.yaml"), (3, 64, 64), 10).eval()


def test_stages_of_timm_that_nothing_takes_are_not_there(tmp_path: Path) -> None:
    network = several(tmp_path, "timm: resnet18, features: true, out_indices: [1, 2]", {"fine": 0, "coarse": -1})
    torch.manual_seed(0)
    peer = timm.create_model("resnet18", features_only=True, out_indices=(1, 2)).eval()
    x = torch.randn(1, 3, 64, 64)
    fine, coarse = peer(x)
    found = network(x)
    assert torch.equal(found["fine"], fine)
    assert torch.equal(found["coarse"], coarse)
    assert {key.removeprefix("net.") for key in network.state_dict()} == peer.state_dict().keys()
    assert not any("layer3" in key or "layer4" in key for key in network.state_dict())


@pytest.mark.parametrize("names", [("layer2", "layer3", "layer4"), ("layer4", "layer1.0.bn1")])
def test_several_inner_values_of_torchvision_in_their_order(tmp_path: Path, names: tuple[str, ...]) -> None:
    network = several(
        tmp_path, f"torchvision: resnet18, at: [{', '.join(names)}]", {f"f{n}": n for n in range(len(names))}
    )
    torch.manual_seed(0)
    peer = models.resnet18().eval()
    kept: dict[str, torch.Tensor] = {}
    for name in names:
        peer.get_submodule(name).register_forward_hook(lambda _, __, y, name=name: kept.setdefault(name, y.clone()))
    x = torch.randn(2, 3, 64, 64)
    peer(x)
    copied = copy.deepcopy(network)
    for given in (network(x), copied(x)):
        assert all(torch.equal(y, kept[name]) for y, name in zip(given.values(), names, strict=True))
    assert not any(module.training for module in copied.modules())


def test_lists_of_nodes_stay_in_the_canonical_form(tmp_path: Path) -> None:
    several(tmp_path, "torchvision: resnet18, at: [layer2, layer3]", {"a": 0, "b": 1})
    spec = load(tmp_path / "net.yaml")
    assert spec.canonical()["nodes"][0]["at"] == ["layer2", "layer3"]
    assert from_canonical(json.loads(json.dumps(spec.canonical()))) == spec


def test_a_timm_network_without_its_pool_gives_the_last_maps(tmp_path: Path) -> None:
    network = network_of(tmp_path, "id: net, timm: resnet18, pool: false").eval()
    torch.manual_seed(0)
    peer = timm.create_model("resnet18", num_classes=0).eval()
    x = torch.randn(1, 3, 64, 64)
    y = network(x)["out"]
    assert y.shape == (1, 512, 2, 2)
    assert torch.equal(y, peer.forward_features(x))


def test_a_name_may_be_a_parameter(tmp_path: Path) -> None:
    """So that a search chooses the network."""
    path = tmp_path / "net.yaml"
    path.write_text("parameters: {name: resnet18}\nnodes:\n  - {id: net, timm: $name}\noutputs: {out: net}\n")
    for name, features in (("resnet18", 512), ("resnet26", 2048)):
        (output,) = build(load(path, {"name": name}), (3, 64, 64), 10)(torch.zeros(1, 3, 64, 64)).values()
        assert output.shape == (1, features)
    assert load(path) == load(path, {"name": "resnet18"}) != load(path, {"name": "resnet26"})
    path.write_text(path.read_text().replace("$name", "$nam"))
    with pytest.raises(SpecError, match=r":3: node 'net': timm: unknown parameter '\$nam'"):
        load(path)


def test_torchvision_networks_and_their_inner_values(tmp_path: Path) -> None:
    whole = network_of(tmp_path, "id: net, torchvision: resnet18, classes: $classes").eval()
    torch.manual_seed(0)
    peer = models.resnet18(num_classes=10).eval()
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(whole(x)["out"], peer(x))
    inner = network_of(tmp_path, "id: net, torchvision: resnet18, at: layer2").eval()
    torch.manual_seed(0)
    peer = models.resnet18().eval()
    expected = peer.layer2(peer.layer1(peer.maxpool(peer.relu(peer.bn1(peer.conv1(x))))))
    assert torch.equal(inner(x)["out"], expected)


def through_pickle(network: DeepcvModule) -> DeepcvModule:
    loaded: DeepcvModule = pickle.loads(pickle.dumps(network))  # noqa: S301  ours
    return loaded


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, through_pickle])
def test_a_cut_torchvision_network_is_copied_in_its_mode(
    tmp_path: Path, copied: Callable[[DeepcvModule], DeepcvModule]
) -> None:
    """torchvision's own deepcopy gives one in train mode, whose statistics then move."""
    (tmp_path / "net.yaml").write_text(CUT)
    network = DeepcvModule.from_file(tmp_path / "net.yaml", (3, 32, 32), 10).eval()
    network.get_submodule("net.body.layer1.0").train()  # one layer in the other mode
    twin = copied(network)
    assert {n: m.training for n, m in twin.named_modules()} == {n: m.training for n, m in network.named_modules()}
    body = twin.get_submodule("net.body")
    assert body.graph is body.eval_graph
    assert twin.eval() is twin
    x = torch.randn(2, 3, 32, 32)
    statistics = twin.get_buffer("net.body.bn1.running_mean").clone()
    assert torch.equal(twin(x)["out"], network.eval()(x)["out"])
    assert torch.equal(twin.get_buffer("net.body.bn1.running_mean"), statistics)
    twin.train()
    assert body.graph is body.train_graph


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda network: EMAHandler(network).ema_model])
def test_a_bare_network_and_its_moving_average_keep_their_mode(
    tmp_path: Path, copied: Callable[[torch.fx.GraphModule], torch.fx.GraphModule]
) -> None:
    network = network_of(tmp_path, "id: net, torchvision: resnet18, at: layer2").eval()
    network.get_submodule("net.body.layer1.0").train()
    modes = {name: module.training for name, module in copy.deepcopy(network).named_modules()}
    assert modes == {name: module.training for name, module in network.named_modules()}
    assert not any(module.training for module in copied(network.eval()).modules())


WRONG = [
    ("id: net, timm: resnet81", "has no model 'resnet81'"),
    ("id: net, timm: resnt18", "has no model 'resnt18'; the closest are resnet18, "),
    ("id: net, timm: qqqqqq", " more"),
    ("id: net, torchvision: resnt18", "has no model 'resnt18' for classification; the closest are resnet18, "),
    ("id: net, torchvision: resnet18, at: layr1", "at: no node 'layr1'; the closest are layer1, "),
    ("id: net, timm: 5", "name must be a text, got 5"),
    ("id: net, torchvision: resnet81", "has no model 'resnet81'"),
    ("id: net, torchvision: resnet18, at: layer9", "at: no node 'layer9'; the closest are layer"),
    ("id: net, torchvision: resnet18, at: [layer3, layer9]", "at: no node 'layer9'; the closest are layer"),
    ("id: net, torchvision: resnet18, at: [layer3, 4]", "at must be a text, got 4"),
    ("id: net, torchvision: resnet18, at: []", "at must be a text or a list, each a text, got an empty list"),
    ("id: net, torchvision: [resnet18]", "name must be a text, got ['resnet18']"),
    (
        "id: net, timm: resnet18, features: true, out_indices: 2",
        "out_indices must be a list, each a whole number from -64",
    ),
    ("id: net, timm: resnet18, features: true, out_indices: [1, 9]", "with out_indices: [1, 9]: "),
    ("id: net, timm: resnet18, out_indices: [1]", "out_indices are for features: true"),
    ("id: net, timm: resnet18, features: true, out_indices: [3, 1]", "out_indices must rise, from fine to coarse"),
    ("id: net, timm: resnet18, features: true, out_indices: [1, 1]", "each once, got [1, 1]"),
    ("id: net, op: feature", "needs a node with several feature maps"),
]


@pytest.mark.parametrize(("node", "message"), WRONG)
def test_a_wrong_name_is_an_error_with_its_line(tmp_path: Path, node: str, message: str) -> None:
    with pytest.raises(SpecError, match=r"net\.yaml:2: node .net.: ") as caught:
        network_of(tmp_path, node)
    assert message in str(caught.value)


def test_a_level_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="level: 7 of 5 feature maps"):
        network_of(tmp_path, "id: net, timm: resnet18, features: true", "id: c, op: feature, level: 7")


def sample_of_timm(count: int, most_parameters: int) -> list[str]:
    """Names drawn from all of timm's; a network of more parameters leaves no room for its peer on this machine."""
    names = timm.list_models()
    random.Random(0).shuffle(names)  # noqa: S311  a sample
    found: list[str] = []
    for name in names:
        with torch.device("meta"):
            parameters = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
        if parameters <= most_parameters:
            found.append(name)
        if len(found) == count:
            break
    return found


@pytest.mark.acceptance
@pytest.mark.timeout(3600)
def test_sixty_timm_names_build_and_compute_what_timm_computes(tmp_path: Path) -> None:
    for name in sample_of_timm(60, 200_000_000):
        config = timm.get_pretrained_cfg(name)
        _, height, width = config.input_size
        network = network_of(tmp_path, f"id: net, timm: {name}, classes: $classes", shape=(3, height, width)).eval()
        torch.manual_seed(0)
        size = {"img_size": (height, width)} if config.fixed_input_size else {}
        peer = timm.create_model(name, num_classes=10, **size).eval()
        x = torch.randn(1, 3, height, width)
        with torch.no_grad():
            assert torch.equal(network(x)["out"], peer(x)), name
