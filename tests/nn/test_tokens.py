"""Layers on tokens against torch's and timm's, and a vision transformer of timm written as a network file."""

import itertools
from functools import partial
from pathlib import Path

import pytest
import torch
from timm.layers import Attention, LayerNorm, PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from deepcv.nn.layers.tokens import CrossAttention, SelfAttention
from deepcv.nn.spec import SpecError, build, from_canonical, load

PATCHES: dict[str, object] = {"id": "tokens", "op": "patch_embed", "from": ["input"], "features": 24, "patch": 4}


def network(*nodes: dict[str, object], shape: tuple[int, int, int] = (3, 8, 12)) -> nn.Module:
    outputs = [[str(node["id"]), str(node["id"])] for node in nodes]
    return build(from_canonical({"format": 1, "nodes": list(nodes), "outputs": outputs}), shape, 10)


@pytest.mark.parametrize("options", [{"qkv_bias": True}, {"qkv_bias": False}, {"proj_bias": False}, {"qk_norm": True}])
def test_attention_is_timms(options: dict[str, bool]) -> None:
    torch.manual_seed(0)
    net = network(PATCHES, {"id": "x", "op": "attention", "from": ["tokens"], "heads": 4, **options})
    reference = Attention(24, 4, **{"qkv_bias": True, **options}, norm_layer=LayerNorm)
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.5)
    net.get_submodule("x").load_state_dict(reference.state_dict())
    outputs = net(torch.randn(3, 3, 8, 12))
    torch.testing.assert_close(outputs["x"], reference(outputs["tokens"]), rtol=0, atol=1e-6)


def test_attention_is_torchs_and_so_are_its_gradients() -> None:
    torch.manual_seed(0)
    ours, theirs = SelfAttention(24, 6, True, 0.0, 0.0), nn.MultiheadAttention(24, 6, batch_first=True)
    nn.init.normal_(theirs.in_proj_bias)
    state = theirs.state_dict()
    ours.load_state_dict(
        {
            "qkv.weight": state["in_proj_weight"],
            "qkv.bias": state["in_proj_bias"],
            "proj.weight": state["out_proj.weight"],
            "proj.bias": state["out_proj.bias"],
        }
    )
    x = torch.randn(3, 7, 24, requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    y, expected = ours(x), theirs(twin, twin, twin, need_weights=False)[0]
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-6)
    (y**2).sum().backward()
    (expected**2).sum().backward()
    torch.testing.assert_close(x.grad, twin.grad, rtol=1e-5, atol=1e-5)


CROSS: tuple[dict[str, object], ...] = (
    PATCHES,
    {"id": "context", "op": "patch_embed", "from": ["input"], "features": 10, "patch": 2},
    {"id": "x", "op": "attention", "from": ["tokens", "context"], "heads": 3},
)


def test_attention_of_two_inputs_is_torchs_and_so_are_its_gradients() -> None:
    torch.manual_seed(0)
    net, theirs = network(*CROSS), nn.MultiheadAttention(24, 3, kdim=10, vdim=10, batch_first=True)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5)
    state = theirs.state_dict()
    net.get_submodule("x").load_state_dict(
        {
            "q.weight": state["q_proj_weight"],
            "q.bias": state["in_proj_bias"][:24],
            "kv.weight": torch.cat([state["k_proj_weight"], state["v_proj_weight"]]),
            "kv.bias": state["in_proj_bias"][24:],
            "proj.weight": state["out_proj.weight"],
            "proj.bias": state["out_proj.bias"],
        }
    )
    outputs = net(torch.randn(3, 3, 8, 12))
    values = [outputs["tokens"], outputs["context"]]
    twins = [value.detach().clone().requires_grad_() for value in values]
    expected = theirs(twins[0], twins[1], twins[1], need_weights=False)[0]
    torch.testing.assert_close(outputs["x"], expected, rtol=0, atol=1e-6)
    gradients = torch.autograd.grad(outputs["x"].square().sum(), values)
    for ours, other in zip(gradients, torch.autograd.grad(expected.square().sum(), twins), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-5)


def test_attention_of_two_inputs_norms_queries_and_keys_as_of_one() -> None:
    torch.manual_seed(0)
    ours, cross = (
        SelfAttention(24, 6, True, 0.0, 0.0, False, True),
        CrossAttention(24, 24, 6, True, 0.0, 0.0, False, True),
    )
    for parameter in ours.parameters():
        nn.init.normal_(parameter)
    state = ours.state_dict()
    for kind in ("weight", "bias"):
        both = state.pop(f"qkv.{kind}")
        state |= {f"q.{kind}": both[:24], f"kv.{kind}": both[24:]}
    cross.load_state_dict(state)
    x = torch.randn(3, 7, 24)
    torch.testing.assert_close(cross(x, x), ours(x), rtol=0, atol=1e-5)


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    kinds = (partial(SelfAttention, 8), (x,)), (partial(CrossAttention, 8, 8), (x, x[:, :3]))
    for (kind, values), rates in itertools.product(kinds, ((0.5, 0.0), (0.0, 0.5))):
        layer, plain = kind(2, True, *rates), kind(2, True, 0.0, 0.0)
        plain.load_state_dict(layer.state_dict())
        assert not torch.equal(layer(*values), layer(*values))
        torch.testing.assert_close(layer.eval()(*values), plain(*values), rtol=0, atol=0)
    assert 0.4 < (SelfAttention(8, 2, True, 0.0, 0.5)(torch.randn(99, 5, 8)) == 0).float().mean() < 0.6


