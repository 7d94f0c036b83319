"""A valid params file whose line numbers the tests know."""

TEXT = """\
# line 1
ingest:
  dataset: digits
  path: data/digits.yaml
  val_fraction: 0.1   # kept
  test_fraction: 0.2
  seed: 0
validate:
  min_side: 4
  max_side: 100

preprocess:
  height: 8
  width: 8
  channels: 1
  resize: stretch
train:
  network: "networks/digits.yaml"
  network_parameters: {}
  epochs: 12
  batch_size: 64
  lr: 0.01
  flip: false
  threads: 1
evaluate: {batch_size: 500, worst: 25}
export:
  tolerance: 1e-4
register:
  metric: accuracy
search:
  trials: 8
  space:
    train.lr: {loguniform: [1.0e-3, 3.0e-2]}
    train.epochs:
      choice:
        - 4
        - 8
"""
