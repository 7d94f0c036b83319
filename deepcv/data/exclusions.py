"""The images that `ingest` leaves out whatever their name or folder, by sha256: `deepcv data forget --apply` lists them."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from deepcv.data.samples import DataError, Sample
from deepcv.files import write_text

FILE = Path("data/exclusions.txt")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_HEADER = "# Images that `ingest` leaves out: one sha256 of a file's bytes per line.\n"


def read(path: Path) -> frozenset[str]:
    """Return the listed sha256s, none where there is no file. Raises DataError with the line that is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return frozenset()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected one sha256 per line, it cannot be read ({error})") from error
    listed = set()
    for number, line in enumerate(text.splitlines(), 1):
        digest = line.split("#")[0].strip().lower()
        if digest and not _DIGEST.fullmatch(digest):
            raise DataError(f"{path}:{number}: expected a sha256 (64 hexadecimal digits), got {digest!r}")
        listed.add(digest)
    return frozenset(listed - {""})


def add(path: Path, sha256: str) -> bool:
    """List an image; return whether it was not listed before. What stands in the file stays. Raises DataError."""
    if sha256 in read(path):
        return False
    text = path.read_text(encoding="utf-8") if path.exists() else _HEADER
    write_text(path, text + ("" if not text or text.endswith("\n") else "\n") + sha256 + "\n")
    return True


class Kept:
    """Samples without those that are listed; `left_out` counts these as they come."""

    def __init__(self, samples: Iterable[Sample], listed: frozenset[str]) -> None:
        self.left_out = 0
        self._samples = samples
        self._listed = listed

    def __iter__(self) -> Iterator[Sample]:
        for sample in self._samples:
            if self._listed and hashlib.sha256(sample.encoded).hexdigest() in self._listed:
                self.left_out += 1
            else:
                yield sample
