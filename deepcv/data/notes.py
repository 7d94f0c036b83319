"""What the checks note down while they look at a manifest."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray


class Notes:
    """Numbers by question, images flagged by check, checks that were skipped with the reason, words beside numbers."""

    def __init__(self, skipped: dict[str, str]) -> None:
        self.numbers: dict[str, float] = {}
        self.words: dict[str, str] = {}
        self.skipped = skipped
        self._flagged: list[pd.DataFrame] = []

    def flag(self, check: str, where: object, reasons: object) -> None:
        """Note the images at a mask or positions, with one reason for all or one for each."""
        positions = np.asarray(where)
        positions = np.flatnonzero(positions) if positions.dtype == bool else positions.astype(np.int64)
        if len(positions):
            self._flagged.append(pd.DataFrame({"check": check, "position": positions, "reason": reasons}))

    def number_by(self, rows: NDArray[np.int64]) -> None:
        """Count positions as those of these rows from now on."""
        self._flagged = [part.assign(position=rows[part["position"]]) for part in self._flagged]

    def table(self) -> pd.DataFrame:
        """All that was flagged: check, position and reason; an image once per check."""
        if not self._flagged:
            return pd.DataFrame({"check": [], "position": np.empty(0, np.int64), "reason": []})
        return pd.concat(self._flagged, ignore_index=True).drop_duplicates(["check", "position"], ignore_index=True)
