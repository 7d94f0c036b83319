"""Parts of networks: frozen, shared, forked, merged, and kept where several processes and the registry find them."""

import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from deepcv import network_registry, tracking
from deepcv.nn import DeepcvModule
from deepcv.nn.layers.norms import has_statistics
from deepcv.nn.network_file import NetworkFileError
from deepcv.nn.parts import PartError, averaged, fork, freeze, load_state, merge, share, state_of, unfreeze
from deepcv.shared_parts import SharedPart, StaleError
from deepcv.tracking import RegistryError

SHAPE = (1, 8, 8)
NETWORK = """\
templates:
  embedding:
    nodes:
      - {id: first, op: conv, channels: 4}
      - {id: second, op: conv, channels: 6, stride: 2}
nodes:
  - {id: backbone, template: embedding}
  - {id: pool, op: global_avg_pool}
  - {id: head, op: linear, features: $classes}
outputs: {logits: head}
"""


def network(folder: Path, classes: int = 3, seed: int = 0, defaults: str = "") -> DeepcvModule:
    path = folder / "net.yaml"
    path.write_text(defaults + NETWORK)
    torch.manual_seed(seed)
    return DeepcvModule.from_file(path, SHAPE, classes)


def step(net: nn.Module, seed: int = 0) -> None:
    """One step of training."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.5)
    net.train()(torch.randn(8, *SHAPE, generator=generator))["logits"].square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def places(net: nn.Module, part: str) -> set[int]:
    module = net.get_submodule(part)
    return {tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers())}


FREEZE = [
    (("backbone.first",), ["backbone.first.conv.weight", "backbone.first.norm.weight", "backbone.first.norm.bias"]),
    (("backbone.*.norm",), [f"backbone.{n}.norm.{k}" for n in ("first", "second") for k in ("weight", "bias")]),
    (("head.bias",), ["head.bias"]),
    (("head", "backbone.second.conv"), ["head.weight", "head.bias", "backbone.second.conv.weight"]),
    (("b*.first.conv.*",), ["backbone.first.conv.weight"]),
]  # fmt: skip


@pytest.mark.parametrize("norm", ["batch", "layer_mean_batch"])
@pytest.mark.parametrize(("parts", "names"), FREEZE)
def test_what_is_frozen_does_not_move(parts: tuple[str, ...], names: list[str], norm: str, tmp_path: Path) -> None:
    net = network(tmp_path, defaults=f"defaults: {{norm: {norm}}}\n")
    assert freeze(net, *parts) == names
    assert {n for n, p in net.named_parameters() if not p.requires_grad} == set(names)
    norms = {n for n, m in net.named_modules() if has_statistics(m) and f"{n}.weight" in names}
    before = {key: value.clone() for key, value in net.state_dict().items()}
    step(net)
    still = {key for key, value in net.state_dict().items() if torch.equal(value, before[key])}
    assert still == set(names) | {key for key in before if key.rpartition(".")[0] in norms}
    assert unfreeze(net, *parts) == names
    assert all(p.requires_grad for p in net.parameters())
    assert all(module.training for module in net.modules())
    step(net)
    assert not any(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("part", ["backbones", "pool", "head.weights", ""])
def test_a_part_that_is_not_there_is_told(part: str, tmp_path: Path) -> None:
    with pytest.raises(PartError, match=f"no part '{part}' with parameters; there are backbone, head"):
        freeze(network(tmp_path), part)
    if part:
        with pytest.raises(PartError, match=part):
            state_of(network(tmp_path), part)


def test_shared_parts_learn_together_and_forks_apart(tmp_path: Path) -> None:
    one, two = network(tmp_path, 3, seed=0), network(tmp_path, 5, seed=1)
    keys = list(two.state_dict())
    share(one, "backbone", two, "backbone")
    assert list(two.state_dict()) == keys
    assert places(one, "backbone") == places(two, "backbone")
    assert not places(one, "head") & places(two, "head")
    step(two)
    assert all(
        torch.equal(a, b)
        for a, b in zip(state_of(one, "backbone").values(), state_of(two, "backbone").values(), strict=True)
    )
    together = nn.ModuleList([one, two])
    assert len(list(together.parameters())) == len(list(one.parameters())) + 2  # an optimizer holds the backbone once
    both = copy.deepcopy(together)
    assert places(both[0], "backbone") == places(both[1], "backbone")  # a copy of both shares among itself
    assert not places(both[0], "backbone") & places(one, "backbone")

    before = state_of(one, "backbone")
    frozen = freeze(two, "backbone.first")
    fork(two, "backbone")
    assert not places(one, "backbone") & places(two, "backbone")
    assert all(torch.equal(before[key], value) for key, value in state_of(two, "backbone").items())
    assert {n for n, p in two.named_parameters() if not p.requires_grad} == set(frozen)
    unfreeze(two, "backbone")
    step(two)
    assert all(torch.equal(before[key], value) for key, value in state_of(one, "backbone").items())
    assert not any(torch.equal(before[key], value) for key, value in state_of(two, "backbone").items())


def test_gradients_of_a_shared_part_are_the_sum_of_both(tmp_path: Path) -> None:
    one, two = network(tmp_path, 3, seed=0), network(tmp_path, 5, seed=1)
    share(one, "backbone", two, "backbone")
    alone = [copy.deepcopy(net) for net in (one, two)]
    x = torch.randn(4, *SHAPE)
    (one(x)["logits"].square().sum() + two(x)["logits"].square().sum()).backward()
    for net in alone:
        net(x)["logits"].square().sum().backward()
    for name, parameter in one.get_submodule("backbone").named_parameters():
        expected = sum(net.get_submodule("backbone").get_parameter(name).grad for net in alone)
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("base_part", "other_part", "message"),
    [
        ("backbone.first", "backbone.second", r"conv.weight is \(6, 4, 3, 3\) here and \(4, 1, 3, 3\) there"),
        ("backbone", "head", "different tensors: bias, first.conv.weight"),
        ("nowhere", "head", "no part 'nowhere'; there are backbone, head"),
        ("pool", "pool", "no part 'pool'; there are backbone, head"),
    ],
)
def test_parts_that_do_not_fit_are_told(base_part: str, other_part: str, message: str, tmp_path: Path) -> None:
    one, two = network(tmp_path), network(tmp_path)
    with pytest.raises(PartError, match=message):
        share(one, base_part, two, other_part)


def test_one_network_is_not_shared_with_itself(tmp_path: Path) -> None:
    net = network(tmp_path)
    with pytest.raises(PartError, match="write `share: NODE` in its network file"):
        share(net, "backbone.first", net, "backbone.second")


@given(
    st.lists(st.floats(0, 10, width=32), min_size=2, max_size=4).filter(lambda weights: sum(weights) > 0.1), st.integers(0, 99)
)  # fmt: skip
def test_a_merge_is_the_weighed_mean(weights: list[float], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    states = [
        {"w": torch.randn(3, 2, generator=generator), "n": torch.tensor(seed + place)} for place in range(len(weights))
    ]
    merged = averaged(states, weights)
    expected = sum(w / sum(weights) * state["w"].double() for w, state in zip(weights, states, strict=True))
    torch.testing.assert_close(merged["w"].double(), expected, rtol=0, atol=1e-6)
    assert merged["w"].dtype == torch.float32
    assert merged["n"] == seed + len(weights) - 1


def test_merged_statistics_are_those_of_all_data(tmp_path: Path) -> None:
    """Two forks have each seen the whole of their data: merged by its amount, the statistics are those of the union."""
    base = network(tmp_path)
    data = [torch.randn(30, *SHAPE) * 2 + 1, torch.randn(10, *SHAPE) - 3]
    forks = [copy.deepcopy(base) for _ in data]
    for net in (base, *forks):
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0  # the statistics of the last batch
    values = []
    for net, images in zip(forks, data, strict=True):
        net(images)
        values.append(net.get_submodule("backbone.first.conv")(images).detach())
    merge(base, forks, "backbone", weights=[30, 10])
    union = torch.cat(values).double()
    norm = base.get_submodule("backbone.first.norm")
    torch.testing.assert_close(norm.get_buffer("running_mean").double(), union.mean((0, 2, 3)), rtol=0, atol=1e-5)
    unbiased = 30 * 64 / (30 * 64 - 1)  # torch keeps the unbiased variance
    expected = union.var((0, 2, 3), correction=0)
    torch.testing.assert_close(
        norm.get_buffer("running_var").double(), expected, rtol=2 * (unbiased - 1) + 2e-3, atol=0
    )
    assert norm.get_buffer("num_batches_tracked") == 1


@pytest.mark.parametrize(("part", "pattern"), [("stm", ""), ("backb*", "; only freeze and unfreeze take a *")])
def test_a_merge_of_a_part_that_is_not_there_is_told(part: str, pattern: str, tmp_path: Path) -> None:
    net = network(tmp_path)
    with pytest.raises(PartError, match=re.escape(f"no part {part!r}; there are backbone, head{pattern}") + "$"):
        merge(net, [net], part)


def test_a_merge_of_equal_forks_changes_nothing_and_reaches_who_shares(tmp_path: Path) -> None:
    base, other = network(tmp_path), network(tmp_path, 5, seed=1)
    share(base, "backbone", other, "backbone")
    before = {key: value.clone() for key, value in base.state_dict().items()}
    merge(base, [copy.deepcopy(base), copy.deepcopy(base)], "backbone")
    for key, value in base.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=1e-6, atol=1e-6)
    trained = copy.deepcopy(base)
    step(trained)
    merge(base, [trained], "")  # the whole network
    assert all(
        torch.equal(a, b) for a, b in zip(base.state_dict().values(), trained.state_dict().values(), strict=True)
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(state_of(other, "backbone").values(), state_of(trained, "backbone").values(), strict=True)
    )
    assert places(base, "backbone") == places(other, "backbone")


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [float("nan"), 1.0]])
def test_weights_of_a_merge_are_checked(weights: list[float]) -> None:
    with pytest.raises(PartError, match="expected 2 weights of at least 0"):
        averaged([{"w": torch.ones(1)}] * 2, weights)
    with pytest.raises(PartError, match="at least one fork"):
        averaged([])


UPDATES = """\
import sys, time
from pathlib import Path
import torch
from deepcv.shared_parts import SharedPart
part, me, go = SharedPart(Path(sys.argv[1])), int(sys.argv[2]), Path(sys.argv[3])
go.with_name(f"ready{me}").touch()
while not go.exists():
    time.sleep(0.002)
