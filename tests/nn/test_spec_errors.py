"""Wrong network files: each gives one clear error with its line, and nothing of it is executed."""

import re
from pathlib import Path

import pytest
import torch

from deepcv.nn.spec import ZOO, SpecError, build, from_canonical, load

RESIDUAL = """\
templates:
  residual:
    parameters: [channels]
    nodes:
      - {id: first, op: conv, channels: $channels}
      - {id: link, op: sum, from: [input, first]}
"""
END = "outputs: {logits: head}\n"
HEAD = "  - {id: pool, op: global_avg_pool}\n  - {id: head, op: linear, features: $classes}\n" + END


def nodes(*lines: str) -> str:
    """A file with these nodes; the first stands in line 2."""
    return "nodes:\n" + "".join(f"  - {{{line}}}\n" for line in lines) + HEAD


# (name, file, line, parts of the message). Line 0: an error of the whole file.
WRONG: list[tuple[str, str, int, list[str]]] = [
    ("unknown op", nodes("id: a, op: conf, channels: 8"), 2, ["node 'a'", "unknown op 'conf'", "'conv'"]),
    (
        "misspelt key",
        nodes("id: a, op: conv, chanels: 8"),
        2,
        ["node 'a'", "unknown key 'chanels'", "the closest is 'channels'"],
    ),
    ("misspelt from", nodes("id: a, op: conv, channels: 8, frm: input"), 2, ["unknown key 'frm'", "'from'"]),
    (
        "key of a block form in its own line",
        "nodes:\n  - id: a\n    op: conv\n    channels: 8\n    strid: 2\n" + HEAD,
        5,
        ["node 'a'", "unknown key 'strid'", "'stride'"],
    ),
    ("missing key", nodes("id: a, op: conv"), 2, ["node 'a'", "needs the key 'channels'", "a whole number"]),
    ("wrong type", nodes("id: a, op: conv, channels: many"), 2, ["channels must be a whole number", "'many'"]),
    ("float for int", nodes("id: a, op: conv, channels: 8.5"), 2, ["channels must be a whole number", "8.5"]),
    ("bool for int", nodes("id: a, op: conv, channels: true"), 2, ["channels must be a whole number", "True"]),
    ("text for bool", nodes("id: a, op: conv, channels: 8, bias: yes"), 2, ["bias must be true or false", "'yes'"]),
    ("out of range", nodes("id: a, op: conv, channels: 0"), 2, ["channels", "from 1 to 65536", "got 0"]),
    ("probability out of range", nodes("id: a, op: dropout, p: 1.5"), 2, ["p must be a number from 0 to 1", "1.5"]),
    ("not a choice", nodes("id: a, op: conv, channels: 8, norm: bach"), 2, ["norm must be one of", "'batch'"]),
    ("list for a number", nodes("id: a, op: conv, channels: [8]"), 2, ["channels must be a whole number", "[8]"]),
    (
        "forward reference",
        nodes("id: a, op: identity, from: b", "id: b, op: identity, from: input"),
        2,
        ["'b' comes later, in line 3"],
    ),
    (
        "cycle",
        nodes("id: a, op: identity, from: b", "id: b, op: identity, from: a"),
        2,
        ["node 'a'", "a cycle: a -> b -> a"],
    ),
    ("takes itself", nodes("id: a, op: identity, from: a"), 2, ["node 'a'", "takes itself"]),
    ("unknown source", nodes("id: a, op: identity, from: inptu"), 2, ["no node 'inptu'", "the closest is 'input'"]),
    ("duplicate id", nodes("id: a, op: identity", "id: a, op: identity"), 3, ["'a'", "stands twice", "line 2"]),
    ("dunder id", nodes("id: __class__, op: identity"), 2, ["must be a name", "__class__"]),
    ("dunder inside", nodes("id: a__b, op: identity"), 2, ["must be a name", "a__b"]),
    ("dotted id", nodes("id: a.b, op: identity"), 2, ["must be a name", "a.b"]),
    ("dotted source", nodes("id: a, op: identity, from: torch.nn"), 2, ["no node 'torch.nn'"]),
    ("keyword id", nodes("id: import, op: identity"), 2, ["must be a name", "import"]),
    ("id of torch's own", nodes("id: forward, op: identity"), 2, ["'forward'", "taken"]),
    ("no id", nodes("op: identity"), 2, ["needs an id"]),
    ("op and template", nodes("id: a, op: identity, template: b"), 2, ["needs one of op, template, share"]),
    ("op is a list", nodes("id: a, op: [conv]"), 2, ["op must be a text"]),
    ("node is a text", "nodes:\n  - conv\n" + HEAD, 2, ["a node must be a mapping", "'conv'"]),
    (
        "unused node",
        nodes("id: a, op: identity", "id: b, op: identity, from: input"),
        2,
        ["node 'a'", "nothing uses it"],
    ),
    ("a size of one side", "inputs: {a: null, b: [4]}\n" + nodes(), 1, ["input 'b'", "[height, width]", "got [4]"]),
    ("a size that is a text", "inputs:\n  a: null\n  b: 4x4\n" + nodes(), 3, ["input 'b'", "or null", "got '4x4'"]),
    ("a size of nothing", "inputs: {a: [0, 4]}\n" + nodes(), 1, ["input 'a'", "got [0, 4]"]),
    ("no inputs", "inputs: {}\n" + nodes(), 1, ["inputs is empty"]),
    ("sum of one", nodes("id: a, op: sum"), 2, ["sum needs two or more inputs"]),
    ("conv of two", nodes("id: a, op: identity", "id: b, op: conv, channels: 8, from: [input, a]"), 3, ["one input"]),
    (
        "missing output",
        "nodes:\n  - {id: head, op: identity}\noutputs: {logits: haed}\n",
        3,
        ["no node 'haed'", "'head'"],
    ),
    ("no outputs", "nodes:\n  - {id: head, op: identity}\n", 1, ["'outputs' is missing"]),
    ("empty nodes", "nodes: []\n" + END, 1, ["nodes is empty"]),
    ("nodes a mapping", "nodes: {a: b}\n" + END, 1, ["nodes must be a list"]),
    ("unknown top key", "parameter: {width: 1}\n" + nodes(), 1, ["unknown key 'parameter'", "'parameters'"]),
    ("duplicate key", nodes("id: a, op: conv, channels: 8, channels: 9"), 2, ["'channels' stands twice", "line 2"]),
    ("unknown parameter", nodes("id: a, op: conv, channels: $widht"), 2, ["unknown parameter '$widht'"]),
    (
        "closest parameter",
        "parameters: {width: 8}\n" + nodes("id: a, op: conv, channels: $widht*2"),
        3,
        ["unknown parameter '$widht'", "the closest is '$width'"],
    ),
    (
        "arithmetic on a text",
        "parameters: {act: relu}\n" + nodes("id: a, op: conv, channels: $act*2"),
        3,
        ["channels", "$act is 'relu'", "arithmetic takes numbers"],
    ),
    ("call", nodes("id: a, op: conv, channels: '__import__(\"os\")+$classes'"), 2, ["cannot read"]),
    ("power", nodes("id: a, op: conv, channels: $classes**9"), 2, ["unexpected *"]),
    ("unclosed", nodes("id: a, op: conv, channels: ($classes+1"), 2, ["parenthesis is not closed"]),
    ("two values", nodes("id: a, op: conv, channels: $classes 2"), 2, ["unexpected '2'"]),
    ("ends early", nodes("id: a, op: conv, channels: $classes*"), 2, ["expected a number"]),
    ("long formula", nodes(f"id: a, op: conv, channels: $classes{'+1' * 60}"), 2, ["at most 100 characters"]),
    (
        "division by zero",
        "parameters: {width: 8}\n" + nodes("id: a, op: conv, channels: $width//0"),
        3,
        ["division by zero"],
    ),
    (
        "huge value",
        "parameters: {w: 999999999}\n" + nodes("id: a, op: conv, channels: $w*$w*$w"),
        3,
        ["a value beyond"],
    ),
    ("parameter called classes", "parameters: {classes: 3}\n" + nodes(), 1, ["'classes'", "taken"]),
    ("parameter is a list", "parameters: {width: [1]}\n" + nodes(), 1, ["'width'", "must be a number"]),
    ("unknown template", nodes("id: a, template: residul"), 2, ["unknown template 'residul'"]),
    (
        "template argument missing",
        RESIDUAL + nodes("id: a, template: residual"),
        8,
        ["node 'a'", "needs the key 'channels'"],
    ),
    (
        "template argument a list",
        RESIDUAL + nodes("id: a, template: residual, channels: [8]"),
        8,
        ["node 'a'", "channels must be a single value, got a list"],
    ),
    (
        "template argument unknown",
        RESIDUAL + nodes("id: a, template: residual, chanels: 8"),
        8,
        ["unknown key 'chanels'", "the closest is 'channels'"],
    ),
    (
        "wrong value inside a template",
        RESIDUAL + nodes("id: a, template: residual, channels: 0"),
        5,
        ["node 'a.first'", "got 0", "in template 'residual', used in line 8"],
    ),
    (
        "template uses itself",
        "templates:\n  t:\n    nodes:\n      - {id: a, template: t}\n" + nodes("id: a, template: t"),
        4,
        ["template 't' uses itself: t -> t"],
    ),
    (
        "outer parameters are not seen inside",
        "templates:\n  inner: {nodes: [{id: a, op: conv, channels: $c}]}\n"
        "  outer: {parameters: [c], nodes: [{id: b, template: inner}]}\n" + nodes("id: x, template: outer, c: 8"),
        2,
        ["unknown parameter '$c'"],
    ),
    (
        "template bomb",
        "templates:\n"
        "  t0: {nodes: ["
        + ", ".join(f"{{id: n{i}, op: identity}}" for i in range(10))
        + "]}\n"
        + "".join(
            f"  t{k}: {{nodes: [" + ", ".join(f"{{id: n{i}, template: t{k - 1}}}" for i in range(10)) + "]}\n"
            for k in range(1, 9)
        )
        + nodes("id: a, template: t8"),
        2,
        ["more than 10000 nodes"],
    ),
    ("python tag", nodes("id: a, op: !!python/object/apply:os.system ['touch pwned']"), 2, ["tags are not allowed"]),
    ("local tag", nodes("id: a, op: !conv x"), 2, ["tags are not allowed"]),
    ("anchor", "nodes: &n\n  - {id: head, op: identity}\n" + END, 1, ["anchors and aliases"]),
    ("alias", nodes("id: a, op: *n"), 2, ["anchors and aliases"]),
    ("merge key", nodes("id: a, op: identity, <<: {p: 1}"), 2, ["unknown key '<<'"]),
    ("deep nesting", "nodes: " + "[" * 500 + "]" * 500 + "\n", 1, ["levels of nesting"]),
    ("broken YAML", "nodes:\n  - {id: a, op: conv\noutputs: {}\n", 3, ["not valid YAML"]),
    ("two documents", nodes() + "---\na: 1\n", 5, ["not valid YAML"]),
    ("number as key", "1: 2\n", 1, ["a key must be a name"]),
    ("empty file", "", 1, ["nodes and outputs"]),
    ("a text", "hello", 1, ["nodes and outputs"]),
]

