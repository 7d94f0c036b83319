"""`deepcv ops`: every op is there, with all its keys, and each example builds."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_op_laws import FIRST, NO_FORMULA, SAMPLES, network

from deepcv.cli import main
from deepcv.nn.op_reference import page, table
from deepcv.nn.op_words import EXAMPLES, MEANINGS, meaning
from deepcv.nn.ops import FAMILIES, OPS
from deepcv.nn.spec import build, load
from deepcv.nn.spec.options import fields

DOCS = (Path(__file__).parents[2] / "docs/networks.md").read_text(encoding="utf-8")


def test_the_table_has_each_op_in_its_family_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    main(["ops"])
    assert capsys.readouterr().out.endswith(f"\n\n{len(OPS)} ops; deepcv ops NAME shows the keys of one.\n")
    *blocks, _ = table(80).split("\n\n")
    found = {
        family: re.findall(r"^  (\w+) +\S", ops, re.MULTILINE) for family, _, ops in (b.partition("\n") for b in blocks)
    }
    assert found == {family: list(ops) for family, ops in FAMILIES.items()}
    assert max(map(len, table(80).splitlines())) <= 80


@pytest.mark.parametrize("name", OPS)
def test_a_page_has_every_key_and_an_example(name: str) -> None:
    text = page(name, 120)
    keys = fields(OPS[name])
    rows = text.partition("meaning [values]\n")[2].partition("\n\n")[0]
    assert re.findall(r"^  (\w+) +\S+ +\S", rows, re.MULTILINE) == list(keys)
    assert rows.count("[") == rows.count("]") == len(keys)
    assert f"- {EXAMPLES[name]}\n" in text
    assert all(" null " not in meaning(name, key) or default is None for key, (_, default) in keys.items())


def test_a_page_tells_type_default_unit_shapes_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    main(["ops", "squeeze_excite"])
    text = " ".join(capsys.readouterr().out.split())  # however wide the terminal is
    assert "squeeze_excite (gates)" in text
    assert "Hu 2018, arXiv 1709.01507" in text
    assert re.search(r"shapes +\(C, H, W\), kept\.", text)
    assert re.search(r"reduction +16 +channels divided by it .*\[a whole number from 1 to 65536\]", text)
    assert re.search(r"padding +null +pixels of border.*null: half the kernel", page("conv", 200))
    assert "null" not in page("transposed_conv", 120).partition("  padding ")[2].partition("\n")[0]
    assert "one or two" in page("attention", 200)


def test_every_meaning_is_of_a_key() -> None:
    taken = {f"{op}.{key}" for op, kind in OPS.items() for key in fields(kind)}
    assert {name for name in MEANINGS if "." in name} <= taken
    plain = {one.partition(".")[2] for one in taken - MEANINGS.keys()}
    assert {name for name in MEANINGS if "." not in name} == plain


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name not in NO_FORMULA])
def test_an_example_builds(name: str) -> None:
    node: dict[str, Any] = yaml.safe_load(EXAMPLES[name])
    assert node.pop("op") == name
    assert (len(node.pop("from", [])) > 1) == OPS[name].many
    del node["id"]
    sources, _, _ = SAMPLES[name][0]
    network(name, sources, node, FIRST)


@pytest.mark.parametrize("name", sorted(NO_FORMULA))
def test_an_example_of_networks_builds(name: str, tmp_path: Path) -> None:
    lines = [EXAMPLES["timm"]] if name == "feature" else []
    nodes = "".join(f"  - {line}\n" for line in [*lines, EXAMPLES[name]])
    end = "{id: last, op: feature}" if name == "timm" else "{id: last, op: identity}"
    (tmp_path / "net.yaml").write_text(f"nodes:\n{nodes}  - {end}\noutputs: {{out: last}}\n")
    build(load(tmp_path / "net.yaml"), (3, 64, 64), 10)


def test_an_unknown_op_names_the_closest() -> None:
    with pytest.raises(SystemExit, match="no op 'batchnorm'; the closest is 'batch_norm'"):
        main(["ops", "batchnorm"])


def test_the_docs_name_every_op_in_its_family() -> None:
    rows = dict(re.findall(r"^\| ([a-z ]+) \| (`.*`) \|$", DOCS, re.MULTILINE))
    assert {family: re.findall(r"`(\w+)`", ops) for family, ops in rows.items()} == {
        family: list(ops) for family, ops in FAMILIES.items()
    }
