"""A DeepcvModule stays what it is in every copy and file."""

import copy
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from deepcv import network_registry, tracking
from deepcv.nn import DeepcvModule, network_file
from deepcv.nn.layers.subgraphs import MixedChoice, OpenChoice, SampledChoice
from deepcv.nn.network_file import NetworkFileError
from deepcv.nn.spec import SpecError, build, load
from deepcv.nn.spec.compile import Search
from deepcv.nn.spec.model import NAME, OWN, TAKEN
from deepcv.tracking import RegistryError

NETWORKS = Path(__file__).parents[2] / "networks"
SHAPE = (1, 8, 8)

SIAMESE = """\
inputs: [left, right]
templates:
  encoder:
    nodes:
      - {id: conv, op: conv, channels: 6}
      - {id: pool, op: global_avg_pool}
nodes:
  - {id: one, template: encoder, from: left}
  - {id: two, share: one, from: right}
  - {id: both, op: concat, from: [one, two]}
  - {id: head, op: linear, features: $classes}
outputs: {logits: head, code: one}
"""

CHOICES = """\
templates:
  wide:
    nodes:
      - {id: a, op: conv, channels: 6, kernel: 5}
      - {id: b, choice: {one: {op: conv, channels: 6, kernel: 1}, two: {op: conv, channels: 6}}}
nodes:
  - {id: stem, op: conv, channels: 6}
  - {id: again, template: wide, checkpoint: true}
  - {id: mix, choice: {small: {op: conv, channels: 6, kernel: 1}, wide: {template: wide}, skip: {op: identity}}}
  - {id: pool, op: global_avg_pool}
  - {id: head, op: linear, features: $classes}
outputs: {logits: head}
"""

Copy = Callable[[DeepcvModule, Path], DeepcvModule]


def by_file(suffix: str) -> Copy:
    def through(network: DeepcvModule, folder: Path) -> DeepcvModule:
        network_file.save(folder / f"net{suffix}", network)
        return network_file.load(folder / f"net{suffix}")

    return through


def by_torch(network: DeepcvModule, folder: Path) -> DeepcvModule:
    torch.save(network, folder / "whole.pt")
    loaded: DeepcvModule = torch.load(folder / "whole.pt", weights_only=False)
    return loaded


COPIES: dict[str, Copy] = {
    "deepcopy": lambda network, _: copy.deepcopy(network),
    "pickle": lambda network, _: pickle.loads(pickle.dumps(network)),  # noqa: S301  ours
    "torch.save": by_torch,
    ".pt": by_file(".pt"),
    ".safetensors": by_file(".safetensors"),
    "pickle of a deepcopy of a file": lambda network, folder: pickle.loads(  # noqa: S301  ours
        pickle.dumps(copy.deepcopy(by_file(".pt")(network, folder)))
    ),
}


def digits() -> DeepcvModule:
    """Of every kind something: statistics that moved, a part that is frozen, a layer in eval mode, parametrizations."""
    torch.manual_seed(0)
    network = DeepcvModule.from_file(NETWORKS / "digits.yaml", SHAPE, 10, width=4)
    parametrizations.spectral_norm(network.get_submodule("head"), n_power_iterations=2)
    parametrizations.weight_norm(network.get_submodule("down.conv"), dim=1)
    parametrizations.orthogonal(network.get_submodule("res1.first.conv"))
    network(torch.randn(16, *SHAPE))
    network.get_submodule("stem").requires_grad_(False)
    network.get_submodule("res1").eval()
    return network


def siamese(folder: Path) -> DeepcvModule:
    (folder / "siamese.yaml").write_text(SIAMESE)
    return DeepcvModule.from_file(folder / "siamese.yaml", {"left": SHAPE, "right": SHAPE}, 3)


