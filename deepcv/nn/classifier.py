"""A network with everything it needs around it, and the model file that holds both."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepcv.errors import DeepcvError
from deepcv.files import atomic, check_archive
from deepcv.nn.layers.whitening import WhiteningConv2d
from deepcv.nn.module import DeepcvModule
from deepcv.nn.spec import NetworkSpec, from_canonical
from deepcv.task import CLASSIFICATION, FurtherTarget, Task

_FORMAT = 3
_FORMAT_OF_TASKS = 4
_FORMAT_OF_FURTHER = 5
_READABLE = (1, 2, 3, 4, 5)  # 1 knew no views, 2 a `test_time_flip` that was true or false

TestTimeViews = Literal["one", "flip", "flip_shift"]


class ModelFileError(DeepcvError):
    """A model file is missing, damaged or of another format."""


@dataclass(frozen=True)
class ModelInfo:
    """What a classifier must be given and what it answers; plain values, stored in the model file.

    `classes` are the names of what `task` learns: of classes, labels or numbers.
    `recipe` is the image recipe (height, width, channels, resize); mean and std are per channel on the scale 0–1;
    `test_time_views` are the pictures of an image whose answers are averaged: itself; with its mirror image; with both moved by a
    pixel towards two corners, which count half as much together (Jordan 2024, arXiv 2404.00498).
    `further` are the outputs that learn a further target, and which; those of numbers have its units in eval mode.
    """

    dataset: str
    classes: tuple[str, ...]
    recipe: Mapping[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    test_time_views: TestTimeViews = "one"
    task: Task = CLASSIFICATION
    further: Mapping[str, FurtherTarget] = field(default_factory=dict)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return int(self.recipe["channels"]), int(self.recipe["height"]), int(self.recipe["width"])


class Classifier(nn.Module):
    """Normalisation and network: uint8 images (n, channels, height, width) to a mapping with `logits` (n, classes).

    Where the task is regression, `logits` are numbers: as the network makes them while it trains, with mean 0 and standard
    deviation 1 over the training images, and in eval mode in the units of the data. So are other outputs that learn numbers.
    A network of several inputs gets the images at the size that each has in its network file.
    """

    mean: Tensor
    std: Tensor
    target_mean: Tensor
    target_std: Tensor

    def __init__(self, network: nn.Module, info: ModelInfo) -> None:
        super().__init__()
        self.network = network
        spec = _spec_of(network)
        self.sizes = {name: dict(spec.sizes).get(name) for name in spec.inputs}
        self.resizes = any(self.sizes.values())
        self.test_time_views = info.test_time_views
        if self.test_time_views == "flip_shift" and min(info.input_shape[1:]) < 2:
            raise DeepcvError("train.test_time_views: flip_shift moves images by a pixel; expected sides of 2 or more")
        self.register_buffer("mean", torch.tensor(info.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(info.std).view(-1, 1, 1), persistent=False)
        self.task = info.task
        self.register_buffer("target_mean", torch.tensor(info.task.mean), persistent=False)
        self.register_buffer("target_std", torch.tensor(info.task.std), persistent=False)
        self.further = dict(info.further)
        for place, target in enumerate(self.further.values()):
            self.register_buffer(f"further_mean_{place}", torch.tensor(target.task.mean), persistent=False)
            self.register_buffer(f"further_std_{place}", torch.tensor(target.task.std), persistent=False)

    def forward(self, images_nchw: Tensor) -> dict[str, Tensor]:
        """Normalise and run the network; the memory layout of the images is kept. Only in eval mode there are several views."""
        images = self.normalise(images_nchw)
        if self.training:
            return self.answer(images)
        outputs = self._mean_of_views(images)
        return {**outputs, **{name: outputs[name].float() * std + mean for name, mean, std in self.scales()}}

    def scales(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Of each output that has numbers its name, and mean and standard deviation (k,) of these over the training images."""
        if self.task.kind == "regression":
            yield "logits", self.target_mean, self.target_std
        for place, (name, target) in enumerate(self.further.items()):
            if target.task.kind == "regression":
                yield name, self.get_buffer(f"further_mean_{place}"), self.get_buffer(f"further_std_{place}")

    def _mean_of_views(self, images: Tensor) -> dict[str, Tensor]:
        if self.test_time_views == "one":
            return self.answer(images)
        outputs = self._both_sides(images)
        if self.test_time_views == "flip":
            return outputs
        height, width = images.shape[2:]
        padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
        moved = _mean(*(self._both_sides(padded[:, :, at : at + height, at : at + width]) for at in (0, 2)))
        return _mean(outputs, moved)

    def _both_sides(self, images_nchw: Tensor) -> dict[str, Tensor]:
        return _mean(self.answer(images_nchw), self.answer(images_nchw.flip(3)))

    def answer(self, images_nchw: Tensor) -> dict[str, Tensor]:
        """Run the network on normalised images."""
        given = self.inputs(images_nchw).values() if self.resizes else (images_nchw,)
        outputs: dict[str, Tensor] = self.network(*given)
        return outputs

    def inputs(self, images_nchw: Tensor) -> dict[str, Tensor]:
        """What each input of the network takes of normalised images: themselves, or resized to its own size."""
        return {
            name: F.interpolate(images_nchw, size=size, mode="bilinear", antialias=True) if size else images_nchw
            for name, size in self.sizes.items()
        }

    def normalise(self, images_nchw: Tensor) -> Tensor:
        """Scale uint8 images to zero mean and unit variance over the training images, float32."""
        return (images_nchw.float() / 255 - self.mean) / self.std

    def fit_whitening(self, images_nchw: Tensor) -> None:
        """Compute the filters of whitening layers, where the network has any, from uint8 training images."""
        images = self.normalise(images_nchw)
        inputs, sources = self.inputs(images), {node.id: node.sources[0] for node in _spec_of(self.network).nodes}
        for path, module in self.network.named_modules():
            if isinstance(module, WhiteningConv2d):
                module.fit(inputs.get(sources.get(path, ""), images))


