"""Networks: a YAML file becomes a plain `torch.fx.GraphModule`."""
