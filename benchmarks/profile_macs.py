"""MACs of networks of torchvision, as DeepCV counts them, against figures that others published.

    python -m benchmarks.profile_macs [--quick]

Published: `_ops` in torchvision's weights metadata, which is given in GFLOPs there and means 10⁹ multiply-adds, to three
decimals (counted in 2022 with a counter of the same kind as torch's, so a near relative of ours); and, independent of it,
the figures of three papers. Parameters must be equal. Weights are random: MACs do not depend on them.
"""

import argparse
from typing import Any

import torch
from torch import fx
from torchvision import models

from benchmarks.result import emit
from deepcv.profiling.cross_check import flagged, opinions
from deepcv.profiling.observe import observe

_NETWORKS = (
    "resnet18", "mobilenet_v2", "shufflenet_v2_x1_0", "squeezenet1_1", "resnet50", "densenet121", "mobilenet_v3_large",
    "efficientnet_b0", "regnet_y_400mf", "vgg16", "convnext_tiny", "swin_t", "vit_b_16", "resnext50_32x4d",
)  # fmt: skip
_QUICK = 4
_SIDE = 224
# Multiply-adds in millions: Sandler 2018 (arXiv 1801.04381), Ma 2018 (1807.11164), Howard 2019 (1905.02244).
_PAPERS = {"mobilenet_v2": 300, "shufflenet_v2_x1_0": 146, "mobilenet_v3_large": 219}
_TOLERANCE = 0.02


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{_QUICK} networks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [_row(name) for name in (_NETWORKS[:_QUICK] if options.quick else _NETWORKS)]
    worst = max(abs(row[column] - 1) for row in rows for column in ("to_torchvision", "to_paper") if column in row)
    emit(
        "profile-macs", value=worst, baseline=None, target=f"<= {_TOLERANCE} from every published figure; parameters equal",
        holds=worst <= _TOLERANCE and all(row["parameters_equal"] for row in rows), n=len(rows), networks=rows,
    )  # fmt: skip


def _row(name: str) -> dict[str, Any]:
    meta = models.get_model_weights(name).DEFAULT.meta
    network = fx.symbolic_trace(models.get_model(name, weights=None))
    shape = (3, _SIDE, _SIDE)
    nodes = observe(network, shape)
    macs, parameters = sum(node.macs for node in nodes), sum(node.parameters for node in nodes)
    row: dict[str, Any] = {
        "name": name,
        "gmacs": round(macs / 1e9, 4),
        "to_torchvision": round(macs / 1e9 / meta["_ops"], 4),
        "parameters_equal": parameters == meta["num_params"],
        "flagged": flagged(opinions(network, shape), parameters, macs),
    }
    if name in _PAPERS:
        row["to_paper"] = round(macs / 1e6 / _PAPERS[name], 4)
    print(row)
    return row


if __name__ == "__main__":
    main()
