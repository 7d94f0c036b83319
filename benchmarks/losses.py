"""Losses against pytorch-metric-learning's, timm's and torchvision's: the largest difference of a value and of a gradient.

    pip install --no-deps --target PEER pytorch-metric-learning
    PYTHONPATH=PEER python -m benchmarks.losses [--quick]

Both sides run on the same random batches in float64; numbers of images, classes, dimensions and views, margins,
temperatures and smoothing are drawn per seed. `fp32` and `peer_fp32` are each side in float32 against the peer in float64:
what rounding costs. A difference from x is divided by max(1, abs x). The peer's Euclidean distances are told not to
normalise, for ours do not; timm's divergence clamps probabilities at 1e-7, ours need not. `value` is the largest difference
in float64 of all losses; ours in float32 must keep the tolerance too.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import timm.loss
import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from benchmarks.result import emit
from deepcv.training import losses

try:
    from pytorch_metric_learning import distances, miners
    from pytorch_metric_learning import losses as metric
except ImportError:
    sys.exit(
        "pytorch-metric-learning is missing: pip install --no-deps --target PEER pytorch-metric-learning, "
        "then PYTHONPATH=PEER python -m benchmarks.losses"
    )

TOLERANCE = 1e-6
_SPANS = ((8, 64), (2, 20), (2, 128))  # of images, classes, dimensions
Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Batch:
    """One seed's draws: logits (views·b, classes) and embeddings (views·b, dimensions), both float64, and targets of b images."""

    logits: Tensor
    embeddings: Tensor
    numbers: Tensor  # classes, int64 (b,)
    soft: Tensor
    labels: Tensor  # 0 or 1 (b, classes)
    views: int
    share: float  # 0–0.5, for smoothing, margins and the focal losses
    temperature: float

    @classmethod
    def draw(cls, seed: int) -> "Batch":
        """The draws of this seed."""
        random = torch.Generator().manual_seed(seed)
        images, classes, dimensions = (int(torch.randint(*span, (), generator=random)) for span in _SPANS)
        views = 2 + seed % 3
        numbers = torch.randint(classes, (images,), generator=random)
        numbers[:4] = torch.tensor([0, 0, 1, 1])  # a positive and a negative are there
        share, temperature = torch.rand(2, generator=random, dtype=torch.float64).tolist()

        def normal(*shape: int, std: float = 1.0) -> Tensor:
            return (std * torch.randn(*shape, generator=random)).double()  # which float32 can hold

        return cls(
            normal(views * images, classes, std=4), normal(views * images, dimensions, std=dimensions**-0.5), numbers,
            normal(images, classes).softmax(1), (normal(images, classes) > 0).double(), views, share / 2,
            0.05 + temperature,
        )  # fmt: skip

    @property
    def images(self) -> int:
        """How many, of which each has `views` rows."""
        return len(self.numbers)


def of_classification(batch: Batch) -> dict[str, tuple[Function, Function, Tensor]]:
    """Name -> (ours, timm's or torchvision's, logits)."""
    first, share, soft = batch.logits[: batch.images], batch.share, batch.soft
    bce = partial(timm.loss.BinaryCrossEntropy, smoothing=share)
    by_class = {
        "cross_entropy": (partial(losses.cross_entropy, label_smoothing=share), timm.loss.LabelSmoothingCrossEntropy(share)),
        "one_vs_rest": (partial(losses.one_vs_rest, label_smoothing=share), bce()),
        "one_vs_rest, thresholded sums": (
            partial(losses.one_vs_rest, label_smoothing=share, target_threshold=0.3, sum_classes=True),
            bce(target_threshold=0.3, sum_classes=True),
        ),
    }  # fmt: skip
    pairs = {
        name: (partial(_given, ours, batch.numbers), partial(_given, peers, batch.numbers))
        for name, (ours, peers) in by_class.items()
    }
    pairs["cross_entropy, soft"] = (
        partial(_given, losses.cross_entropy, soft),
        lambda logits: timm.loss.SoftTargetCrossEntropy()(logits, soft.to(logits.dtype)),
    )
    pairs["bce"] = (
        partial(_given, partial(losses.bce, label_smoothing=share, pos_weight=3.0), batch.labels),
        lambda logits: bce(pos_weight=3.0, smooth_dense=True)(logits, batch.labels.to(logits.dtype)),
    )
    pairs["sigmoid_focal"] = (
        partial(_given, partial(losses.sigmoid_focal, gamma=2 * share, alpha=share), batch.labels),
        lambda logits: sigmoid_focal_loss(logits, batch.labels.to(logits.dtype), share, 2 * share, reduction="mean"),
    )
    return {name: (*pair, first) for name, pair in pairs.items()} | {
        "jensen_shannon": (*consistency(batch), batch.logits)
    }


