"""The examples of docs/networks.md run, and the JSON Schema agrees with what the engine takes."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import torch
import yaml

from deepcv.cli import main
from deepcv.nn.network_schema import schema
from deepcv.nn.spec import SpecError, build, load
from deepcv.nn.spec.expand import ZOO
from deepcv.nn.spec.source import read
from deepcv.params.losses import LossParams

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/networks.md").read_text(encoding="utf-8")
EXAMPLES, SNIPPETS, (LOSSES,) = (
    re.findall(rf"```{begin}(.*?)```", PAGE, re.DOTALL) for begin in ("yaml\n", "python\n", "text\n(?=train:)")
)
FILES = [*sorted((ROOT / "networks").glob("*.yaml")), *sorted(ZOO.glob("*.yaml"))]
VALIDATOR = jsonschema.Draft202012Validator(schema())


def test_there_are_six_examples() -> None:
    assert len(EXAMPLES) == 6


@pytest.mark.parametrize("text", EXAMPLES)
def test_an_example_of_the_docs_runs(tmp_path: Path, text: str) -> None:
    path = tmp_path / "net.yaml"
    path.write_text(text, encoding="utf-8")
    spec = load(path)
    shapes = spec.input_shapes((3, 32, 32))
    outputs = build(spec, shapes, 10)(*(torch.randn(2, *shape) for shape in shapes.values()))
    assert outputs["logits"].shape == (2, 10)
    VALIDATOR.validate(yaml.safe_load(text))


def test_there_are_three_snippets() -> None:
    assert len(SNIPPETS) == 3


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet_of_the_docs_runs(snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "networks").symlink_to(ROOT / "networks")
    exec(compile(snippet, "docs/networks.md", "exec"), {"images": torch.randn(4, 1, 8, 8)})  # noqa: S102  our own page


def test_the_losses_of_the_docs_train_the_exits_of_the_example_before_them(tmp_path: Path) -> None:
    losses = [LossParams.model_validate(entry) for entry in yaml.safe_load(LOSSES)["train"]["losses"]]
    (tmp_path / "net.yaml").write_text(EXAMPLES[2], encoding="utf-8")
    assert {loss.output for loss in losses} == {name for name, _ in load(tmp_path / "net.yaml").outputs}


def test_the_schema_on_disk_is_the_one_of_the_code() -> None:
    assert json.loads((ROOT / "docs/network.schema.json").read_text()) == schema(), "run `make schema`"


def test_the_command_prints_the_schema_on_disk(capsys: pytest.CaptureFixture[str]) -> None:
    main(["ops", "--schema"])
    assert capsys.readouterr().out == (ROOT / "docs/network.schema.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted((ROOT / "networks").glob("*.yaml")), ids=lambda path: path.stem)
def test_editors_find_the_schema_of_a_network(path: Path) -> None:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    comment, _, schema_file = first.partition("=")
    assert comment == "# yaml-language-server: $schema"
    assert (path.parent / schema_file).resolve() == ROOT / "docs/network.schema.json"


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_the_schema_takes_the_files_that_the_engine_takes(path: Path) -> None:
    VALIDATOR.validate(read(path))
    VALIDATOR.validate(yaml.safe_load(path.read_text(encoding="utf-8")))  # takes 1e-6 for a text: write 1.0e-6


WRONG = [
    "nodes: [{id: a, op: conf}]\noutputs: {x: a}",
    "nodes: [{id: a, op: conv, chanels: 3}]\noutputs: {x: a}",
    "nodes: [{id: a, op: conv, channels: 0}]\noutputs: {x: a}",
    "nodes: [{id: a, op: conv, channels: 3, norm: bach}]\noutputs: {x: a}",
    "nodes: [{op: conv, channels: 3}]\noutputs: {x: a}",
    "nodes: [{id: a, op: conv, channels: 3}]",
    "nodes: [{id: a, share: b, channels: 3}]\noutputs: {x: a}",
    "nodes: [{id: a, choice: {b: {op: conv, channels: 3, from: c}}}]\noutputs: {x: a}",
    "inputs: {a: 8}\nnodes: [{id: b, op: identity}]\noutputs: {x: b}",
    "inputs: {a: [0, 8]}\nnodes: [{id: b, op: identity}]\noutputs: {x: b}",
    "templates: {t: {inputs: {a: null}, nodes: [{id: b, op: identity}]}}\nnodes: [{id: a, template: t}]\noutputs: {x: a}",
    "defaults: {norm: bach}\nnodes: [{id: a, op: identity}]\noutputs: {x: a}",
    "defaults: {dropout: 7}\nnodes: [{id: a, op: identity}]\noutputs: {x: a}",
    "defaults: {bias: 1}\nnodes: [{id: a, op: identity}]\noutputs: {x: a}",
    "nodes: [{id: a, op: identity}, {id: b, pick_from: [input, a], pick: a, repeat: 2}]\noutputs: {x: b}",
    "nodes: [{id: a, op: identity}, {id: b, pick_from: [input, a], pick: a, checkpoint: true}]\noutputs: {x: b}",
    "nodes: [{id: a, op: identity}, {id: b, share: a, repeat: 2}]\noutputs: {x: b}",
    "nodes: [{id: a, choice: {b: {op: identity}}, pick: 3}]\noutputs: {x: a}",
    "nodes: [{id: forward, op: identity}]\noutputs: {x: forward}",
    "nodez: []\nnodes: [{id: a, op: identity}]\noutputs: {x: a}",
]


@pytest.mark.parametrize("text", WRONG)
def test_the_schema_refuses_what_the_engine_refuses(tmp_path: Path, text: str) -> None:
    assert not VALIDATOR.is_valid(yaml.safe_load(text))
    path = tmp_path / "net.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError):
        load(path)


GOOD = [
    "defaults: {norm: rms, dropout: 0.1, bias: null}\nnodes: [{id: a, op: identity}]\noutputs: {x: a}",
    "parameters: {p: 2}\ndefaults: {dropout: $p/4}\nnodes: [{id: a, op: identity}]\noutputs: {x: a}",
    "nodes: [{id: a, choice: {b: {op: identity}, c: {op: identity}}, n: 2, repeat: 2}]\noutputs: {x: a}",
    "nodes: [{id: forwards, op: identity}, {id: b, share: forwards, checkpoint: true}]\noutputs: {x: b}",
]


@pytest.mark.parametrize("text", GOOD)
def test_the_schema_takes_what_the_engine_takes(tmp_path: Path, text: str) -> None:
    VALIDATOR.validate(yaml.safe_load(text))
    path = tmp_path / "net.yaml"
    path.write_text(text, encoding="utf-8")
    load(path)
