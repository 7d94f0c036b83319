"""Networks: a YAML file becomes a plain `torch.fx.GraphModule`, or one that knows its spec, `DeepcvModule`."""

from deepcv.nn.module import DeepcvModule

__all__ = ["DeepcvModule"]