def same_in_all(a: DeepcvModule, b: DeepcvModule, *inputs: Tensor, unused: bool = False) -> None:
    """Everything that a copy must have, the next training step included."""
    assert isinstance(b, DeepcvModule)
    assert type(b).__name__ == "DeepcvModule"
    assert b.blueprint == a.blueprint
    assert b.spec.sha256() == a.spec.sha256()
    assert list(a.state_dict()) == list(b.state_dict())
    for (key, one), other in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(one, other), key
        assert one.dtype == other.dtype
    assert {n: p.requires_grad for n, p in a.named_parameters()} == {
        n: p.requires_grad for n, p in b.named_parameters()
    }
    assert {n: m.training for n, m in a.named_modules()} == {n: m.training for n, m in b.named_modules()}
    assert str(a.code) == str(b.code)
    for name, module in a.named_modules():
        assert parametrize.is_parametrized(module) == parametrize.is_parametrized(b.get_submodule(name)), name
    ours, theirs = a(*inputs), b(*inputs)
    for name in ours:
        assert torch.equal(ours[name], theirs[name])
    gradients = [
        torch.autograd.grad(
            out["logits"].square().sum(),
            [p for p in m.parameters() if p.requires_grad],
            allow_unused=unused,
            materialize_grads=unused,
        )
        for m, out in ((a, ours), (b, theirs))
    ]
    for one, other in zip(*gradients, strict=True):  # in another place of memory the last bit may differ
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_the_same_network(name: str, tmp_path: Path) -> None:
    network = digits()
    copied = COPIES[name](network, tmp_path)
    assert not {p.data_ptr() for p in network.parameters()} & {p.data_ptr() for p in copied.parameters()}
    same_in_all(network, copied, torch.randn(4, *SHAPE))


def test_a_shallow_copy_has_the_very_layers() -> None:
    network = digits().eval()
    copied = copy.copy(network)
    assert isinstance(copied, DeepcvModule)
    assert copied.blueprint == network.blueprint
    assert all(one is other for one, other in zip(network.parameters(), copied.parameters(), strict=True))
    x = torch.randn(4, *SHAPE)
    assert torch.equal(network(x)["logits"], copied(x)["logits"])


@pytest.mark.parametrize("name", COPIES)
def test_shared_weights_are_held_once_and_stay_shared(name: str, tmp_path: Path) -> None:
    network = siamese(tmp_path)
    assert sum(key.endswith("conv.weight") for key in network.state_dict()) == 1
    copied = COPIES[name](network, tmp_path)
    same_in_all(network, copied, torch.randn(4, *SHAPE), torch.randn(4, *SHAPE))


@pytest.mark.parametrize("search", ["sampled", "mixed"])
@pytest.mark.parametrize("name", COPIES)
def test_layers_that_run_subgraphs_survive(name: str, search: Search, tmp_path: Path) -> None:
    (tmp_path / "choices.yaml").write_text(CHOICES)
    network = DeepcvModule.from_spec(load(tmp_path / "choices.yaml"), SHAPE, 3, search=search)
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, OpenChoice)}
    assert layers.keys() == {"_subgraphs.again__b", "_subgraphs.mix", "_subgraphs.mix__wide__b"}
    for layer in layers.values():
        if isinstance(layer, SampledChoice):
            layer.active = (1,)
        elif isinstance(layer, MixedChoice):
            layer.mixing = torch.linspace(0.2, 0.9, len(layer.names))
    x = torch.randn(4, *SHAPE)
    copied = COPIES[name](network, tmp_path)
    before = network.eval()(x)["logits"]
    for parameter in copied.parameters():
        parameter.data.zero_()  # also what its subgraphs use: they have no weights of the other network
    assert torch.equal(network(x)["logits"], before)
    assert not copied.eval()(x)["logits"].any()
    network.train()
    same_in_all(network, COPIES[name](network, tmp_path), x, unused=True)