def answering(further: Mapping[str, FurtherTarget]) -> dict[str, FurtherTarget]:
    """Of the outputs that learn further targets those that answer: where several learn one, the first."""
    first: dict[str, str] = {}
    for output, target in further.items():
        first.setdefault(target.of, output)
    return {output: further[output] for output in first.values()}


def _mean(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: (output + second[name]) / 2 for name, output in first.items()}


def _spec_of(network: nn.Module) -> NetworkSpec:
    return network.spec if isinstance(network, DeepcvModule) else NetworkSpec((), ())


def create(canonical_spec: Mapping[str, Any], info: ModelInfo) -> Classifier:
    """Build a freshly initialised classifier; torch's global random state decides the weights."""
    return Classifier(build_network(from_canonical(canonical_spec), info.input_shape, len(info.classes)), info)


def build_network(spec: NetworkSpec, input_shape: tuple[int, int, int], classes: int) -> DeepcvModule:
    """Build a network that classifies; inputs that have a size of their own get the image at that size.

    Raises SpecError where its output `logits` is not one number per class (label, number), or where two inputs would get the same
    image.
    """
    _check_inputs(spec, input_shape)
    network = DeepcvModule.from_spec(spec, input_shape, classes)
    outputs: Any = network.graph.output_node().args[0]
    if "logits" not in outputs:
        raise spec.nodes[-1].error(f"no output is called logits; there are {', '.join(outputs)}")
    if (shape := outputs["logits"].meta["shape"]) != (classes,):
        node = next((node for node in spec.nodes if ("logits", node.id) in spec.outputs), spec.nodes[0])
        raise node.error(f"the output logits must be ({classes}), one number per class, got {shape}")
    return network


def _check_inputs(spec: NetworkSpec, input_shape: tuple[int, int, int]) -> None:
    seen: dict[Any, str] = {}
    for name, shape in spec.input_shapes(input_shape).items():
        if (other := seen.setdefault(shape, name)) != name:
            node = next((node for node in spec.nodes if name in node.sources), spec.nodes[0])
            raise node.error(
                f"the inputs {other} and {name} are both {'×'.join(map(str, shape))}: a training would give them the same "
                f"image; give one a size of its own (inputs: {{{other}: null, {name}: [height, width]}}), or train the "
                "encoder with one input, by the losses triplet or supcon (docs/training.md)"
            )


def save(path: Path, classifier: Classifier, canonical_spec: Mapping[str, Any], info: ModelInfo) -> None:
    """Write a model file; equal content gives equal bytes."""
    state = {key: value.detach().cpu().contiguous() for key, value in classifier.network.state_dict().items()}
    values = {key: value for key, value in asdict(info).items() if key not in ("task", "further")} | info.task.stored()
    # An older DeepCV must not take numbers for classes nor for numbers in other units; and classes need no newer one.
    form = _FORMAT if info.task == CLASSIFICATION else _FORMAT_OF_TASKS
    if info.further:
        values["further"] = {output: target.stored() for output, target in info.further.items()}
        form = _FORMAT_OF_FURTHER
    content = {"format": form, "spec": dict(canonical_spec), "info": values, "state_dict": state}
    with atomic(path) as aside, aside.open("wb") as file:
        torch.save(content, file)


def load(path: Path) -> tuple[Classifier, ModelInfo]:
    """Read a model file into a classifier in eval mode, fp32 on the CPU. Raises ModelFileError; runs no code of the file."""
    try:
        check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: missing; run `dvc repro train`") from error
    except Exception as error:  # torch raises several kinds for a damaged archive
        raise ModelFileError(f"{path}: damaged or not a model file ({error}); run `dvc repro train`") from error
    if not isinstance(content, dict) or content.get("format") not in _READABLE or "info" not in content:
        raise ModelFileError(f"{path}: not a model file of format {_FORMAT}; train again with this version")
    raw = content["info"]
    info = ModelInfo(
        raw["dataset"], tuple(raw["classes"]), raw["recipe"], tuple(raw["mean"]), tuple(raw["std"]),
        raw.get("test_time_views") or ("flip" if raw.get("test_time_flip") else "one"), Task.of_description(raw),
        {output: FurtherTarget.of_description(values) for output, values in raw.get("further", {}).items()},
    )  # fmt: skip
    classifier = create(content["spec"], info)
    classifier.network.load_state_dict(content["state_dict"])
    return classifier.eval(), info
