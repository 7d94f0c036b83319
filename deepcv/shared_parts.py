"""A part of networks that several processes train together, e.g. a common embedding of images: one file, no update lost.

A process reads the part with its version, trains for as long as it likes, and writes it back. Where another has written
meanwhile, nothing is overwritten: `replace` refuses, `update` computes the change again on what is there now. The lock is held
for the time of a write alone. `deepcv.artifacts.publish_part` puts a version into the registry, whose database is too slow
to take every update.
"""

import fcntl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from deepcv.errors import DeepcvError
from deepcv.nn import network_file

State = Mapping[str, Tensor]


class StaleError(DeepcvError):
    """A part was written by another process since it was read."""


@dataclass(frozen=True)
class Stored:
    """The tensors of a part by their keys inside it; the version is 1 for the first, and one more for each update."""

    version: int
    state: dict[str, Tensor]


class SharedPart:
    """A part in a file, `.safetensors` or `.pt`, on a disk of this machine; beside it lies a lock."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Stored:
        """The newest version, version 0 without tensors where nothing was written yet. Raises NetworkFileError."""
        if not self.path.exists():
            return Stored(0, {})
        state, beside = network_file.read(self.path)
        try:
            return Stored(int(beside["version"]), state)
        except (KeyError, TypeError, ValueError):
            raise network_file.NetworkFileError(f"{self.path}: not a shared part; it says no version") from None

    def replace(self, state: State, *, read: int) -> int:
        """Write a new version and return its number. Raises StaleError where `read`, the version it is made from, is not the newest."""
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
        with self._locked():
            newest = self.read().version
            if newest != read:
                raise StaleError(
                    f"{self.path}: version {newest} was written since version {read} was read; read again and repeat the change"
                )
            network_file.write(self.path, tensors, {"version": newest + 1})
        return newest + 1

    def update(self, change: Callable[[dict[str, Tensor]], State]) -> int:
        """Write what `change` makes of the newest state and return the version; `change` is called again where another was faster."""
        while True:
            stored = self.read()
            try:
                return self.replace(change(stored.state), read=stored.version)
            except StaleError:
                continue

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(f".{self.path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed, also by the end of a process
            yield
