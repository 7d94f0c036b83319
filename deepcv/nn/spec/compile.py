"""From a `NetworkSpec` to a `torch.fx.GraphModule`: all shapes first, then the weights."""

import torch
from torch import fx, nn

from deepcv.nn.emitter import Emitter, FitError, Value
from deepcv.nn.init import reset
from deepcv.nn.spec.errors import SpecError
from deepcv.nn.spec.model import INPUT, NetworkSpec


def build(spec: NetworkSpec, input_shape: tuple[int, int, int], classes: int) -> fx.GraphModule:
    """The network for images of shape (C, H, W), as a plain graph module in fp32 on the CPU.

    It maps a batch (N, C, H, W) to a dict of outputs in the order of the file. Weights come from torch's global random
    generator: `torch.manual_seed` decides. Raises SpecError that names the node and the shapes that do not fit.
    """
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise SpecError(f"input_shape must be (C, H, W) with sizes of at least 1, got {tuple(input_shape)}")
    if classes < 1:
        raise SpecError(f"classes must be at least 1, got {classes}")
    emitter = Emitter()
    values: dict[str, Value] = {}
    with torch.device("meta"):
        values[INPUT] = emitter.input(INPUT, tuple(input_shape))
        for node in spec.nodes:
            inputs = [values[source] for source in node.sources]
            try:
                with emitter.node(node.id):
                    values[node.id] = node.bind(classes).emit(emitter, *inputs)
            except FitError as error:
                raise node.error(f"{node.op} {error}") from None
    emitter.graph.output({name: values[source].node for name, source in spec.outputs})
    _initialise(emitter)
    return fx.GraphModule(emitter.root, emitter.graph, class_name="Network")


def _initialise(emitter: Emitter) -> None:
    """Give the modules storage and first values, in the order of the file."""
    for module in emitter.root.modules():
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
