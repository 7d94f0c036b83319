"""Test images as points of a plane: near each other where the network sees the same in them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits
from torch import Tensor, fx, nn

from deepcv.nn.classifier import Classifier

_PERPLEXITY, _STEPS = 30.0, 500
_LEAST_IMAGES = 4
COMPARING = ("triplet", "nt_xent", "supcon")  # the losses of embeddings; a test holds them to those of training


@torch.inference_mode()
def features_of(
    classifier: Classifier, images_nhwc: NDArray[np.uint8], *, batch_size: int, output: str = ""
) -> NDArray[np.float32]:
    """What the last linear layer before the logits takes, (n, f), or the logits where there is none; in eval mode, on the CPU.

    With `output` it is that output of the network instead.
    """
    network = classifier.network
    layer, taken = None if output else head_of(network), list[Tensor]()
    hook = layer and layer.register_forward_pre_hook(lambda _layer, inputs: taken.append(inputs[0]))
    collected = []
    for start in range(0, len(images_nhwc), batch_size):
        batch = torch.from_numpy(np.array(images_nhwc[start : start + batch_size])).permute(0, 3, 1, 2)
        made = classifier.answer(classifier.normalise(batch.contiguous()))[output or "logits"]
        collected.append((taken[-1] if taken else made).flatten(1))
        taken.clear()
    if hook:
        hook.remove()
    return torch.cat(collected).numpy()


def head_of(network: nn.Module) -> nn.Linear | None:
    """The last linear layer before the logits; None where another layer or a junction comes after it."""
    assert isinstance(network, fx.GraphModule)  # noqa: S101  # for mypy
    outputs: Any = network.graph.output_node().args[0]
    nodes: list[fx.Node] = [outputs["logits"]]
    while len(nodes) == 1 and nodes[0].op != "placeholder":
        node = nodes[0]
        layer = network.get_submodule(str(node.target)) if node.op == "call_module" else nn.Identity()
        if isinstance(layer, nn.Linear):
            return layer
        if list(layer.parameters()):
            return None
        nodes = [node for node in node.all_input_nodes if node.op != "get_attr"]
    return None


def compared_outputs(training: Mapping[str, Any]) -> dict[str, bool]:
    """The outputs beside the logits that a loss has taught by comparing images, and whether it compared their directions alone.

    `training` is what data/model/training.json says.
    """
    found: dict[str, bool] = {}
    for term in training["params"].get("losses", ()):
        if term["loss"] in COMPARING and term["output"] != "logits":
            directions = term["loss"] != "triplet" or term.get("distance") == "cosine"
            found.setdefault(term["output"], directions)
    return found


def directions_of(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Features (n, f) at length 1; those of length 0 as they are."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return (features / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def project(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lay features (n, f) out in a plane, (n, 2), by t-SNE (van der Maaten and Hinton 2008); all 0 where nothing tells them apart.

    The same on every run of a machine: it computes in one thread, as sums of several would come in any order.
    """
    spread = np.ptp(features, axis=0).max()
    if len(features) < _LEAST_IMAGES or not 0 < spread < np.inf:
        return np.zeros((len(features), 2), np.float32)
    perplexity = min(_PERPLEXITY, (len(features) - 1) / 3)
    start = "pca" if features.shape[1] > 1 else "random"
    with threadpool_limits(1):
        placed = TSNE(perplexity=perplexity, max_iter=_STEPS, init=start, random_state=0).fit_transform(features)
    return np.asarray(placed, np.float32)
