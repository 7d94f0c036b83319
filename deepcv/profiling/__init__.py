"""What a network costs: `observe` runs it once and tells each node's, `report.profile` gathers the figures of the whole.

Works on any `torch.fx.GraphModule`: one that `deepcv.nn.spec.build` made, or `torch.fx.symbolic_trace` of a module. It
stands beside `deepcv.nn` and not below it, so that a change here re-runs no stage of the pipeline.
"""
