"""Hyperparameter search with NNI: every trial is one training run as the train stage does it."""
