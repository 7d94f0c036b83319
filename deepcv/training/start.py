"""The weights that a training starts from."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from torch import nn

from deepcv.data.shards import Dataset
from deepcv.nn import weights_file
from deepcv.nn.weights import LoadReport, Weights, WeightsError, check_preprocessing, steps_of
from deepcv.nn.weights_file import WeightsFile

Moments = tuple[float, ...]


@dataclass(frozen=True)
class Start:
    """Weights, and the file that says how they go into a network."""

    file: WeightsFile
    weights: Weights

    @classmethod
    def read(cls, path: Path, registered: Callable[[str], Weights], relative_to: Path | None = None) -> Self | None:
        """The weights that a file of `train.weights` names, None for none.

        A path in it is relative to its own folder, or to `relative_to` where it is a copy. Raises WeightsError,
        NetworkFileError or RegistryError.
        """
        file = weights_file.read(path, relative_to)
        weights = file.fetch(registered)
        return None if weights is None else cls(file, weights)

    def load_into(self, network: nn.Module) -> LoadReport:
        """Copy the weights in the way that the file says. Raises WeightsError."""
        return self.file.load_into(network, self.weights)

    def normalisation(self, shards: Dataset) -> tuple[Moments, Moments]:
        """Mean and std per channel on the scale 0–1: those of the images that the weights were trained on, where they are known.

        Raises WeightsError where those have other channels.
        """
        expected = self.weights.preprocessing
        if expected is None:
            return shards.mean, shards.std
        if len(expected.mean) != len(shards.mean):
            raise WeightsError(
                f"{self.file.origin}: {self.weights.origin} was trained on images of {len(expected.mean)} channels, the "
                f"prepared images have {len(shards.mean)}; set preprocess.channels"
            )
        return expected.mean, expected.std

    def differences(self, shards: Dataset) -> list[str]:
        """One sentence for each thing in which the prepared images differ from those that the weights were trained on."""
        expected = self.weights.preprocessing
        if expected is None:
            return []
        height, width = shards.input_shape[1:]
        resize, keep = str(shards.recipe["resize"]), float(shards.recipe.get("keep", 1.0))
        moments, steps = self.normalisation(shards), steps_of(shards.recipe)
        return check_preprocessing(expected, *moments, (height, width), resize, keep, steps)
