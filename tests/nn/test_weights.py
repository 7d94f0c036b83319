"""Weights from files, libraries and addresses, and how they fit a network."""

import hashlib
import re
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor

from deepcv.nn import DeepcvModule, network_file, pretrained
from deepcv.nn.network_file import NetworkFileError
from deepcv.nn.spec import load
from deepcv.nn.weights import (
    LoadReport,
    Preprocessing,
    Rule,
    Weights,
    WeightsError,
    check_preprocessing,
    load_into,
    of_recipe,
    rename,
    steps_of,
)

SHAPE = (1, 8, 8)
NETWORKS = Path(__file__).parents[2] / "networks"
IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (224, 224), "bilinear", 0.875)


def digits(classes: int = 10, seed: int = 0) -> DeepcvModule:
    torch.manual_seed(seed)
    return DeepcvModule.from_file(NETWORKS / "digits.yaml", SHAPE, classes, width=4)


def state(*names: str) -> dict[str, Tensor]:
    return {name: torch.full((1,), float(place)) for place, name in enumerate(names)}


RULES: list[tuple[list[Rule], list[str], list[str]]] = [
    ([], ["a.w", "b.w"], ["a.w", "b.w"]),
    ([("module.", "")], ["module.a.w", "b.module.w"], ["a.w", "b.module.w"]),  # the beginning alone
    ([("", "net.")], ["a.w"], ["net.a.w"]),
    ([("a.b", "c")], ["a.b.w", "axb.w"], ["c.w", "axb.w"]),  # a dot is a dot
    ([(r"layer(\d+)\.(\d+)\.", r"stage\1.block\2.")], ["layer3.0.w", "fc.w"], ["stage3.block0.w", "fc.w"]),
    ([("module.", ""), ("fc.", "head.")], ["module.fc.w", "fc.b"], ["head.w", "head.b"]),  # one after the other
    ([("fc.", None)], ["fc.w", "a.w"], ["a.w"]),
    ([("a", r"\1")], ["a.w"], [r"\1.w"]),  # letter by letter
]


@pytest.mark.parametrize(("rules", "before", "after"), RULES)
def test_keys_are_renamed_in_order(rules: list[Rule], before: list[str], after: list[str]) -> None:
    tensors = state(*before)
    renamed = rename(tensors, rules)
    assert list(renamed) == after
    kept = [tensor for name, tensor in tensors.items() if len(before) == len(after) or not name.startswith("fc.")]
    assert all(one is other for one, other in zip(renamed.values(), kept, strict=True))


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("a.", "b.")], "two tensors are called 'b.w'; one of them was"),
        ([("(", "")], r"pattern '\(' is no regular expression"),
        ([(r"a(.)", r"\7")], r"replacement '\\\\7' of 'a\(.\)'"),
    ],
)
def test_a_wrong_rule_is_told(rules: list[Rule], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        rename(state("a.w", "b.w"), rules)


def test_weights_that_fit_are_copied_in_the_networks_dtype() -> None:
    other = digits(seed=1)
    network = digits().to(torch.bfloat16)
    report = load_into(
        network, Weights({f"module.{k}": v for k, v in other.state_dict().items()}, "x"), rules=[("module.", "")]
    )
    assert report == LoadReport("x", loaded=tuple(network.state_dict()))
    assert str(report) == f"x: {len(other.state_dict())} of the network's {len(other.state_dict())} tensors loaded"
    for key, value in network.state_dict().items():
        assert torch.equal(value, other.state_dict()[key].to(value.dtype))


def wrong() -> dict[str, Tensor]:
    """Everything that can be wrong at once, but for the counters of batch norms, which old files lack."""
    given = {key: value for key, value in digits(seed=1).state_dict().items() if "num_batches" not in key}
    del given["stem.norm.bias"]
    given["stem.conv.weight"] = torch.zeros(9, 1, 3, 3)
    given["fc.weight"] = torch.zeros(1)
    return given


def test_strict_changes_nothing_and_lists_every_kind() -> None:
    network = digits()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_into(network, Weights(wrong(), "old.pt"))
    message = str(caught.value)
    assert "the weights do not fit, nothing is loaded" in message
    assert "missing in the weights (1): stem.norm.bias" in message
    assert "unexpected, not in the network (1): fc.weight" in message
    assert "stem.conv.weight: the network has (8, 1, 3, 3), the weights (9, 1, 3, 3)" in message
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_without_strict_what_fits_is_loaded() -> None:
    network, given = digits(), wrong()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    report = load_into(network, Weights(given, "old.pt"), strict=False)
    assert report.missing == ("stem.norm.bias",)
    assert report.unexpected == ("fc.weight",)
    assert report.misshaped == (("stem.conv.weight", (8, 1, 3, 3), (9, 1, 3, 3)),)
    assert not report.fits
    for key, value in network.state_dict().items():
        assert torch.equal(value, given[key] if key in report.loaded else before[key]), key
    assert set(report.loaded) == set(given) - {"fc.weight", "stem.conv.weight"}


def test_a_head_of_other_classes_is_left_out_whole() -> None:
    network, other = digits(classes=3), digits(classes=10, seed=1)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    report = load_into(network, Weights(other.state_dict(), "ten"), head=["head"])
    assert report.fits
    assert report.head == ("head.weight", "head.bias")
    assert "new head, not loaded (2): head.weight, head.bias" in str(report)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key] if key in report.head else other.state_dict()[key])