def test_dtypes_and_pruned_outputs_survive(tmp_path: Path) -> None:
    (tmp_path / "siamese.yaml").write_text(SIAMESE)
    shapes = {"left": SHAPE, "right": SHAPE}
    network = DeepcvModule.from_spec(load(tmp_path / "siamese.yaml"), shapes, 3, outputs=["code"]).to(torch.bfloat16)
    for name in (".pt", ".safetensors", "pickle"):
        copied = COPIES[name](network, tmp_path)
        assert list(copied.graph.output_node().args[0]) == ["code"]
        assert list(copied.state_dict()) == list(network.state_dict())
        assert {p.dtype for p in copied.parameters()} == {torch.bfloat16}


def test_it_is_the_graph_module_of_build() -> None:
    spec = load(NETWORKS / "digits.yaml")
    torch.manual_seed(3)
    plain = build(spec, SHAPE, 10)
    torch.manual_seed(3)
    network = DeepcvModule.from_spec(spec, SHAPE, 10)
    assert str(network.code) == str(plain.code)
    assert list(network.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, *SHAPE)
    assert torch.equal(network(x)["logits"], plain(x)["logits"])
    assert type(network).__call__.__code__ is type(plain).__call__.__code__  # nothing stands between caller and graph
    assert type(network).forward.__code__.co_code == type(plain).forward.__code__.co_code


def test_export_and_one_graph_without_breaks() -> None:
    network = DeepcvModule.from_file(NETWORKS / "digits.yaml", SHAPE, 10).eval()
    x = torch.randn(2, *SHAPE)
    exported = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    for one in (exported, compiled):
        assert torch.equal(one(torch.cat([x, x]))["logits"], network(torch.cat([x, x]))["logits"])


def test_loading_leaves_the_random_state_alone(tmp_path: Path) -> None:
    network_file.save(tmp_path / "net.pt", digits())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    network_file.load(tmp_path / "net.pt")
    assert torch.equal(torch.rand(3), expected)


def test_equal_networks_give_equal_files(tmp_path: Path) -> None:
    for suffix in (".pt", ".safetensors"):
        first, second = (tmp_path / f"{n}{suffix}" for n in "ab")
        network_file.save(first, digits())
        network_file.save(second, network_file.load(first))
        assert first.read_bytes() == second.read_bytes()


class Doubled(nn.Module):
    """A parametrization that is not torch's."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x

    def right_inverse(self, x: Tensor) -> Tensor:
        return x / 2


def test_a_parametrization_of_ones_own_is_pickled_and_no_file_holds_it(tmp_path: Path) -> None:
    network = DeepcvModule.from_file(NETWORKS / "digits.yaml", SHAPE, 10)
    parametrize.register_parametrization(network.get_submodule("head"), "weight", Doubled())
    same_in_all(network, COPIES["pickle"](network, tmp_path), torch.randn(4, *SHAPE))
    with pytest.raises(NetworkFileError, match=r"head.weight is computed by Doubled, .* or pickle"):
        network_file.save(tmp_path / "net.pt", network)
    assert not (tmp_path / "net.pt").exists()


def test_a_frozen_batch_norm_uses_its_statistics_in_train_mode() -> None:
    network = digits().train()
    norm = network.get_submodule("stem.norm")
    assert not norm.training
    assert network.get_submodule("down.norm").training
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    network(torch.randn(4, *SHAPE))
    assert all(torch.equal(before[key], value) for key, value in norm.state_dict().items())


def test_an_id_that_the_class_needs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.yaml").write_text("nodes:\n  - {id: spec, op: flatten}\noutputs: {y: spec}\n")
    for make in (build, DeepcvModule.from_spec):
        with pytest.raises(SpecError, match=r"net.yaml:2: node 'spec': the id is taken: a DeepcvModule has a 'spec'"):
            make(load(tmp_path / "net.yaml"), SHAPE, 10)


def test_every_name_that_the_class_has_is_kept_from_nodes() -> None:
    own = {name for name in dir(DeepcvModule) if NAME.fullmatch(name)}
    assert own <= TAKEN | set(OWN)
    assert set(OWN) <= own - TAKEN


class Bomb:
    """Pickled code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("__import__('pathlib').Path('bomb').touch()",)