def change(state):
    mine = torch.nn.functional.one_hot(torch.tensor(me), 2)
    return {"sum": state["sum"] + (me + 1), "counts": state["counts"] + mine}
for _ in range(100):
    part.update(change)
"""


def test_two_processes_with_a_hundred_updates_each_lose_none(tmp_path: Path) -> None:
    part = SharedPart(tmp_path / "part.pt")
    assert part.replace({"sum": torch.zeros(4, 3), "counts": torch.zeros(2, dtype=torch.int64)}, read=0) == 1
    go = tmp_path / "go"
    workers = [
        subprocess.Popen([sys.executable, "-c", UPDATES, str(part.path), str(me), str(go)], stderr=subprocess.PIPE)
        for me in range(2)
    ]
    while not all((tmp_path / f"ready{me}").exists() for me in range(2)):
        assert all(worker.poll() is None for worker in workers)
    go.touch()
    for worker in workers:
        _, complaint = worker.communicate(timeout=120)
        assert worker.returncode == 0, complaint.decode()
    stored = part.read()
    assert stored.version == 201
    assert stored.state["counts"].tolist() == [100, 100]
    assert torch.equal(stored.state["sum"], torch.full((4, 3), 300.0))


def test_who_read_an_older_version_overwrites_nothing(tmp_path: Path) -> None:
    part = SharedPart(tmp_path / "shared/part.safetensors")
    assert part.read().version == 0
    part.replace({"w": torch.ones(1)}, read=0)
    mine = part.read()
    assert part.update(lambda state: {"w": state["w"] + 1}) == 2  # another process meanwhile
    with pytest.raises(StaleError, match="version 2 was written since version 1 was read"):
        part.replace({"w": mine.state["w"] * 9}, read=mine.version)
    assert part.read().state["w"] == 2

    calls: list[float] = []

    def slow(state: dict[str, Tensor]) -> dict[str, Tensor]:
        if not calls:
            part.update(lambda other: {"w": other["w"] + 1})
        calls.append(state["w"].item())
        return {"w": state["w"] * 10}

    assert part.update(slow) == 4
    assert calls == [2, 3]  # called again on what the other had made
    assert part.read().state["w"] == 30


def test_an_error_while_updating_leaves_the_part_as_it_was(tmp_path: Path) -> None:
    part = SharedPart(tmp_path / "part.pt")
    part.replace({"w": torch.ones(1)}, read=0)

    def fails(_: dict[str, Tensor]) -> dict[str, Tensor]:
        raise RuntimeError("no loss")

    with pytest.raises(RuntimeError, match="no loss"):
        part.update(fails)
    assert part.update(lambda state: state) == 2  # the lock is free
    torch.save({"w": torch.ones(1)}, part.path)
    with pytest.raises(NetworkFileError, match="not a shared part; it says no version"):
        part.read()


@pytest.mark.usefixtures("store")
def test_a_part_goes_through_the_registry_and_back(tmp_path: Path) -> None:
    name, net, other = "deepcv-embedding", network(tmp_path), network(tmp_path, 5, seed=1)
    assert network_registry.publish_part(name, net, "backbone", read="0", tags={"deepcv.dataset": "toy"}) == "1"
    assert network_registry.publish_part(name, net, "backbone") == "1"  # once per content
    client = tracking.connect()
    client.set_registered_model_alias(name, "champion", "1")
    tags = client.get_model_version(name, "1").tags
    assert tags["deepcv.dataset"] == "toy"
    assert tags[network_registry.PART_TAG] == "backbone"
    assert tags[network_registry.SPEC_TAG] == net.spec.sha256()
    version, state = network_registry.part(f"models:/{name}@champion")
    assert version == "1"
    load_state(other, "backbone", state)
    assert all(
        torch.equal(a, b)
        for a, b in zip(state_of(other, "backbone").values(), state_of(net, "backbone").values(), strict=True)
    )

    step(net)
    assert network_registry.publish_part(name, net, "backbone", read="1") == "2"
    step(other, seed=1)  # it started from version 1 as well
    with pytest.raises(RegistryError, match="version 2 was published since version 1 was read; merge"):
        network_registry.publish_part(name, other, "backbone", read="1")
    newest, state = network_registry.part(f"models:/{name}/2")
    load_state(other, "backbone", averaged([state, state_of(other, "backbone")]))
    assert network_registry.publish_part(name, other, "backbone", read=newest) == "3"
    with pytest.raises(RegistryError, match="models:/deepcv-nothing/1"):
        network_registry.part("models:/deepcv-nothing/1")
    with pytest.raises(RegistryError, match="holds no network"):
        network_registry.network(f"models:/{name}/1")