# The form is right, the shapes are not: (name, file, line, parts), built for images of (3, 9, 8).
TAKEN_NAMES = [
    ("torch's name", nodes("id: half, op: identity"), 2, ["cannot be 'half'", "taken by torch, whose modules"]),
    ("the input's name", nodes("id: input, op: identity"), 2, ["cannot be 'input'", "taken by the images"]),
    ("$classes", "parameters: {classes: 3}\n" + nodes("id: a, op: identity"), 1, ["taken by $classes"]),
    (
        "a key of nodes",
        RESIDUAL.replace("[channels]", "[repeat]") + nodes("id: a, template: residual"),
        3,
        ["cannot be 'repeat'", "taken by a key that nodes have"],
    ),
    ("repeat of classes", nodes("id: a, op: identity, repeat: $classes"), 2, ["repeat cannot wait for $classes"]),
]
TWICE = "templates:\n  t:\n    parameters: [n, m]\n    nodes: [{id: c, op: conv, channels: $n}]\n"
IDLE: list[tuple[str, str, int, list[str]]] = [
    (f"a key without effect: {line}", nodes(f"id: a, {line}"), 2, ["node 'a'", *parts])
    for line, *parts in (
        (
            "op: conv, channels: 8, init_value: 3",
            "init_value is for init: constant and truncated_normal",
            "init: he",
        ),
        ("op: conv, channels: 8, init: zeros, init_value: 3", "init_value is for", "got init: zeros"),
        ("op: forget_gate, init_value: 3", "init_value is for", "got no init"),
        ("op: conv, channels: 8, norm_groups: 4", "norm_groups is for norm: group, got norm: batch"),
        ("op: conv, channels: 8, norm: none, norm_groups: 4", "norm_groups is for norm: group, got norm: none"),
        ("op: squeeze_excite, hidden: 4, reduction: 2", "reduction and divisor", "hidden: 4"),
        ("op: squeeze_excite, hidden: 4, divisor: 2", "reduction and divisor", "hidden: 4"),
        ("op: eca, kernel: 3, gamma: 5", "gamma and b", "kernel: 3"),
        ("op: eca, kernel: 3, b: 5", "gamma and b", "kernel: 3"),
        ("op: pad, left: 1, mode: reflect, value: 3", "value is for mode: constant, got mode: reflect"),
        ("op: upsample, factor: 3, scale: 1.5", "one of factor, scale and height, got factor and scale"),
        ("op: upsample, height: 9, scale: 1.5", "got scale and height"),
        ("timm: resnet18, features: true, classes: 10", "classes and pool", "features: true"),
        ("timm: resnet18, features: true, pool: false", "classes and pool", "features: true"),
        ("torchvision: resnet18, classes: 0", "needs classes of at least 1"),
    )
]
UNUSED: list[tuple[str, str, int, list[str]]] = [
    (
        "parameter",
        "parameters: {width: 8, widht: 3}\n" + nodes("id: a, op: conv, channels: 2*$width"),
        1,
        ["parameter 'widht' is not used", "the closest is '$width'"],
    ),
    (
        "parameter of the file that a template has too",
        "parameters:\n  m: 3\n"
        + TWICE.replace("channels: $n", "channels: $n*$m")
        + nodes("id: a, template: t, n: 2, m: 1"),
        2,
        ["parameter 'm' is not used: nothing says $m"],
    ),
    (
        "parameter of a template",
        TWICE + nodes("id: a, template: t, n: 2, m: 1"),
        3,
        ["template 't': parameter 'm' is not used", "the closest is '$n'"],
    ),
    (
        "default parameter of a template",
        TWICE.replace("[n, m]", "\n      n: 1\n      nn: 2") + nodes("id: a, template: t"),
        5,
        ["template 't': parameter 'nn' is not used", "the closest is '$n'"],
    ),
    (
        "template",
        RESIDUAL
        + "  residuals:\n    nodes: [{id: x, op: nonsense}]\n"
        + nodes("id: a, template: residual, channels: 3"),
        7,
        ["template 'residuals' is not used", "the closest is 'residual'"],
    ),
    (
        "template that only an unused one uses",
        RESIDUAL + "  outer:\n    nodes: [{id: x, template: residual, channels: 3}]\n" + nodes("id: a, op: identity"),
        2,
        ["template 'residual' is not used: no node says template: residual"],
    ),
]
USED = {
    "in a template": "parameters: {width: 8}\n"
    + RESIDUAL.replace("channels: $channels", "channels: $channels, kernel: $width")
    + nodes("id: a, template: residual, channels: 3"),
    "handed to a template within a template": "parameters: {width: 3}\n"
    + RESIDUAL
    + "  outer:\n    parameters: {wide: 3}\n    nodes: [{id: x, template: residual, channels: $wide}]\n"
    + nodes("id: a, template: outer, wide: $width"),
    "handed to a nested network": "parameters: {width: 8}\nnodes: [{id: a, spec: resnet-18, parameters: {width: $width}}]\n"
    "outputs: {y: a}\n",
    "by defaults": "parameters: {p: 0.5}\ndefaults: {dropout: $p}\n" + nodes("id: a, op: conv, channels: 3"),
    "by the file's defaults in a template": "defaults: {dropout: $q}\ntemplates:\n  t: {parameters: [q], nodes: [{id: c, op: conv, "
    "channels: 3}]}\n" + nodes("id: a, template: t, q: 0.5"),
    "in a candidate of a choice": "parameters: {k: 3, name: b}\n"
    + RESIDUAL
    + nodes(
        "id: a, choice: {b: {op: conv, channels: 3, kernel: $k}, c: {template: residual, channels: 3}}, pick: $name"
    ),
    "as repeat and checkpoint": "parameters: {n: 3, again: true}\n"
    + nodes("id: a, op: identity, repeat: $n, checkpoint: $again"),
}
MISFITS: list[tuple[str, str, int, list[str]]] = [
    (
        "sum of unequal shapes",
        nodes(
            "id: a, op: conv, channels: 8", "id: b, op: conv, channels: 8, stride: 2", "id: c, op: sum, from: [a, b]"
        ),
        4,
        ["node 'c'", "'a' (8, 9, 8)", "'b' (8, 5, 4)"],
    ),
    (
        "residual that changes the channels",
        RESIDUAL + nodes("id: a, template: residual, channels: 8"),
        6,
        ["node 'a.link'", "'input' (3, 9, 8)", "'a.first' (8, 9, 8)", "used in line 8"],
    ),
    (
        "concat",
        nodes("id: a, op: max_pool", "id: b, op: concat, from: [input, a]"),
        3,
        ["node 'b'", "'input' (3, 9, 8)", "'a' (3, 4, 4)"],
    ),
    ("odd height", nodes("id: a, op: pixel_unshuffle"), 2, ["height and width that are even", "'input' (3, 9, 8)"]),
    ("linear on maps", nodes("id: a, op: linear, features: 4"), 2, ["flat features", "'input' (3, 9, 8)"]),
    ("conv on flat", nodes("id: a, op: flatten", "id: b, op: conv, channels: 8"), 3, ["feature maps", "'a' (216)"]),
    ("groups", nodes("id: a, op: conv, channels: 8, groups: 2"), 2, ["groups: 2 does not divide", "'input' (3, 9, 8)"]),
    ("large window", nodes("id: a, op: conv, channels: 8, kernel: 12, padding: 0"), 2, ["(12, 12) is larger"]),
    ("pool padding", nodes("id: a, op: max_pool, padding: 2"), 2, ["padding: 2 is more than half"]),
    ("classes out of range", nodes("id: a, op: conv, channels: $classes-10"), 2, ["node 'a'", "channels", "got 0"]),
    ("classes divide by zero", nodes("id: a, op: conv, channels: 8//($classes-10)"), 2, ["division by zero"]),
]


