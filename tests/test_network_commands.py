"""`deepcv profile`."""

import json
from pathlib import Path

import pytest
import toys
from test_cli import message

from deepcv import network_registry, tracking
from deepcv.cli import main
from deepcv.nn import DeepcvModule, classifier, network_file, spec
from deepcv.nn.spec.expand import ZOO

DIGITS = str(toys.REPOSITORY / "networks" / "digits.yaml")


def test_json_of_a_network_file(capsys: pytest.CaptureFixture[str]) -> None:
    main(["profile", DIGITS, "--input", "1x8x8", "--classes", "10", "--json", "-", "--repeat", "2", "--batch", "3"])
    found = json.loads(capsys.readouterr().out)
    assert (found["name"], found["shapes"], found["parameters"]) == ("digits.yaml", [[1, 8, 8]], 38_122)
    assert found["macs"] == sum(node["macs"] for node in found["nodes"]) == 1_493_632
    assert [node["field"] for node in found["nodes"]][-2:] == ["whole", "whole"]
    (timing,) = [one for one in found["timings"] if one["device"] == "cpu"]
    assert (timing["batch"], timing["threads"], timing["repeats"]) == (3, 1, 2)
    assert timing["images_per_s"] == 3 / timing["latency_s"]
    assert set(timing["node_s"]) == {node["name"] for node in found["nodes"]} - {"input_1"}
    assert {one["counter"]: one["disagrees"] for one in found["opinions"]} == {
        "torch.utils.flop_counter": [], "torchinfo": [], "fvcore": [],
    }  # fmt: skip
    assert found["disagreements"] == []


def test_a_table_a_page_and_other_parameters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, figures = tmp_path / "a" / "page.html", tmp_path / "figures.json"
    main([
        "profile", DIGITS, "--input", "1x8x8", "--classes", "10", "--set", "width=4", "--device", "none",
        "--html", str(page), "--json", str(figures),
    ])  # fmt: skip
    told = capsys.readouterr()
    found = json.loads(figures.read_text())
    assert found["timings"] == []
    assert found["parameters"] < 38_122 / 10
    assert f"{found['parameters']:,}" in told.out
    assert f"{found['parameters']:,}" in page.read_text()
    assert told.err == f"wrote {page}\nwrote {figures}\n"


SIAMESE = str(ZOO / "siamese.yaml")
CHOICES = """\
nodes:
  - {id: stem, op: conv, channels: 16}
  - id: mix
    choice:
      small: {op: conv, channels: 16, kernel: 1}
      wide: {op: conv, channels: 16, kernel: 5}
      skip: {op: identity}
  - {id: link, pick_from: [stem, mix]}
  - {id: pool, op: global_avg_pool}
  - {id: head, op: linear, features: $classes}
outputs: {logits: head}
"""
LATE_JOIN = """\
inputs: [near, far]
nodes:
  - {id: a, op: conv, channels: 4, from: near}
  - {id: b, op: conv, channels: 4, stride: 2, from: far}
  - {id: both, op: sum, from: [a, b]}
outputs: {both: both}
"""


def test_several_inputs_of_one_shape(capsys: pytest.CaptureFixture[str]) -> None:
    main(["profile", SIAMESE, "--input", "3x32x32", "--json", "-", "--repeat", "1"])
    found = json.loads(capsys.readouterr().out)
    assert (found["shapes"], found["parameters"]) == ([[3, 32, 32]] * 2, 101_728)
    assert [node["shape"] for node in found["nodes"] if node["kind"] == "input"] == [[3, 32, 32]] * 2
    assert found["timings"][0]["latency_s"] > 0
    assert all(one["macs"] is not None for one in found["opinions"])
    main(["profile", SIAMESE, "--input", "3x32x32", "--mermaid"])
    assert "left<br/>input" in capsys.readouterr().out


