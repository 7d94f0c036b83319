"""The learning curve as it lies in data/model/history.csv, and within epochs in steps.csv."""

import csv
from pathlib import Path


def read_history(path: Path) -> list[dict[str, float]]:
    """Return one mapping per line; keys are the columns of the file."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