def save(folder: Path, text: str) -> Path:
    path = folder / "net.yaml"
    path.write_text(text)
    return path


def check(message: str, path: Path, line: int, parts: list[str]) -> None:
    place = f"{path}:{line}: " if line else f"{path}: "
    assert message.startswith(place), message
    for part in parts:
        assert part in message, message
    assert "\n" not in message


@pytest.mark.parametrize("text", USED.values(), ids=USED)
def test_what_is_used_somewhere_is_no_error(text: str, tmp_path: Path) -> None:
    assert load(save(tmp_path, text)).nodes


@pytest.mark.parametrize(
    ("text", "line", "parts"),
    [w[1:] for w in [*WRONG, *IDLE, *UNUSED, *TAKEN_NAMES]],
    ids=[w[0] for w in [*WRONG, *IDLE, *UNUSED, *TAKEN_NAMES]],
)
def test_wrong_file_names_line_and_cause(text: str, line: int, parts: list[str], tmp_path: Path) -> None:
    path = save(tmp_path, text)
    with pytest.raises(SpecError) as caught:
        load(path)
    check(str(caught.value), path, line, parts)
    assert not list(tmp_path.glob("pwned"))


@pytest.mark.parametrize(("text", "line", "parts"), [w[1:] for w in MISFITS], ids=[w[0] for w in MISFITS])
def test_misfit_names_line_node_and_shapes(text: str, line: int, parts: list[str], tmp_path: Path) -> None:
    path = save(tmp_path, text)
    spec = load(path)
    with pytest.raises(SpecError) as caught:
        build(spec, (3, 9, 8), 10)
    check(str(caught.value), path, line, parts)


