"""Errors of network files: the place, the node, what was expected, the closest valid name."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from deepcv.errors import DeepcvError


class SpecError(DeepcvError):
    """A network file that cannot be read or built. The message is complete and starts with file and line."""


@dataclass(frozen=True)
class Where:
    """A place in a network file; `note` says how it was reached (a template and its use)."""

    file: str = ""
    line: int = 0
    note: str = ""

    def error(self, message: str) -> SpecError:
        """The error to raise for this place."""
        place = f"{self.file}:{self.line}: " if self.file and self.line else f"{self.file}: " if self.file else ""
        return SpecError(f"{place}{message}{f' ({self.note})' if self.note else ''}")


def closest(name: object, known: Iterable[str]) -> str:
    """The end of a message about an unknown name."""
    names = list(known)
    matches = get_close_matches(str(name), names, n=1, cutoff=0.5)
    if matches:
        return f"the closest is {matches[0]!r}"
    return f"there are {', '.join(names)}" if names else "there are none"