def test_a_head_that_fits_is_loaded_and_an_absent_one_is_new() -> None:
    network, other = digits(), digits(seed=1)
    assert load_into(network, Weights(other.state_dict(), "x"), head=["head"]).head == ()
    assert torch.equal(network.get_parameter("head.weight"), other.get_parameter("head.weight"))
    bodies = {key: value for key, value in other.state_dict().items() if not key.startswith("head.")}
    assert load_into(network, Weights(bodies, "x"), head=["head"]).head == ("head.weight", "head.bias")
    with pytest.raises(WeightsError, match=r"head 'hed': the network has no such part; it has stem, .*head"):
        load_into(network, Weights(bodies, "x"), head=["hed"])


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
def test_weights_of_our_files_and_of_others(name: str, tmp_path: Path) -> None:
    other = digits(seed=1)
    network_file.save(tmp_path / name, other)
    bare = tmp_path / f"bare{Path(name).suffix}"
    if bare.suffix == ".pt":
        torch.save({"epoch": 3, "model": other.state_dict()}, bare)
    else:
        safetensors.torch.save_file(other.state_dict(), bare)
    for path in (tmp_path / name, bare):
        network = digits()
        assert load_into(network, pretrained.from_file(path)).fits
        assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))


PREPROCESSING: list[tuple[dict[str, object], list[str]]] = [
    ({"resize": "crop", "keep": 0.875}, []),
    ({}, ["centre of the image", "central 0.875 of each side .* keeps 1.000"]),
    ({"resize": "crop", "keep": 0.875, "mean": (0.5, 0.5, 0.5)}, [r"mean \(0.485, 0.456, 0.406\), preprocessing has \(0.5,"]),
    ({"resize": "crop", "keep": 0.875, "std": (0.229, 0.224, 0.3)}, [r"std \(0.229, .* has \(0.229, 0.224, 0.3\)"]),
    ({"resize": "crop", "keep": 0.875, "mean": (0.5,), "std": (0.2,)}, ["expect 3 channels, the images have 1"]),
    ({"resize": "crop", "keep": 0.875, "size": (32, 48)}, ["images of 224×224 pixels, preprocess makes 32×48"]),
    ({"resize": "crop", "keep": 0.875, "steps": (("colour", "hsv"),)}, ["preprocess.colour: rgb, preprocess has hsv"]),
]  # fmt: skip


@pytest.mark.parametrize(("given", "sentences"), PREPROCESSING)
def test_each_difference_in_preprocessing_has_its_sentence(given: dict[str, object], sentences: list[str]) -> None:
    same = {"mean": IMAGENET.mean, "std": IMAGENET.std, "size": IMAGENET.size}
    found = check_preprocessing(IMAGENET, **{**same, **given})  # type: ignore[arg-type]
    assert len(found) == len(sentences)
    for sentence, pattern in zip(found, sentences, strict=True):
        assert re.search(pattern, sentence), sentence


OWN: list[tuple[dict[str, object], list[str]]] = [
    ({}, []),
    ({"resize": "pad"}, [r"another way \(preprocess.resize: stretch\), not 'pad'"]),
    ({"keep": 0.5}, ["central 0.800 of each side .* keeps 0.500"]),
    ({"colour": "rgb", "clahe": 2.0}, ["preprocess.clahe: 0.0, preprocess has 2.0", "preprocess.colour: lab, preprocess has rgb"]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "sentences"), OWN)
def test_a_recipe_of_our_own_is_held_to_itself(changes: dict[str, object], sentences: list[str]) -> None:
    recipe = {
        "height": 6,
        "width": 8,
        "channels": 3,
        "resize": "stretch",
        "keep": 0.8,
        "colour": "lab",
        "denoise": "none",
    }
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    new = recipe | changes
    found = check_preprocessing(
        of_recipe(mean, std, recipe), mean, std, (6, 8), str(new["resize"]), float(str(new["keep"])), steps_of(new)
    )
    assert len(found) == len(sentences)
    for sentence, pattern in zip(found, sentences, strict=True):
        assert re.search(pattern, sentence), sentence


def test_bicubic_is_not_ours() -> None:
    bicubic = Preprocessing(IMAGENET.mean, IMAGENET.std, IMAGENET.size, "bicubic")
    assert check_preprocessing(bicubic, IMAGENET.mean, IMAGENET.std, (224, 224), "crop") == [
        "the weights expect bicubic interpolation; preprocess averages areas or interpolates linearly"
    ]