def test_several_inputs_each_of_its_own_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.yaml").write_text(LATE_JOIN)
    arguments = ["profile", str(tmp_path / "net.yaml"), "--device", "none", "--input"]
    for given in (["near=3x8x8", "--input", "far=1x16x16"], ["1x16x16", "--input", "near=3x8x8"]):
        main([*arguments, *given])
        assert "net.yaml, one image of 3×8×8, 1×16×16" in capsys.readouterr().out


def test_an_input_of_a_size_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.yaml").write_text(LATE_JOIN.replace("[near, far]", "{near: null, far: [16, 16]}"))
    main(["profile", str(tmp_path / "net.yaml"), "--device", "none", "--input", "3x8x8"])
    assert "net.yaml, one image of 3×8×8, 3×16×16" in capsys.readouterr().out
    text = message(capsys, "profile", str(tmp_path / "net.yaml"), "--input", "far=3x8x8")
    assert "the network file says that the input 'far' is (16, 16), got input_shape (3, 8, 8)" in text


@pytest.fixture
def choices(tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "choices.yaml").write_text(CHOICES)
    return ("profile", str(tmp_path / "choices.yaml"), "--input", "3x8x8", "--classes", "10", "--device", "none")


def test_an_open_choice_is_named_with_what_decides_it(
    choices: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    text = message(capsys, *choices)
    assert "mix has small, wide, skip; link has stem, mix; decide each, e.g. --choice mix=small" in text
    assert "--search sampled runs one of them, --search mixed all" in text
    text = message(capsys, *choices, "--choice", "mix=wide")
    assert "open: link has stem, mix; decide each, e.g. --choice link=stem" in text
    for given, expected in {
        "mx=wide": "--choice mx=…: the network has no such choice; the closest is 'mix'",
        "mix=wid": "--choice mix=wid: no candidate 'wid'; the closest is 'wide'",
        "mix": "expected NODE=CANDIDATE such as mix=wide, got 'mix'",
        "mix=small,wide": "picks 1 of its candidates",
    }.items():
        assert expected in message(capsys, *choices, "--choice", given)
    assert "the network has no such choice; there are none" in message(
        capsys, "profile", DIGITS, "--input", "1x8x8", "--choice", "mix=wide"
    )


def test_choices_are_decided(choices: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    main([*choices, "--choice", "mix=wide", "--choice", "link=mix", "--json", "-"])
    found = json.loads(capsys.readouterr().out)
    assert found["macs"] == 64 * 16 * (3 * 9 + 16 * 25) + 160
    assert "mix.wide" in {node["id"] for node in found["nodes"]}


@pytest.mark.parametrize(("search", "candidates_run"), [("sampled", 16 * 16), ("mixed", 16 * 16 * (1 + 25))])
def test_open_choices_show_every_candidate(
    search: str, candidates_run: int, choices: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    main([*choices, "--search", search, "--json", "-"])
    found = json.loads(capsys.readouterr().out)
    nodes = {node["id"]: node for node in found["nodes"]}
    assert found["macs"] == 64 * (3 * 16 * 9 + candidates_run) + 160
    assert found["parameters"] == sum(node["parameters"] for node in found["nodes"])
    is_sampled = search == "sampled"
    assert {name for name, node in nodes.items() if node["is_idle"]} == (
        {"mix.wide", "mix.skip", "link.mix"} if is_sampled else set()
    )
    main([*choices, "--search", search, "--mermaid"])
    text = capsys.readouterr().out
    assert f'["mix<br/>{"one" if is_sampled else "mix"} of small, wide, skip<br/>16×8×8"]' in text
    assert text.count('["mix.') == 3
    assert ("class n3,n4,n7 idle" in text) == is_sampled
    for line in ("n2 --> n5", "n3 --> n5", "n4 --> n5", "n6 --> n8", "n7 --> n8"):
        assert line in text


def test_mermaid_alone(capsys: pytest.CaptureFixture[str]) -> None:
    main(["profile", DIGITS, "--input", "1x8x8", "--classes", "10", "--mermaid"])
    assert capsys.readouterr().out.startswith("flowchart TD\n  n0[")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    canonical = spec.load(Path(DIGITS), {}).canonical()
    recipe = {"height": 8, "width": 8, "channels": 1, "resize": "stretch"}
    info = classifier.ModelInfo("toy", ("a", "b", "c"), recipe, (0.5,), (0.2,))
    path = tmp_path / "model.pt"
    classifier.save(path, classifier.create(canonical, info), canonical, info)
    return path


def test_a_model_file_knows_its_input(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["profile", str(model), "--device", "none"])
    assert "model.pt, one image of 1×8×8" in capsys.readouterr().out
    text = message(capsys, "profile", str(model), "--input", "1x8x8")
    assert text == f"deepcv: {model}: a model knows its own input, classes, parameters and choices"


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
def test_a_file_of_a_network_knows_its_inputs(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = DeepcvModule.from_file(ZOO / "siamese.yaml", {"left": (3, 8, 8), "right": (3, 16, 16)}, 1)
    network_file.save(tmp_path / name, network)
    main(["profile", str(tmp_path / name), "--device", "none"])
    assert f"{name}, one image of 3×8×8, 3×16×16" in capsys.readouterr().out


def test_a_network_of_the_zoo_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    main(["profile", "resnet-9", "--input", "3x32x32", "--classes", "10", "--mermaid"])
    by_name = capsys.readouterr().out
    main(["profile", str(ZOO / "resnet-9.yaml"), "--input", "3x32x32", "--classes", "10", "--mermaid"])
    assert by_name == capsys.readouterr().out


@pytest.mark.usefixtures("store")
def test_a_network_of_the_registry(capsys: pytest.CaptureFixture[str]) -> None:
    network = DeepcvModule.from_file(Path(DIGITS), (1, 8, 8), 10)
    version = network_registry.register_network("deepcv-toy-network", network)
    run_id = tracking.connect().get_model_version("deepcv-toy-network", version).run_id
    for model in (f"models:/deepcv-toy-network/{version}", f"runs:/{run_id}"):
        main(["profile", model, "--json", "-", "--device", "none"])
        found = json.loads(capsys.readouterr().out)
        assert (found["name"], found["shapes"], found["parameters"]) == (model, [[1, 8, 8]], 38_122)
    assert "models:/deepcv-toy-network/7 cannot be loaded" in message(
        capsys, "profile", "models:/deepcv-toy-network/7", "--device", "none"
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "required: MODEL"),
        ((DIGITS, "--input", "8x8"), "expected channels, height and width such as 3x224x224, got '8x8'"),
        ((DIGITS, "--input", "left=3x8"), "such as 3x224x224, got 'left=3x8'"),
        ((SIAMESE, "--input", "lfet=3x8x8"), "--input lfet=…: no such input; the network has left, right"),
        ((SIAMESE, "--input", "3x8x8", "--input", "3x9x9"), "the same input is given twice"),
        ((DIGITS, "--batch", "0"), "expected a whole number of at least 1, got '0'"),
        ((DIGITS, "--set", "width"), "expected NAME=VALUE such as width=32, got 'width'"),
        ((DIGITS, "--set", "widht=4"), "widht"),
        (("no-such.yaml",), "no-such.yaml: cannot read the network file"),
        (("no-such.pt",), "no-such.pt: there is no such file"),
        (("siamse",), "siamse: neither a file nor a network of the zoo; the closest is 'siamese'"),
    ],
)
def test_what_cannot_be_profiled(arguments: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert expected in message(capsys, "profile", *arguments)


@pytest.mark.usefixtures("store")
def test_the_page_is_an_artifact_of_a_run(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tracking.start_run("deepcv-toy", "train", {}, {})
    main(["profile", str(model), "--device", "none", "--mlflow", run])
    listed = tracking.MlflowClient().list_artifacts(run, "profile")
    assert sorted(one.path for one in listed) == ["profile/profile.html", "profile/profile.json"]
    assert f"to MLflow run {run}" in capsys.readouterr().err
    assert "deepcv: MLflow run 'none-such':" in message(
        capsys, "profile", str(model), "--device", "none", "--mlflow", "none-such"
    )
