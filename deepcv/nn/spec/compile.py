"""From a `NetworkSpec` to a `torch.fx.GraphModule`: all shapes first, then the weights."""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import fx, nn

from deepcv.nn import subgraphs
from deepcv.nn.emitter import Emitter, FitError, Shape, Value
from deepcv.nn.init import reset
from deepcv.nn.layers.dilated import guard
from deepcv.nn.layers.subgraphs import Checkpointed, MixedChoice, OpenChoice, SampledChoice
from deepcv.nn.ops.choice import Choice, candidate_names
from deepcv.nn.spec import lowering
from deepcv.nn.spec.errors import SpecError
from deepcv.nn.spec.model import NetworkSpec, NodeSpec

Search = Literal["sampled", "mixed"]


def build(
    spec: NetworkSpec,
    input_shape: Shape | Mapping[str, Shape],
    classes: int,
    *,
    outputs: Sequence[str] | None = None,
    choices: Mapping[str, str] | None = None,
    search: Search | None = None,
) -> fx.GraphModule:
    """The network for images of shape (C, H, W), as a plain graph module in fp32 on the CPU.

    It maps a batch (N, C, H, W), or one of each of its inputs in the order of the file, to a dict of outputs in that order;
    `outputs` takes some of them and leaves out what they do not need. `input_shape` is that of images, of which inputs with a
    size of their own take the channels alone, or a mapping of the inputs' names. `choices` decides choices by node id; those
    still open become layers that run one candidate (`sampled`) or weigh all (`mixed`), or are an error. Weights have the same
    keys whatever is left out. They come from torch's global random generator: `torch.manual_seed` decides. Raises SpecError
    that names the node and the shapes that do not fit.
    """
    check_search(search)
    spec.check_ids()
    if classes < 1:
        raise SpecError(f"classes must be at least 1, got {classes}")
    shapes = spec.input_shapes(input_shape)
    spec = lowering.wanted(spec, outputs) if outputs is not None else spec
    spec = lowering.pruned(lowering.decided(spec, choices or {}))
    emitter = Emitter()
    values: dict[str, Value] = {}
    with torch.device("meta"):
        for name, shape in shapes.items():
            values[name] = emitter.input(name, shape)
        for node in spec.nodes:
            inputs = [values[source] for source in node.sources]
            try:
                with emitter.node(node.id, node.share):
                    values[node.id] = _emit(node, classes, emitter, inputs, search)
            except FitError as error:
                raise node.error(f"{node.op} {error}") from None
    emitter.graph.output({name: values[source].node for name, source in spec.outputs})
    _initialise(emitter)
    _take_out(spec, emitter)
    return _module(emitter)


def check_search(search: object) -> None:
    """Raise SpecError for what is no kind of search."""
    if search is not None and search not in get_args(Search):
        raise SpecError(f"search must be one of {', '.join(get_args(Search))}, or None, got {search!r}")


def _emit(node: NodeSpec, classes: int, emitter: Emitter, inputs: list[Value], search: Search | None) -> Value:
    op = node.bind(classes)
    if not isinstance(op, Choice) or op.pick is not None:
        return op.emit(emitter, *inputs)
    names = candidate_names(node.id, node.sources)
    if search is None:
        raise node.error(
            f"the choice is open; set pick to one of {', '.join(names)}, say it in train.network_choices, or build it for a search"
        )
    for value in inputs[1:]:
        if value.shape != inputs[0].shape:
            raise FitError(f"needs equal shapes, got {inputs[0]} and {value}")
    layer: OpenChoice = (SampledChoice if search == "sampled" else MixedChoice)(names, op.n)
    path = subgraphs.add(emitter.root, node.id, layer)
    return emitter.value(emitter.graph.call_module(path, tuple(value.node for value in inputs)), inputs[0].shape)


def _initialise(emitter: Emitter) -> None:
    """Give the modules storage and first values, in the order of the file."""
    for module in emitter.root.modules():
        guard(module)
        parameters = dict(module.named_parameters(recurse=False))
        buffers = dict(module.named_buffers(recurse=False))
        tensors = [*parameters.values(), *buffers.values()]
        # Not module.to_empty: it runs an operation on meta tensors, see Emitter.
        for name, parameter in parameters.items():
            if parameter.is_meta:
                values = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
                setattr(module, name, nn.Parameter(values, requires_grad=parameter.requires_grad))
        for name, buffer in buffers.items():
            if buffer.is_meta:
                setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu"))
        if any(tensor.is_meta for tensor in tensors):  # others came with values, e.g. timm's
            reset(module)
        if module in emitter.starts:
            emitter.starts[module](module)


def _take_out(spec: NetworkSpec, emitter: Emitter) -> None:
    """Move what is computed again, and the candidates of open choices, into subgraphs; the innermost first."""
    choices = {node.id: node for node in spec.nodes if node.id in lowering.open_choices(spec)}
    again = {node.checkpoint for node in spec.nodes if node.checkpoint}
    for name in sorted({*choices, *again}, key=lambda name: -name.count(".")):
        if name in choices:
            _take_out_candidates(choices[name], emitter)
        if name in again and (nodes := subgraphs.inside(emitter.graph, name)):
            subgraphs.replace(emitter.root, emitter.graph, nodes, f"{name}.checkpointed", Checkpointed)


def _take_out_candidates(choice: NodeSpec, emitter: Emitter) -> None:
    (call,) = (node for node in emitter.graph.nodes if node.meta.get("id") == choice.id)
    ends = call.args
    prefixes = [f"{choice.id}.{name}" for name in candidate_names(choice.id, choice.sources)]
    bodies = [subgraphs.inside(emitter.graph, prefix) for prefix in prefixes]
    inputs: dict[fx.Node, None] = {}
    for body, end in zip(bodies, ends, strict=True):
        inputs |= dict.fromkeys(subgraphs.entries(body) if end in body else [end])
    layer = emitter.root.get_submodule(call.target)
    assert isinstance(layer, OpenChoice)  # noqa: S101  for mypy: _emit made it
    layer.subgraphs = tuple(
        subgraphs.copy_out(emitter.root, body if end in body else [], list(inputs), [end])
        for body, end in zip(bodies, ends, strict=True)
    )
    call.args = tuple(inputs)
    for node in reversed([node for body in bodies for node in body]):
        if not node.users:
            emitter.graph.erase_node(node)


def _module(emitter: Emitter) -> fx.GraphModule:
    network = fx.GraphModule(emitter.root, emitter.graph, class_name="Network")
    for path in [
        *emitter.paths,
        *subgraphs.added(emitter.root),
    ]:  # fx keeps what its graph calls: not what subgraphs call
        network.add_submodule(path, emitter.root.get_submodule(path))
    return network
