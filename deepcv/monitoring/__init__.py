"""Watching data after training: what a deployed model gets against what it was trained on."""
