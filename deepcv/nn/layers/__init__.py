"""Layers that torch does not have, one module each."""