def test_what_libraries_say_of_their_images_is_read() -> None:
    assert pretrained.torchvision_preprocessing("resnet18", "IMAGENET1K_V1") == IMAGENET
    assert pretrained.timm_preprocessing("resnet18.a1_in1k") == Preprocessing(
        IMAGENET.mean, IMAGENET.std, (224, 224), "bicubic", 0.95
    )


def nodes(folder: Path, node: str) -> DeepcvModule:
    (folder / "net.yaml").write_text(f"nodes:\n  - {{{node}}}\noutputs: {{logits: net}}\n")
    torch.manual_seed(1)
    return DeepcvModule.from_spec(load(folder / "net.yaml"), (3, 64, 64), 1000)


def test_torchvisions_weights_come_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name = "mobilenet_v3_small"
    torch.manual_seed(0)
    peer = torchvision.models.mobilenet_v3_small()  # of torchvision's shape; its published values cannot be had offline
    file = tmp_path / "hub/checkpoints/mobilenet_v3_small-047dcff4.pth"
    file.parent.mkdir(parents=True)
    torch.save(peer.state_dict(), file)
    weights = pretrained.from_torchvision(name)
    assert weights.origin == "torchvision mobilenet_v3_small IMAGENET1K_V1"
    assert weights.preprocessing == IMAGENET
    network = nodes(tmp_path, f"id: net, torchvision: {name}")
    assert load_into(network, weights, rules=[("", "net.")]).fits
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(network.eval()(x)["logits"], peer.eval()(x))


def test_timms_weights_come_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # else it asks for 47 s
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    name = "mobilenetv3_small_050.lamb_in1k"
    torch.manual_seed(0)
    peer = timm.create_model(name)
    folder = tmp_path / f"models--timm--{name}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    safetensors.torch.save_file(peer.state_dict(), folder / "snapshots" / ("0" * 40) / "model.safetensors")
    weights = pretrained.from_timm(name)
    network = nodes(tmp_path, "id: net, timm: mobilenetv3_small_050, classes: $classes")
    assert load_into(network, weights, rules=[("", "net.")]).fits
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(network.eval()(x)["logits"], peer.eval()(x))
    with pytest.raises(
        WeightsError, match=r"timm resnet18.a1_in1k: the weights are not on this machine and cannot be"
    ) as caught:
        pretrained.from_timm("resnet18.a1_in1k")
    assert "name the file instead" in str(caught.value)


@pytest.mark.parametrize(
    ("get", "message"),
    [
        (lambda: pretrained.from_timm("resnet81"), "timm has no weights 'resnet81'; timm.list_pretrained"),
        (lambda: pretrained.from_timm("resnet18.none"), "timm has no weights 'resnet18.none'; it has resnet18.a1_in1k, "),
        (lambda: pretrained.from_torchvision("resnet18", "V9"), "no weights 'V9' of 'resnet18'; it has IMAGENET1K_V1"),
        (lambda: pretrained.from_torchvision("resnet81"), "no weights 'DEFAULT' of 'resnet81'; torchvision.models.list"),
        (lambda: pretrained.from_url("https://x.org/a.pt", ""), "needs the file's SHA-256, 64 digits .*, got ''"),
        (lambda: pretrained.from_url("file:///etc/a.pt", "0" * 64), "expected an address that begins with https://"),
        (lambda: pretrained.from_url("https://x.org/a.zip", "0" * 64), "expected a file that ends in .pt or"),
    ],
)  # fmt: skip
def test_weights_that_are_not_there_are_told(get: partial[Weights], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        get()


def test_an_address_is_held_to_its_digest(served: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = served
    other = digits(seed=1)
    network_file.save(folder / "net.safetensors", other)
    digest = hashlib.sha256((folder / "net.safetensors").read_bytes()).hexdigest()
    kept = tmp_path / "weights"
    with pytest.raises(WeightsError, match=f"expected the SHA-256 {'0' * 64}, got {digest}: the file has changed"):
        pretrained.from_url(f"{url}/net.safetensors", "0" * 64, kept)
    assert not list(kept.iterdir())
    weights = pretrained.from_url(f"{url}/net.safetensors", digest, kept)
    network = digits()
    assert load_into(network, weights).fits
    (folder / "net.safetensors").unlink()  # a second time nothing is asked
    again = pretrained.from_url(f"{url}/net.safetensors", digest, kept).state
    assert all(torch.equal(again[key], value) for key, value in other.state_dict().items())
    (file,) = kept.iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"x")  # a damaged copy is not believed
    with pytest.raises(WeightsError, match=r"cannot be downloaded .*404"):
        pretrained.from_url(f"{url}/net.safetensors", digest, kept)


def test_weights_run_no_code(tmp_path: Path) -> None:
    torch.save({"state_dict": {"x": test_weights_run_no_code}}, tmp_path / "code.pt")
    with pytest.raises(NetworkFileError, match="not a file of tensors alone"):
        pretrained.from_file(tmp_path / "code.pt")