def test_a_file_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 1, "state_dict": {"x": Bomb()}}, tmp_path / "bomb.pt")
    with pytest.raises(NetworkFileError, match="not a file of tensors alone") as caught:
        network_file.load(tmp_path / "bomb.pt")
    assert "weights_only" not in str(caught.value)  # torch's own text advises to run it
    assert not (tmp_path / "bomb").exists()


WRONG: list[tuple[str, Callable[[Path], object], str]] = [
    ("gone.pt", lambda path: path.with_suffix(".pth").touch(), "there is no such file"),
    ("net.bin", lambda path: path.touch(), "expected a file that ends in .pt or"),
    ("net.pt", lambda path: path.write_bytes(b"PK nothing"), "damaged"),
    (
        "net.pt",
        lambda path: path.write_bytes(b"nothing"),
        r"damaged, or not a file of tensors alone \(UnpicklingError\)$",
    ),
    ("net.safetensors", lambda path: path.write_bytes(b"nothing"), "damaged"),
    ("net.pt", lambda path: torch.save([1], path), "expected a state_dict, got list"),
    ("net.pt", lambda path: torch.save({"a": 1}, path), "expected tensors alone, but 'a' is int"),
    ("net.pt", lambda path: torch.save({"a": torch.ones(1)}, path), "holds no network of format 1"),
]


@pytest.mark.parametrize(("name", "write", "message"), WRONG)
def test_another_file_is_told_what_it_is(
    name: str, write: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    with pytest.raises(NetworkFileError, match=message):
        network_file.load(tmp_path / name)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("spec", {"format": 9}, "format 9"),
        ("classes", 11, "size mismatch"),
        ("parametrizations", {"nowhere.weight": [{"kind": "spectral_norm"}]}, "nowhere"),
        ("parametrizations", {"head.weight": [{"kind": "eval"}]}, "eval"),
        ("input_shapes", {"input": [1, 8]}, "input_shape"),
        ("frozen", None, "NoneType"),
    ],
)
def test_a_file_whose_network_cannot_be_built_says_why(key: str, value: object, message: str, tmp_path: Path) -> None:
    network_file.save(tmp_path / "net.pt", DeepcvModule.from_file(NETWORKS / "digits.yaml", SHAPE, 10))
    content = torch.load(tmp_path / "net.pt", weights_only=True)
    torch.save({**content, key: value}, tmp_path / "net.pt")
    with pytest.raises(NetworkFileError, match=message):
        network_file.load(tmp_path / "net.pt")


@pytest.mark.usefixtures("store")
def test_mlflow_gives_a_registered_network_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = digits()
    (aside := tmp_path / "aside").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(aside))
    version = network_registry.register_network("deepcv-toy-network", network)
    client = tracking.connect()
    client.set_registered_model_alias("deepcv-toy-network", "champion", version)
    assert (
        client.get_model_version("deepcv-toy-network", version).tags[network_registry.SPEC_TAG] == network.spec.sha256()
    )
    same_in_all(network, network_registry.network("models:/deepcv-toy-network@champion"), torch.randn(4, *SHAPE))
    run_id = tracking.start_run("deepcv-toy", "train", {}, {})
    network_registry.log_network(run_id, network)
    same_in_all(network, network_registry.network(f"runs:/{run_id}"), torch.randn(4, *SHAPE))
    for uri in (
        "models:/deepcv-toy-network@challenger",
        "models:/deepcv-toy-network/7",
        "models:/deepcv-toy",
        "runs:/none",
    ):
        with pytest.raises(RegistryError, match=uri):
            network_registry.network(uri)
    assert not list(aside.iterdir())  # no copies are left
    network.eval()  # as mlflow.pytorch loads every model
    mlflow.pytorch.save_model(network, tmp_path / "pickled", pip_requirements=["torch"], serialization_format="pickle")
    loaded = mlflow.pytorch.load_model(str(tmp_path / "pickled"))
    same_in_all(network, loaded, torch.randn(4, *SHAPE))