def test_keys_that_another_key_asks_for_are_taken_with_inherited_ones(tmp_path: Path) -> None:
    """What `defaults` says for other nodes is no reason to refuse a node."""
    head = "defaults: {norm: group, activation: prelu, dropout: 0.1}\n"
    lines = [
        "id: a, op: conv, channels: 8, norm_groups: 4",
        "id: b, op: separable_conv, channels: 8, norm_groups: 2",
        "id: c, op: conv, channels: 8, norm: none, init: constant, init_value: 3",
        "id: d, op: conv, channels: 8, init: truncated_normal, init_value: 0.1",
        "id: e, op: pad, left: 1, value: 3",
        "id: f, op: squeeze_excite, hidden: 4",
        "id: g, op: eca, kernel: 3",
    ]
    network = build(load(save(tmp_path, head + nodes(*lines))), (3, 9, 8), 10)
    assert network.get_submodule("a.norm").num_groups == 4
    assert network.get_submodule("b.norm").num_groups == 2


def test_a_kind_of_norm_and_of_init_can_be_swept(tmp_path: Path) -> None:
    """A key that has no effect for one value of a parameter has one for another."""
    head = "parameters: {norm: batch, groups: 4, init: he, value: 0.5, hidden: 2}\n"
    lines = [
        "id: a, op: conv, channels: 8, norm: $norm, norm_groups: $groups, init: $init, init_value: $value",
        "id: b, op: conv, channels: 8, norm: $norm, norm_groups: 4",
        "id: c, op: squeeze_excite, hidden: $hidden, reduction: 2",
    ]
    build(load(save(tmp_path, head + nodes(*lines))), (3, 9, 8), 10)


