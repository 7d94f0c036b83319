"""Files of networks and of weights, `.pt` and `.safetensors`: reading one runs no code that is in it."""

import json
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from deepcv.errors import DeepcvError
from deepcv.files import atomic, check_archive
from deepcv.nn.module import DeepcvModule, content_of, from_content

_FORMAT = 1
_KEY = "deepcv"  # of the metadata of a .safetensors file
_ARCHIVES = (".pt", ".pth")
_SAFETENSORS = ".safetensors"
SUFFIXES = (*_ARCHIVES, _SAFETENSORS)


class NetworkFileError(DeepcvError):
    """A file of a network or of weights is missing, damaged or of another kind."""


def save(path: Path, network: DeepcvModule) -> None:
    """Write a network with all that `content_of` says, on the CPU; the suffix decides the format.

    Raises NetworkFileError where a parametrization is not one of torch's own: only a pickle can hold its code.
    """
    content = {**content_of(network), "format": _FORMAT}
    for tensor, chain in content["parametrizations"].items():
        if foreign := [type(one).__name__ for one in chain if isinstance(one, nn.Module)]:
            raise NetworkFileError(
                f"{path}: {tensor} is computed by {foreign[0]}, whose code no file can hold; bake it in with "
                "torch.nn.utils.parametrize.remove_parametrizations, or pickle the network"
            )
    state = {key: value.cpu().contiguous() for key, value in content.pop("state_dict").items()}
    write(path, state, content)


def load(path: Path) -> DeepcvModule:
    """Read what `save` has written, on the CPU, each layer in the mode that it had. Raises NetworkFileError."""
    state, content = read(path)
    if content.get("format") != _FORMAT or "input_shapes" not in content:
        raise NetworkFileError(f"{path}: holds no network of format {_FORMAT}; deepcv.nn.weights reads mere weights")
    try:
        return from_content({**content, "state_dict": state})
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, DeepcvError) as error:
        raise NetworkFileError(f"{path}: its network cannot be built: {type(error).__name__}: {error}") from error


def write(path: Path, state: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
    """Write tensors, contiguous and on the CPU, with plain data beside them; equal content gives equal bytes."""
    if path.suffix not in SUFFIXES:
        raise NetworkFileError(f"{path}: expected a name that ends in {' or '.join(SUFFIXES)}")
    with atomic(path) as aside:
        if path.suffix == _SAFETENSORS:
            from safetensors.torch import save_file  # a machine that trains may lack it

            save_file(dict(state), aside, metadata={_KEY: json.dumps(content, sort_keys=True)})
        else:
            with aside.open("wb") as file:
                torch.save({**content, "state_dict": dict(state)}, file)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file and the plain data beside them; of others' files too, as far as they hold tensors alone.

    A `.pt` file may be a state_dict, or hold one as `state_dict`, `model_state_dict` or `model`. Raises NetworkFileError.
    """
    if path.suffix not in SUFFIXES:
        raise NetworkFileError(f"{path}: expected a file that ends in {' or '.join(SUFFIXES)}")
    if not path.is_file():
        raise NetworkFileError(f"{path}: there is no such file")
    try:
        return _read_safetensors(path) if path.suffix == _SAFETENSORS else _read_archive(path)
    except ImportError:
        raise NetworkFileError(f"{path}: needs the package safetensors: pip install safetensors") from None
    except NetworkFileError:
        raise
    except Exception as error:  # torch, zipfile and safetensors raise several kinds for a damaged file
        text = str(error).strip().partition("\n")[0]
        if isinstance(error, UnpicklingError) or "weights_only" in text:
            text = type(error).__name__  # torch's text advises to run the code that is in the file
        raise NetworkFileError(f"{path}: damaged, or not a file of tensors alone ({text})") from error


def _read_archive(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"  # files of torch before 1.6 are none, and have no checksum
    if is_zip:
        check_archive(path)
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        raise NetworkFileError(f"{path}: expected a state_dict, got {type(content).__name__}")
    name = next((n for n in ("state_dict", "model_state_dict", "model") if isinstance(content.get(n), dict)), None)
    state = content.pop(name) if name else content
    beside = content if name else {}
    if wrong := [key for key, value in state.items() if not isinstance(value, Tensor)]:
        raise NetworkFileError(f"{path}: expected tensors alone, but {wrong[0]!r} is {type(state[wrong[0]]).__name__}")
    return dict(state), beside


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import safe_open

    with safe_open(path, framework="pt", device="cpu") as file:
        beside: Any = json.loads((file.metadata() or {}).get(_KEY, "{}"))
        # A mapped tensor may begin at any byte, and kernels then add in another order: clones compute the same last bits.
        return {key: file.get_tensor(key).clone() for key in file.keys()}, dict(beside)  # noqa: SIM118  no mapping
