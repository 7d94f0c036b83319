"""A YAML file that says what a dataset is: `source: <kind>` and that kind's keys."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

import yaml

from deepcv.data.samples import DataError
from deepcv.data.sources.tree import Tree

NAME = "dataset.yaml"
_ROOT = PurePosixPath()


@dataclass(frozen=True)
class Description:
    """The values of a file that people read as `origin`; `base` is the folder in a tree that its paths start from."""

    origin: str
    values: Mapping[str, object]
    base: PurePosixPath = _ROOT

    @property
    def kind(self) -> object:
        """What `source:` says; None where it is missing."""
        return self.values.get("source")

    def only(self, *keys: str) -> None:
        """Raise DataError where another key than these stands there."""
        if unknown := sorted(str(key) for key in self.values if key not in {"source", *keys}):
            raise DataError(
                f"{self.origin}: unknown keys {', '.join(unknown)}; source {self.kind} takes {', '.join(keys) or 'no keys'}"
            )

    def text(self, key: str, default: str | None = None) -> str:
        """Return a text. Raises DataError where it is missing or no text."""
        value = self.values.get(key, default)
        if not isinstance(value, str) or not value:
            raise DataError(f"{self.origin}: expected `{key}: <text>`, got {value!r}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of texts, empty where it is missing. Raises DataError where it is something else."""
        values = self.values.get(key, [])
        if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
            raise DataError(f"{self.origin}: expected `{key}: [<text>, …]`, got {values!r}")
        return tuple(values)

    def place(self, key: str, default: str | None = None) -> PurePosixPath:
        """Return a path in the tree."""
        return self.inside(self.text(key, default))

    def places(self, key: str, default: str | None = None) -> dict[str | None, PurePosixPath]:
        """Return the path that `key` gives under None, or its paths by split."""
        value = self.values.get(key, default)
        if not isinstance(value, dict):
            return {None: self.place(key, default)}
        found: dict[str | None, PurePosixPath] = {}
        for split, path in value.items():
            if split not in {"train", "val", "test"} or not isinstance(path, str):
                raise DataError(
                    f"{self.origin}: {key}: expected a path, or `train`, `val`, `test`, each with a path; got {split!r}: {path!r}"
                )
            found[split] = self.inside(path)
        return found

    def inside(self, path: str) -> PurePosixPath:
        """Put a path below `base`. Raises DataError where it leads out of the dataset: DVC would not see changes there."""
        place = PurePosixPath(path)
        if place.is_absolute() or ".." in place.parts:
            raise DataError(
                f"{self.origin}: {path!r} leads out of the dataset; expected a path below the folder of this file "
                "(DVC sees changes only in what ingest.path names)"
            )
        return self.base / place


def parse(content: bytes, origin: str, base: PurePosixPath = _ROOT) -> Description:
    """Read a description. Raises DataError."""
    try:
        values = yaml.safe_load(content.decode("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{origin}: not valid YAML: {error}") from error
    return Description(origin, values if isinstance(values, dict) else {}, base)


def find(tree: Tree, name: str = NAME) -> Description | None:
    """Read the file of this name at the tree's root, or in the one folder that holds everything; None where there is none."""
    tops = {file.parts[0] for file in tree.files}
    for base in (_ROOT, *(map(PurePosixPath, tops) if len(tops) == 1 else ())):
        if base / name in tree.files:
            return parse(tree.read(base / name), str(tree.origin / base / name), base)
    return None
