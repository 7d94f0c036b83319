"""Where weights come from: a file, torchvision, timm, or an address with the digest of what must be there.

Weights of registered models come from `deepcv.network_registry`. No source runs code of a file.
"""

import hashlib
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deepcv.files import atomic, sha256
from deepcv.home import state_dir
from deepcv.nn import network_file
from deepcv.nn.weights import Preprocessing, Weights, WeightsError, of_recipe

_DIGEST = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 20
_TIMEOUT_S = 60


def from_file(path: Path) -> Weights:
    """Weights of a `.pt`, `.pth` or `.safetensors` file, ours or others'; a model file of the stage `train` tells its images too.

    Raises NetworkFileError.
    """
    return _read(path, str(path))


def _read(path: Path, origin: str) -> Weights:
    state, beside = network_file.read(path)
    match beside:
        case {
            "spec": _,
            "info": {"mean": mean, "std": std, "recipe": {"height": _, "width": _, "resize": _} as recipe},
        }:
            return Weights(state, origin, of_recipe(mean, std, recipe))
    return Weights(state, origin)


def from_torchvision(name: str, version: str = "DEFAULT") -> Weights:
    """Weights of torchvision, e.g. `resnet18` and `IMAGENET1K_V1`, from torch's folder of downloads or the network."""
    chosen = _of_torchvision(name, version)
    origin = f"torchvision {name} {chosen.name}"
    try:
        state = chosen.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # of the network, of the digest, of a damaged file
        raise _not_there(origin, chosen.url, error) from error
    return Weights(state, origin, torchvision_preprocessing(name, version))


def torchvision_preprocessing(name: str, version: str = "DEFAULT") -> Preprocessing:
    """The images that these weights expect; nothing is downloaded. Raises WeightsError where torchvision has no such weights."""
    preset: Any = _of_torchvision(name, version).transforms()
    (crop,), (resize,) = preset.crop_size[:1], preset.resize_size[:1]
    return Preprocessing(
        tuple(preset.mean), tuple(preset.std), (crop, crop), str(preset.interpolation.value), round(crop / resize, 4)
    )


def _of_torchvision(name: str, version: str) -> Any:
    from torchvision import models  # a machine that trains other networks may lack it

    try:
        return models.get_model_weights(name)[version]
    except (ValueError, KeyError):
        known = [w.name for w in models.get_model_weights(name)] if name in models.list_models() else []
        hint = f"it has {', '.join(known)}" if known else "torchvision.models.list_models() names the models"
        raise WeightsError(f"torchvision has no weights {version!r} of {name!r}; {hint}") from None


def from_timm(name: str) -> Weights:
    """Weights of timm, e.g. `resnet18.a1_in1k`, from its folder of downloads or the network."""
    preprocessing = timm_preprocessing(name)
    import timm

    try:
        state = timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # of the network, of the hub, of a damaged file
        source = timm.get_pretrained_cfg(name)
        address = getattr(source, "url", None) or f"the hub's {getattr(source, 'hf_hub_id', None) or name}"
        raise _not_there(f"timm {name}", str(address), error) from error
    return Weights(state, f"timm {name}", preprocessing)


def timm_preprocessing(name: str) -> Preprocessing:
    """The images that these weights expect; nothing is downloaded. Raises WeightsError where timm has no such weights."""
    try:
        import timm
    except ImportError:
        raise WeightsError("weights of timm need the package timm: pip install timm") from None
    known = timm.list_pretrained(f"{name.partition('.')[0]}*") if timm.is_model(name) else []
    if name not in known and not any(other.startswith(f"{name}.") for other in known):
        hint = f"it has {', '.join(known[:5])}" if known else "timm.list_pretrained() names them"
        raise WeightsError(f"timm has no weights {name!r}; {hint}")
    source: Any = timm.get_pretrained_cfg(name)
    _, height, width = source.input_size
    crop = float(source.crop_pct)
    return Preprocessing(tuple(source.mean), tuple(source.std), (height, width), str(source.interpolation), crop)


def preprocessing_of(text: str) -> Preprocessing:
    """The images that `timm/NAME` or `torchvision/NAME/VERSION` expects; nothing is downloaded. Raises WeightsError."""
    match text.split("/"):
        case ["timm", name]:
            return timm_preprocessing(name)
        case ["torchvision", name, version]:
            return torchvision_preprocessing(name, version)
    raise WeightsError(f"expected timm/NAME or torchvision/NAME/VERSION, got {text!r}")


def from_url(url: str, digest: str, folder: Path | None = None) -> Weights:
    """Weights of an address, kept in `folder`, by default the project's state folder; `digest` is the SHA-256 that they must have.

    A file of that digest that is there already is taken without the network. Raises WeightsError, NetworkFileError.
    """
    if not _DIGEST.fullmatch(digest):
        raise WeightsError(
            f"{url}: needs the file's SHA-256, 64 digits 0-9 a-f, got {digest!r}; `sha256sum FILE` tells it"
        )
    address = urlsplit(url)
    if address.scheme not in ("http", "https"):
        raise WeightsError(f"{url}: expected an address that begins with https:// or http://")
    if (suffix := Path(address.path).suffix) not in network_file.SUFFIXES:
        raise WeightsError(f"{url}: expected a file that ends in {' or '.join(network_file.SUFFIXES)}")
    path = (folder or state_dir() / "weights") / f"{digest}{suffix}"
    if not path.is_file() or sha256(path) != digest:
        _download(url, digest, path)
    return _read(path, url)


def _download(url: str, digest: str, path: Path) -> None:
    seen = hashlib.sha256()
    with atomic(path) as aside:
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer, aside.open("wb") as file:  # noqa: S310  http(s) alone
                while chunk := answer.read(_CHUNK):
                    seen.update(chunk)
                    file.write(chunk)
        except (OSError, urllib.error.URLError) as error:
            raise _not_there(url, url, error) from error
        if seen.hexdigest() != digest:
            raise WeightsError(
                f"{url}: expected the SHA-256 {digest}, got {seen.hexdigest()}: the file has changed, or someone changed it. "
                "Nothing is kept"
            )


def _not_there(origin: str, address: str, error: Exception) -> WeightsError:
    reason = str(error).strip().partition("\n")[0]
    return WeightsError(
        f"{origin}: the weights are not on this machine and cannot be downloaded ({type(error).__name__}: {reason}). "
        f"Download {address} on a machine that can, and name the file instead: `source: file` with `path`, `sha256` and "
        "`preprocessing` (docs/networks.md)"
    )
