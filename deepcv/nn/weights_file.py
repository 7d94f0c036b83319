"""A YAML file that says which weights a training starts from, and how they go into its network.

    source: timm                     # none | file | url | torchvision | timm | registered
    name: resnet18.a1_in1k           # of torchvision and timm; `version: IMAGENET1K_V1` of torchvision's
    rename: [["", "net."]]           # rules in their order, see `weights.rename`
    head: [net.fc]                   # parts that may differ and start anew
    strict: true                     # everything else must fit

`file` takes `path`, beside the YAML file, and `sha256`; `url` takes `url` and `sha256`; `registered` takes `model`, with a
version's number. So the YAML file alone, which DVC watches, decides what is loaded. Beside `path` or
`url`, `preprocessing: timm/NAME` or `torchvision/NAME/VERSION` says which weights these are, and so what images they expect; a
model file of the stage `train` says so itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from deepcv.files import sha256
from deepcv.nn import pretrained
from deepcv.nn.spec.errors import closest
from deepcv.nn.weights import LoadReport, Preprocessing, Rule, Weights, WeightsError, load_into

_KEYS: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "file": ("path", "sha256"),
    "url": ("url", "sha256"),
    "torchvision": ("name", "version"),
    "timm": ("name",),
    "registered": ("model",),
}
_LOADING = ("rename", "head", "strict")
_BROUGHT = ("file", "url")  # which of others do not tell what images they expect
_OPTIONAL = {"version": "DEFAULT"}

Registered = Callable[[str], Weights]  # `deepcv.network_registry.weights`: networks know no registry


@dataclass(frozen=True)
class WeightsFile:
    """What such a file says; `values` are the keys of its source."""

    origin: Path
    folder: Path
    source: str
    values: Mapping[str, str]
    rename: tuple[Rule, ...] = ()
    head: tuple[str, ...] = ()
    strict: bool = True
    preprocessing: Preprocessing | None = None

    def fetch(self, registered: Registered) -> Weights | None:
        """The weights, None for `source: none`. Raises WeightsError, NetworkFileError, RegistryError."""
        values = self.values
        match self.source:
            case "file":
                return self._brought(self._file(self.folder / values["path"]))
            case "url":
                return self._brought(pretrained.from_url(values["url"], values["sha256"]))
            case "torchvision":
                return pretrained.from_torchvision(values["name"], values["version"])
            case "timm":
                return pretrained.from_timm(values["name"])
            case "registered":
                return registered(values["model"])
        return None

    def load_into(self, network: nn.Module, weights: Weights) -> LoadReport:
        """Copy the weights in the way that the file says; see `weights.load_into`."""
        return load_into(network, weights, rules=self.rename, head=self.head, strict=self.strict)

    def _brought(self, weights: Weights) -> Weights:
        """With the images that this file says they expect, where it says so."""
        return replace(weights, preprocessing=self.preprocessing or weights.preprocessing)

    def _file(self, path: Path) -> Weights:
        weights = pretrained.from_file(path)
        if (found := sha256(path)) != self.values["sha256"]:
            raise WeightsError(
                f"{self.origin}: expected {path} with the SHA-256 {self.values['sha256']}, it has {found}"
            )
        return weights


def read(path: Path, folder: Path | None = None) -> WeightsFile:
    """Read such a file; `folder` is where paths in it begin, by default its own. Raises WeightsError that says what was expected."""
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise WeightsError(f"{path}: cannot be read: {error}") from error
    source = content.pop("source", None) if isinstance(content, dict) else None
    if not isinstance(source, str) or source not in _KEYS:
        raise WeightsError(f"{path}: expected `source:` with one of {', '.join(_KEYS)}, got {source!r}")
    known = (
        *_KEYS[source],
        *(_LOADING if source != "none" else ()),
        *(("preprocessing",) if source in _BROUGHT else ()),
    )
    for key in content:
        if key not in known:
            raise WeightsError(f"{path}: unknown key {key!r}; {closest(key, known)}")
    values = {key: _text(path, key, content.get(key, _OPTIONAL.get(key))) for key in _KEYS[source]}
    if source == "registered" and not values["model"].rpartition("/")[2].isdecimal():
        raise WeightsError(
            f"{path}: expected `model: models:/NAME/VERSION`, as an alias moves unseen, got {values['model']!r}"
        )
    return WeightsFile(
        path, folder or path.parent, source, values, _rules(path, content), _head(path, content), _strict(path, content),
        _preprocessing(path, content),
    )  # fmt: skip


def _text(path: Path, key: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise WeightsError(f"{path}: expected `{key}: <text>`, got {value!r}")
    return value


def _rules(path: Path, content: Mapping[str, Any]) -> tuple[Rule, ...]:
    rules = content.get("rename", [])
    good = isinstance(rules, list) and all(
        isinstance(rule, list) and len(rule) == 2 and isinstance(rule[0], str) and isinstance(rule[1], str | None)
        for rule in rules
    )
    if not good:
        raise WeightsError(
            f"{path}: expected `rename: [[pattern, replacement], …]`, replacement a text or null, got {rules!r}"
        )
    return tuple((pattern, replacement) for pattern, replacement in rules)


def _head(path: Path, content: Mapping[str, Any]) -> tuple[str, ...]:
    head = content.get("head", [])
    if not isinstance(head, list) or not all(isinstance(part, str) and part for part in head):
        raise WeightsError(f"{path}: expected `head: [<part>, …]`, got {head!r}")
    return tuple(head)


def _strict(path: Path, content: Mapping[str, Any]) -> bool:
    strict = content.get("strict", True)
    if not isinstance(strict, bool):
        raise WeightsError(f"{path}: expected `strict: true` or false, got {strict!r}")
    return strict


def _preprocessing(path: Path, content: Mapping[str, Any]) -> Preprocessing | None:
    if "preprocessing" not in content:
        return None
    text = _text(path, "preprocessing", content["preprocessing"])
    try:
        return pretrained.preprocessing_of(text)
    except WeightsError as error:
        raise WeightsError(f"{path}: preprocessing: {error}") from None
