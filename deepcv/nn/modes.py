"""Train or eval mode layer by layer, which some layers lose as they are copied."""

from collections.abc import Collection

from torch import nn


def resting(network: nn.Module) -> list[str]:
    """The paths of the layers in eval mode."""
    return [name for name, module in network.named_modules() if not module.training]


def restore(network: nn.Module, paths: Collection[str]) -> None:
    """Put the layers of these paths in eval mode and all others in train mode.

    By `train`, not by the attribute: a cut torchvision network (`DualGraphModule`) has a graph for each mode and changes it
    there. That sets the layers within too, which come later and then get their own mode.
    """
    names = set(paths)
    for name, module in network.named_modules():
        if module.training == (name in names):
            module.train(name not in names)
