"""Measurements: each script runs DeepCV and its peer in one run and prints one JSON line last."""
