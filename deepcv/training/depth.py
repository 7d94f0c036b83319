"""How deep in its network a parameter lies: the layers that layer-wise rates tell apart."""

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from torch import nn

from deepcv.nn.module import DeepcvModule

_LIBRARIES = ("timm", "torchvision")
_NUMBERED = re.compile(r"\d+|.*(?:block|layer|stage)s?[-_]?\d+(?:-\d+)?|inception\d+[a-z]")


def depths(network: nn.Module, names: Iterable[str]) -> dict[str, int]:
    """The place of each parameter's layer among the layers of these parameters, from 0, the first, in the order of the network.

    A node of the network file is a layer, and so is one repetition of a repeated node, and each node of a template or a
    network that is used as one node. A network of timm has the layers that timm gives it, one of torchvision its numbered blocks,
    what lies in front of them and what lies behind.
    """
    nodes = {node.id: node.op for node in network.spec.nodes} if isinstance(network, DeepcvModule) else {}
    of_node: dict[str, list[str]] = {}
    for name in names:
        of_node.setdefault(_node_of(name, nodes), []).append(name)
    layers: dict[tuple[str, int], list[str]] = {}
    for node, own in of_node.items():
        layer = _shortened(node)
        if nodes.get(node) not in _LIBRARIES or layer.rpartition(".")[2].isdecimal():
            layers.setdefault((layer, 0), []).extend(own)
            continue
        for place, inner in _inside(network.get_submodule(node), [name.removeprefix(f"{node}.") for name in own]):
            layers.setdefault((node, place), []).append(f"{node}.{inner}")
    return {name: place for place, own in enumerate(layers.values()) for name in own}


def _node_of(name: str, nodes: Collection[str]) -> str:
    """The id of the node that a parameter belongs to; its first part where the network has no nodes."""
    path = name
    while path := path.rpartition(".")[0]:
        if path in nodes:
            return path
    return name.partition(".")[0]


def _shortened(node: str) -> str:
    """`body.3`, a repetition, of `body.3.branch.first`, else `res1.first`, at most, of a node inside a node."""
    parts = node.split(".")
    return ".".join(parts[: next((place + 1 for place, part in enumerate(parts) if part.isdecimal()), 2)])


def _inside(module: Any, names: list[str]) -> Iterator[tuple[int, str]]:
    """The place of the layer of each parameter of a library's network, by places."""
    if not hasattr(module, "group_matcher"):
        return _blocks(names)
    from timm.models import group_parameters  # late: where timm has made the network, it is there

    places = group_parameters(module, module.group_matcher(coarse=False), reverse=True)
    return iter(sorted(((int(places[name]), name) for name in names), key=_place_of))


def _place_of(found: tuple[int, str]) -> int:
    return found[0]


def _blocks(names: Iterable[str]) -> Iterator[tuple[int, str]]:
    """By numbered blocks: what has no number belongs to the block before it, or is a head where it begins another part.

    Without a numbered block, as in inception_v3, each part is a layer.
    """
    names = list(names)
    numbered = any(map(_block_of, names))
    place, block = 0, ""
    parts: set[str] = set()
    for name in names:
        found, part = _block_of(name), name.partition(".")[0]
        if (found and found != block) or (not found and (block or not numbered) and part not in parts):
            place, block = place + bool(parts), found or block
        parts.add(part)
        yield place, name


def _block_of(name: str) -> str:
    """`layer1.0` of `layer1.0.conv1.weight`, `features.2` of `features.2.weight`; empty without a number."""
    parts = name.split(".")[:-1]
    first = next((place for place, part in enumerate(parts) if _NUMBERED.fullmatch(part)), None)
    if first is None:
        return ""
    last = first
    while last + 2 < len(parts) and _NUMBERED.fullmatch(parts[last + 1]):
        last += 1
    return ".".join(parts[: last + 1])