def consistency(batch: Batch) -> tuple[Function, Function]:
    """AugMix's loss: cross-entropy of the first view and 12 times the divergence."""
    targets = {"label": batch.numbers}
    terms = (losses.Term("cross_entropy"), losses.Term("jensen_shannon", weight=12))
    peer = timm.loss.JsdCrossEntropy(batch.views, alpha=12, smoothing=0)
    labels = batch.numbers.repeat(batch.views)
    return lambda logits: losses.total(terms, {"logits": logits}, targets, batch.views), partial(_given, peer, labels)


def of_embeddings(batch: Batch) -> dict[str, tuple[Function, Function, Tensor]]:
    """Name -> (ours, pytorch-metric-learning's, embeddings)."""
    views, temperature, embeddings = batch.views, batch.temperature, batch.embeddings
    images = torch.arange(batch.images).repeat(views)
    labels, first = batch.numbers.repeat(views), embeddings[: batch.images]
    found: dict[str, tuple[Function, Function, Tensor]] = {
        "nt_xent": (
            partial(losses.nt_xent, views=views, temperature=temperature),
            partial(_given, metric.NTXentLoss(temperature), images), embeddings,
        ),
        "supcon": (
            partial(_given, partial(losses.supcon, views=views, temperature=temperature), batch.numbers),
            partial(_given, metric.SupConLoss(temperature), labels), embeddings,
        ),
    }  # fmt: skip
    margin = batch.share + 0.05
    for name, distance in (
        ("euclidean", distances.LpDistance(normalize_embeddings=False)),
        ("cosine", distances.CosineSimilarity()),
    ):
        miner = partial(miners.TripletMarginMiner, margin, distance=distance)
        for mining, mined in (
            ("hard", miners.BatchHardMiner(distance=distance)),
            ("semi_hard", miner(type_of_triplets="semihard")),
            ("all", miner(type_of_triplets="all")),
        ):
            ours = partial(losses.triplet, margin=margin, mining=mining, distance=name)
            peer = partial(_mined, metric.TripletMarginLoss(margin, distance=distance), mined, batch.numbers)
            found[f"triplet, {mining}, {name}"] = (partial(_given, ours, batch.numbers), peer, first)
    return found


def _given(loss: Callable[[Tensor, Tensor], Tensor], targets: Tensor, outputs: Tensor) -> Tensor:
    return loss(outputs, targets)


def _mined(loss: Callable[..., Tensor], miner: Callable[..., object], labels: Tensor, embeddings: Tensor) -> Tensor:
    return loss(embeddings, labels, miner(embeddings.detach(), labels))


def with_gradient(loss: Function, outputs: Tensor, dtype: torch.dtype) -> Tensor:
    """The loss and its gradient in one vector, float64."""
    leaf = outputs.to(dtype).requires_grad_()
    value = loss(leaf)
    (gradient,) = torch.autograd.grad(value, leaf)
    return torch.cat([value.detach().reshape(1), gradient.flatten()]).double()


def differences(ours: Function, peers: Function, outputs: Tensor) -> dict[str, float]:
    """Largest differences from the peer in float64, by what they are of."""
    exact = with_gradient(peers, outputs, torch.float64)

    def apart(loss: Function, dtype: torch.dtype) -> Tensor:
        return (with_gradient(loss, outputs, dtype) - exact).abs() / exact.abs().clamp(min=1)

    precise = apart(ours, torch.float64)
    return {
        "value": precise[0].item(),
        "gradient": precise[1:].max().item(),
        "fp32": apart(ours, torch.float32).max().item(),
        "peer_fp32": apart(peers, torch.float32).max().item(),
    }


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="30 seeds instead of 300")
    seeds = 30 if parser.parse_args().quick else 300
    torch.set_num_threads(1)
    worst: dict[str, dict[str, float]] = {}
    for seed in range(seeds):
        batch = Batch.draw(seed)
        for name, (ours, peers, outputs) in (of_classification(batch) | of_embeddings(batch)).items():
            found, before = differences(ours, peers, outputs), worst.get(name, {})
            worst[name] = {key: max(before.get(key, 0.0), found[key]) for key in found}
    for name, row in worst.items():
        print(f"{name:32}", "  ".join(f"{key} {value:.1e}" for key, value in row.items()))
    value = max(row[key] for row in worst.values() for key in ("value", "gradient"))
    rounded = max(row["fp32"] for row in worst.values())
    emit(
        "losses", value=value, baseline=None, target=f"<= {TOLERANCE} in values and gradients, in float32 too",
        holds=max(value, rounded) <= TOLERANCE, n=seeds, fp32=rounded,
        peer_fp32=max(row["peer_fp32"] for row in worst.values()), losses=worst,
    )  # fmt: skip


if __name__ == "__main__":
    main()
