"""From a `NetworkSpec` to a `torch.fx.GraphModule`: all shapes first, then the weights."""

import torch
from torch import fx, nn

from deepcv.nn.emitter import Emitter, FitError, Value
from deepcv.nn.layers import DiracConv2d
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
            emitter.node_id = node.id
            inputs = [values[source] for source in node.sources]
            try:
                values[node.id] = node.bind(classes).emit(emitter, *inputs)
            except FitError as error:
                raise node.error(f"{node.op} {error}") from None
    emitter.graph.output({name: values[source].node for name, source in spec.outputs})
    for module in emitter.root.modules():
        _initialise(module)
    return fx.GraphModule(emitter.root, emitter.graph, class_name="Network")


def _initialise(module: nn.Module) -> None:
    """Give a meta module storage and values: He's for convolutions, torch's own for the rest."""
    if next(module.children(), None) is not None:
        return
    # Not module.to_empty: it runs an operation on meta tensors, see Emitter.
    for name, parameter in module.named_parameters(recurse=False):
        values = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
        setattr(module, name, nn.Parameter(values, requires_grad=parameter.requires_grad))
    for name, buffer in module.named_buffers(recurse=False):
        setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu"))
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, DiracConv2d):
            module.init_identity()
    elif isinstance(module, nn.Linear | nn.BatchNorm1d | nn.BatchNorm2d):
        module.reset_parameters()