def test_a_stored_network_may_have_a_key_without_effect(tmp_path: Path) -> None:
    plain = load(save(tmp_path, nodes("id: a, op: conv, channels: 8"))).canonical()
    plain["nodes"][0] |= {"norm_groups": 4, "init_value": 0.5}
    build(from_canonical(plain), (3, 9, 8), 10)


def test_misfit_of_a_stored_spec_names_the_node(tmp_path: Path) -> None:
    spec = from_canonical(load(save(tmp_path, MISFITS[0][1])).canonical())
    with pytest.raises(SpecError, match=re.escape("node 'c': sum needs equal shapes, got 'a' (8, 9, 8)")):
        build(spec, (3, 9, 8), 10)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"widht": 8}, ["unknown parameter 'widht'", "the closest is 'width'"]),
        ({"width": 8.5}, ["width must be a whole number", "8.5"]),
        ({"width": True}, ["width must be a whole number", "True"]),
        ({"width": "8"}, ["width must be a whole number", "'8'"]),
        ({"share": "much"}, ["share must be a number", "'much'"]),
        ({"act": 1}, ["act must be a text"]),
        ({"act": "$width"}, ["act must be a text", "$width"]),
        ({"biased": 1}, ["biased must be true or false"]),
    ],
)
def test_wrong_override(overrides: dict[str, object], parts: list[str], tmp_path: Path) -> None:
    head = "parameters: {width: 8, share: 0.5, act: relu, biased: true}\n"
    path = save(tmp_path, head + nodes("id: a, op: conv, channels: $width, activation: $act, bias: $biased"))
    with pytest.raises(SpecError) as caught:
        load(path, overrides)
    check(str(caught.value), path, 1, ["network_parameters", *parts])


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"absent.yaml: cannot read the network file: No such file"):
        load(tmp_path / "absent.yaml")
    with pytest.raises(
        SpecError, match=r"^resnet-18: no such file, but the zoo has .*: give the path ZOO / 'resnet-18.yaml'"
    ):
        load("resnet-18")
    assert load(ZOO / "resnet-18.yaml").nodes
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00nodes")
    with pytest.raises(SpecError, match=r"binary.yaml:1: not a UTF-8 text"):
        load(tmp_path / "binary.yaml")
    (tmp_path / "binary.yaml").write_bytes("nodes:\n  # é\n".encode() + b"\xff")
    with pytest.raises(SpecError, match=r"binary.yaml:3: not a UTF-8 text: invalid start byte at byte 14"):
        load(tmp_path / "binary.yaml")
    (tmp_path / "zero.yaml").write_bytes("nodes:\n  # é\n".encode() + b"\0")
    with pytest.raises(SpecError, match=r"zero.yaml:3: not a text: a character '.x00'"):
        load(tmp_path / "zero.yaml")
    (tmp_path / "empty.yaml").write_bytes(b"")
    with pytest.raises(SpecError, match=r"empty.yaml:1: the file must hold the keys nodes and outputs"):
        load(tmp_path / "empty.yaml")
    (tmp_path / "large.yaml").write_text("#" * 1_000_001)
    with pytest.raises(SpecError, match="at most 1000000"):
        load(tmp_path / "large.yaml")


