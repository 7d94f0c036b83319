"""Fixtures of the end-to-end tests."""

from conftest_end_to_end import made, project, tree

__all__ = ["made", "project", "tree"]
