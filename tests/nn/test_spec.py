"""What a network file means: names, parameters, templates, outputs, the canonical form, the graph module."""

import copy
import io
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import fx

from deepcv.nn.spec import NetworkSpec, build, from_canonical, load
from deepcv.nn.spec.formula import Formula, FormulaError, Value, evaluate

TEXT = """\
parameters: {width: 4, rate: 1e-4, act: silu}
templates:
  pair:
    parameters: [channels]
    nodes:
      - {id: first, op: conv, channels: $channels}
      - {id: second, op: conv, channels: $channels, activation: $act}
  residual:
    parameters: [width]        # hides the file's width inside
    nodes:
      - {id: body, template: pair, channels: $width}
      - {id: link, op: sum, from: [input, body]}
      - {id: half, op: scale, by: 0.5}
    output: link
nodes:
  - {id: stem, op: conv, channels: $width*2}
  - {id: res, template: residual, width: ($width+0)*2}
  - {id: drop, op: dropout, p: $rate}
  - {id: pool, op: global_avg_pool}
  - {id: head, op: linear, features: $classes*2-$classes}
  - {id: early, op: global_max_pool, from: stem}
outputs: {logits: head, features: early}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "net.yaml"
    path.write_text(TEXT.replace("      - {id: half, op: scale, by: 0.5}\n", ""))
    return path


@pytest.fixture
def spec(path: Path) -> NetworkSpec:
    return load(path)


def test_nodes_are_expanded_and_named(spec: NetworkSpec) -> None:
    sources = {node.id: node.sources for node in spec.nodes}
    assert sources == {
        "stem": ("input",),
        "res.body.first": ("stem",),
        "res.body.second": ("res.body.first",),
        "res.link": ("stem", "res.body.second"),
        "drop": ("res.link",),
        "pool": ("drop",),
        "head": ("pool",),
        "early": ("stem",),
    }
    options = {node.id: dict(node.options) for node in spec.nodes}
    assert options["stem"]["channels"] == 8
    assert options["res.body.first"]["channels"] == 8
    assert options["res.body.second"]["activation"] == "silu"
    assert options["drop"]["p"] == 1e-4
    assert options["head"]["features"] == Formula("$classes*2-$classes")


def test_outputs_keep_the_order_of_the_file(spec: NetworkSpec) -> None:
    result = build(spec, (1, 8, 8), 10)(torch.zeros(3, 1, 8, 8))
    assert [(name, tuple(y.shape)) for name, y in result.items()] == [("logits", (3, 10)), ("features", (3, 8))]


def test_overrides(path: Path) -> None:
    options = {node.id: dict(node.options) for node in load(path, {"width": 6, "rate": "2e-3", "act": "gelu"}).nodes}
    assert options["stem"]["channels"] == 12
    assert options["drop"]["p"] == 2e-3  # PyYAML gives the text '2e-3' for it
    assert options["res.body.second"]["activation"] == "gelu"
    assert load(path, {}) == load(path)


def test_state_dict_keys_are_the_node_ids(spec: NetworkSpec) -> None:
    keys = list(build(spec, (1, 8, 8), 10).state_dict())
    norm = [f"norm.{k}" for k in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]
    convs = [f"{node}.{k}" for node in ("stem", "res.body.first", "res.body.second") for k in ("conv.weight", *norm)]
    assert keys == [*convs, "head.weight", "head.bias"]


def test_canonical_form_survives_json_and_yaml(spec: NetworkSpec) -> None:
    canonical = spec.canonical()
    assert from_canonical(json.loads(json.dumps(canonical))) == spec
    assert from_canonical(yaml.safe_load(yaml.safe_dump(canonical))) == spec
    assert from_canonical(canonical).canonical() == canonical
    assert canonical["nodes"][-2] == {
        "id": "head",
        "op": "linear",
        "from": ["pool"],
        "features": "$classes*2-$classes",
        "bias": True,
        "activation": "none",
        "norm": "none",
        "dropout": 0.0,
        "init": "torch",
        "init_value": 0.0,
        "spectral_norm": False,
    }


@pytest.mark.parametrize(("later", "is_old"), [({}, True), ({"scale": 1}, True), ({"scale": 0.5}, False)])
def test_a_key_that_an_op_got_later_changes_no_digest_from_before(later: dict[str, float], is_old: bool) -> None:
    nodes = [{"id": "x", "op": "mean", "from": ["input", "input"], **later}]
    spec = from_canonical({"format": 1, "nodes": nodes, "outputs": [["y", "x"]]})
    before = "72abb976c78c6893aed452e1a51ab9351dac22599e2df444aeea275110c52f30"  # when mean had no key `scale`
    assert (spec.sha256() == before) == is_old
    assert from_canonical(spec.canonical()) == spec


def test_canonical_form_knows_no_folder_line_or_comment(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "other.yaml").write_text("# a comment\n\n" + path.read_text())
    assert json.dumps(load(other / "other.yaml").canonical()) == json.dumps(load(path).canonical())
    assert str(tmp_path) not in json.dumps(load(path).canonical())


def test_the_seed_decides_the_weights(spec: NetworkSpec) -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(build(spec, (1, 8, 8), 10).state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not torch.equal(states[0]["stem.conv.weight"], states[2]["stem.conv.weight"])
    assert {v.device.type for v in states[0].values()} == {"cpu"}
    assert {v.dtype for v in states[0].values()} == {torch.float32, torch.int64}


def test_deepcopy_and_pickle(spec: NetworkSpec) -> None:
    net = build(spec, (1, 8, 8), 10).eval()
    x = torch.randn(2, 1, 8, 8)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):  # noqa: S301  our own bytes
        assert isinstance(twin, fx.GraphModule)
        assert list(twin.state_dict()) == list(net.state_dict())
        assert not twin.training
        for name, y in net(x).items():
            assert torch.equal(twin(x)[name], y)
    assert copy.deepcopy(net).stem.conv.weight is not net.stem.conv.weight  # type: ignore[union-attr]


def test_torch_export_with_a_dynamic_batch(spec: NetworkSpec) -> None:
    net = build(spec, (1, 8, 8), 10).eval()
    batch = torch.export.Dim("batch", min=1, max=1024)
    exported = torch.export.export(net, (torch.randn(4, 1, 8, 8),), dynamic_shapes=({0: batch},))
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for n in (1, 7):
        x = torch.randn(n, 1, 8, 8)
        torch.testing.assert_close(loaded(x), net(x))


def test_the_graph_calls_layers_only(spec: NetworkSpec) -> None:
    """No wrapper per node: what runs is what one would write by hand."""
    net = build(spec, (1, 8, 8), 10)
    called = [type(net.get_submodule(str(n.target))).__name__ for n in net.graph.nodes if n.op == "call_module"]
    assert called == ["Conv2d", "BatchNorm2d"] * 3 + ["Dropout", "Linear"]
    functions = [n.target.__name__ for n in net.graph.nodes if n.op == "call_function"]
    assert functions == ["relu", "relu", "silu", "add", "mean", "largest"]


def test_identity_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "net.yaml"
    path.write_text("nodes:\n  - {id: a, op: identity}\n  - {id: b, op: flatten}\noutputs: {y: b}\n")
    assert [n.op for n in build(load(path), (1, 2, 2), 2).graph.nodes] == ["placeholder", "call_function", "output"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$a", 7),
        ("$t", "relu"),
        ("$a*2+1", 15),
        ("1+$a*2", 15),
        ("(1+$a)*2", 16),
        ("$a//2*2", 6),
        ("$a-2-1", 4),
        ("-$a + 10", 3),
        ("--$a", 7),
        ("-$a//2", -4),
        ("$x*4", 1.0),
        ("$x*1e-1", 0.025),
        ("$classes", Formula("$classes")),
        ("$classes * $a", Formula("$classes*7")),
        ("$classes - $m", Formula("$classes-(-3)")),
        ("$f*2", Formula("($classes+1)*2")),
        ("8//($classes-1)", Formula("8//($classes-1)")),
    ],
)
def test_formulas(text: str, value: object) -> None:
    names: dict[str, Value] = {
        "a": 7,
        "x": 0.25,
        "m": -3,
        "t": "relu",
        "f": Formula("$classes+1"),
        "classes": Formula("$classes"),
    }
    result = evaluate(text, names)
    assert result == value
    assert type(result) is type(value)


def test_formulas_compute_what_python_computes() -> None:
    """`-$a//2` is (-a)//2 in Python too, and products bind before sums."""
    for text in ("-7//2", "-(7//2)", "2*-3", "1-2*3//4", "(1-2)*3-4"):
        assert evaluate("$o*(" + text + ")", {"o": 1}) == eval(text)  # noqa: S307  constants of this test
    with pytest.raises(FormulaError, match="division by zero"):
        evaluate("$o//0", {"o": 1})


BARE = """\
import sys

class OnlyTorchNumpyYaml:
    tops = {"torch", "numpy", "yaml", "deepcv"} | set(sys.stdlib_module_names)
    # what torch itself requires
    tops |= {"typing_extensions", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "filelock", "fsspec"}

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in self.tops and not top.startswith(("_", "torch", "nvidia", "cuda", "triton")):
            raise ModuleNotFoundError(f"blocked: {name}", name=name)

sys.meta_path.insert(0, OnlyTorchNumpyYaml())
from deepcv.nn.spec import build, load
print(sum(p.numel() for p in build(load(sys.argv[1]), (1, 8, 8), 10).parameters()))
assert "torch._dynamo" not in sys.modules  # 1 to 4 s for each process that only predicts
assert "sympy" not in sys.modules
for name in ("pydantic", "ignite", "mlflow"):
    try:
        __import__(name)
    except ModuleNotFoundError as error:
        assert "blocked" in str(error), error
    else:
        raise SystemExit(f"{name} was not blocked")
"""


def test_a_bare_machine_suffices(path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", BARE, str(path)], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == sum(p.numel() for p in build(load(path), (1, 8, 8), 10).parameters())