def test_a_damaged_stored_spec_is_refused(tmp_path: Path) -> None:
    whole = load(save(tmp_path, nodes("id: a, op: identity"))).canonical()
    entry = whole["nodes"][0]
    for damaged, message in [
        ({}, "not a canonical network spec"),
        ({**whole, "outputs": ["logits"]}, "not a canonical network spec"),
        ({**whole, "format": 2}, "format 2"),
        ({**whole, "nodes": 3}, "not a canonical network spec"),
        ({**whole, "nodes": whole["nodes"][1:]}, "no node 'a' before it"),
        ({**whole, "nodes": [{**entry, "id": "__class__"}]}, "not a node id"),
        ({**whole, "nodes": [{**entry, "op": "evil"}]}, "unknown op 'evil'"),
        ({**whole, "nodes": [entry, entry]}, "the id stands twice"),
        ({**whole, "outputs": [["logits", "b"]]}, "no node 'b'"),
    ]:
        with pytest.raises(SpecError, match=message):
            from_canonical(damaged)


def test_build_refuses_wrong_sizes(tmp_path: Path) -> None:
    spec = load(save(tmp_path, nodes("id: a, op: identity")))
    with pytest.raises(SpecError, match="classes must be at least 1, got 0"):
        build(spec, (1, 8, 8), 0)
    for shape in ((0, 8, 8), (3, 32), 3, (3, "a", 2), "abc", (3, 8.0, 8), (True, 8, 8), {"input": 3}, None):
        with pytest.raises(SpecError, match=r"input_shape must be \(C, H, W\) with sizes of at least 1, got "):
            build(spec, shape, 10)  # type: ignore[arg-type]
    build(spec, torch.Size([1, 8, 8]), 10)