def test_patch_embed_without_bias_is_timms() -> None:
    net, reference = network(PATCHES | {"bias": False}), PatchEmbed((8, 12), 4, 3, 24, bias=False)
    net.get_submodule("tokens").load_state_dict(reference.state_dict())
    x = torch.randn(2, 3, 8, 12)
    torch.testing.assert_close(net(x)["tokens"], reference(x), rtol=0, atol=1e-6)


def test_patch_embed_is_timms_and_tells_tokens_row_by_row() -> None:
    net, reference = network(PATCHES), PatchEmbed((8, 12), 4, 3, 24)
    net.get_submodule("tokens").load_state_dict(reference.state_dict())
    x = torch.randn(2, 3, 8, 12)
    tokens = net(x)["tokens"]
    torch.testing.assert_close(tokens, reference(x), rtol=0, atol=1e-6)
    weight, bias = reference.proj.weight, reference.proj.bias
    second_row = torch.einsum("dchw,nchw->nd", weight, x[:, :, 4:8, 0:4]) + bias
    torch.testing.assert_close(tokens[:, 3], second_row, rtol=0, atol=1e-5)


def test_class_token_and_positions() -> None:
    torch.manual_seed(0)
    net = network(
        PATCHES,
        {"id": "all", "op": "class_token", "from": ["tokens"]},
        {"id": "placed", "op": "positions", "from": ["all"]},
    )
    outputs = net(torch.randn(4, 3, 8, 12))
    first = net.get_parameter("all.token").expand(4, 1, 24)
    assert torch.equal(outputs["all"], torch.cat([first, outputs["tokens"]], 1))
    embedding = net.get_parameter("placed.embedding")
    assert embedding.shape == (1, 7, 24)
    assert 0.01 < embedding.std() < 0.03  # it starts small, and not at zero
    assert torch.equal(outputs["placed"] - outputs["all"], (outputs["all"] + embedding) - outputs["all"])


def test_export_with_any_batch() -> None:
    chain = ("class_token", "positions", "attention")
    sources = ("tokens", *chain)
    nodes = [{"id": op, "op": op, "from": [source]} for op, source in zip(chain, sources, strict=False)]
    cross = {"id": "cross", "op": "attention", "from": ["attention", "tokens"]}
    net = network(PATCHES, *nodes, cross).eval()
    exported = torch.export.export(net, (torch.randn(2, 3, 8, 12),), dynamic_shapes=({0: torch.export.Dim("n")},))
    x = torch.randn(5, 3, 8, 12)
    for name in ("attention", "cross"):
        torch.testing.assert_close(exported.module()(x)[name], net(x)[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"op": "patch_embed", "features": 8, "patch": 5}, "multiples of patch: 5"),
        ({"op": "patch_embed", "features": 8, "patch": 4, "from": ["tokens"]}, "needs feature maps"),
        ({"op": "attention"}, r"needs tokens \(T, D\)"),
        ({"op": "attention", "from": ["tokens", "input"]}, r"needs tokens \(T, D\)"),
        ({"op": "attention", "from": ["tokens"] * 3}, "takes one or two inputs, got 3"),
        ({"op": "class_token"}, r"needs tokens \(T, D\)"),
        ({"op": "positions"}, r"needs tokens \(T, D\)"),
        ({"op": "attention", "heads": 5, "from": ["tokens"]}, "does not divide"),
    ],
)
def test_what_does_not_fit(node: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        network(PATCHES, {"id": "x", "from": ["input"], **node})


# A transformer's block is a template: no op of its own.
VIT = """\
parameters: {width: 48, heads: 3}
templates:
  block:
    nodes:
      - {id: norm1, op: layer_norm, eps: 0.000001}
      - {id: attn, op: attention, heads: $heads}
      - {id: middle, op: sum, from: [input, attn]}
      - {id: norm2, op: layer_norm, eps: 0.000001}
      - {id: fc1, op: linear, features: $width*4, activation: gelu}
      - {id: fc2, op: linear, features: $width}
      - {id: link, op: sum, from: [middle, fc2]}
nodes:
  - {id: patches, op: patch_embed, features: $width, patch: 8}
  - {id: cls, op: class_token}
  - {id: pos, op: positions}
  - {id: blocks, template: block, repeat: 3}
  - {id: norm, op: layer_norm, eps: 0.000001}
  - {id: first, op: select, axis: tokens}
  - {id: head, op: linear, features: $classes}
outputs: {logits: head}
"""


def timms_key(ours: str) -> str:
    renamed = {"cls.token": "cls_token", "pos.embedding": "pos_embed"}
    name = renamed.get(ours, ours).replace("patches.", "patch_embed.")
    return name.replace(".fc1.", ".mlp.fc1.").replace(".fc2.", ".mlp.fc2.")


def test_a_vision_transformer_of_timm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "vit.yaml"
    path.write_text(VIT)
    net = build(load(path), (3, 32, 40), 7)
    reference = VisionTransformer((32, 40), 8, embed_dim=48, depth=3, num_heads=3, num_classes=7)
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.2)
    state = reference.state_dict()
    net.load_state_dict({key: state.pop(timms_key(key)) for key in net.state_dict()})
    assert not state  # every weight of timm's has its place
    x: Tensor = torch.randn(2, 3, 32, 40)
    torch.testing.assert_close(net.eval()(x)["logits"], reference.eval()(x), rtol=1e-5, atol=1e-5)
