"""The spec engine: `load` reads a YAML network file, `build` makes the network.

A file has `parameters`, `templates`, `nodes` and `outputs`; `networks/digits.yaml` shows all four.
"""

from deepcv.nn.spec.compile import build
from deepcv.nn.spec.errors import SpecError
from deepcv.nn.spec.expand import ZOO, load, zoo
from deepcv.nn.spec.lowering import open_choices
from deepcv.nn.spec.model import NetworkSpec, NodeSpec, from_canonical

__all__ = ["ZOO", "NetworkSpec", "NodeSpec", "SpecError", "build", "from_canonical", "load", "open_choices", "zoo"]
