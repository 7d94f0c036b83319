"""Batches of training images: of prepared ones that lie on the training device as uint8, or of crops made as they are asked for."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from deepcv.data.augmentation import Augmentation, Recipe, gather, mixing, permutation
from deepcv.data.augmentation.recipe import mix, pictures
from deepcv.data.balance import balanced
from deepcv.data.shards import Split
from deepcv.errors import DeepcvError

_NOTHING_MORE = Recipe()
_NONE: Mapping[str, Tensor] = {}


@dataclass(frozen=True)
class Crops:
    """Training images that change with the epoch: `take` makes uint8 (b, *size, channels), on the CPU, for (samples (b,), epoch).

    Sample s is image s % n, with draws of its own. `labels` are those of all n images, (n,) or (n, k), `further` the
    further targets by name, (n, k); `size` is (height, width).
    """

    take: Callable[[Tensor, int], Tensor]
    labels: NDArray[Any]
    size: tuple[int, int]
    further: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Views:
    """How many pictures of an image a batch has, each with draws of its own.

    With `first: clean` the first has no operations and no policy, and all have the flip, shift and cutout of the first: the views
    of AugMix's consistency loss (Hendrycks et al. 2020). Else each is augmented by itself, as contrastive losses want.
    """

    count: int = 1
    first: Literal["augmented", "clean"] = "augmented"


_ONE_VIEW = Views()
_VIEW_SEED, _SEEDS = 0x5BD1E995, 2**31
_VIEW_EPOCH = 2**20  # crops know their seed already


class Batch(NamedTuple):
    """Images `(b, channels, height, width)`, uint8, channels last in memory, and their targets.

    Targets are class numbers, int64 `(b,)`, or with MixUp or CutMix probabilities, float32 `(b, classes)`; of labels 0 and 1 and of
    numbers they are float32 `(b, k)`, and so are the `further` targets, by name. With several `views` of each image there are
    views·b images, view by view.
    """

    images_nchw: Tensor
    targets: Tensor
    further: Mapping[str, Tensor] = _NONE

    @property
    def size(self) -> int:
        """How many images there are, however many views of each."""
        return self.targets.shape[0]

    @property
    def views(self) -> int:
        """How many pictures of each image there are."""
        return self.images_nchw.shape[0] // self.size

    def first_view(self, output: Tensor) -> Tensor:
        """Of an output for all pictures, the part for the first of each image."""
        return output if output.shape[0] == self.size else output[: self.size]

    def split(self, pieces: int) -> "list[Batch]":
        """The batch in at most so many pieces, as equal as they can be."""
        if pieces == 1:
            return [self]
        size = -(-len(self.targets) // pieces)
        images = self.images_nchw.unflatten(0, (self.views, -1)).split(size, dim=1)
        further = {name: targets.split(size) for name, targets in self.further.items()}
        return [
            Batch(part.flatten(0, 1), targets, {name: parts[place] for name, parts in further.items()})
            for place, (part, targets) in enumerate(zip(images, self.targets.split(size), strict=True))
        ]


class TrainLoader:
    """Shuffled, augmented batches of one epoch; set `epoch`, and `first` to begin with a later batch, before each pass.

    A last partial batch is left out. A `recipe` that mixes needs to know how many `classes` there are. Where `size` (height,
    width) is set, the augmented images are resized to it. Of each batch of `batch_size` images this is the share of process
    `rank` of `ranks`, equally long ones; raises DeepcvError where it does not divide so. With `balance` above 0 an epoch of the
    same length visits images of rare classes more often (see `balanced`); each visit of an image has draws of its own.
    """

    def __init__(
        self, split: Split | Crops, *, batch_size: int, augmentation: Augmentation, seed: int, device: torch.device,
        recipe: Recipe = _NOTHING_MORE, classes: int = 0, views: Views = _ONE_VIEW, balance: float = 0.0,
        rank: int = 0, ranks: int = 1,
    ) -> None:  # fmt: skip
        if recipe.mixes and classes < 1:
            raise ValueError("MixUp and CutMix need the number of classes")
        self.views = views
        self._crops = split if isinstance(split, Crops) else None
        if isinstance(split, Split):
            self.images_nhwc = torch.from_numpy(np.array(split.images_nhwc)).to(device)
        size = split.size if isinstance(split, Crops) else split.images_nhwc.shape[1:3]
        self._labels = torch.from_numpy(np.array(split.labels))
        self.targets = self._labels.to(device)
        self.further = {name: torch.from_numpy(np.array(one)).to(device) for name, one in split.further.items()}
        self.balance = balance
        self.batch_size = min(batch_size, len(self.targets))
        if self.batch_size % ranks:
            raise DeepcvError(
                f"a batch of {self.batch_size} images does not divide into equal shares for {ranks} processes; set train.batch_size "
                f"to a multiple of {ranks}, of at most the {len(self.targets)} images of the train split"
            )
        self._share = self.batch_size // ranks
        self._begin = rank * self._share
        self.augmentation = augmentation
        self.recipe, self.classes = recipe, classes
        self._size = tuple(size)
        self.policies = recipe.policies(*size)
        self.seed = seed
        self.epoch = 0
        self.first = 0
        self.size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.targets) // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        order = self.order()
        for number in range(self.first, len(self)):
            start = number * self.batch_size + self._begin
            if self.policies or self.recipe.mixes or self.views.count > 1:
                batch = self.at(order, torch.arange(start, start + self._share, device=order.device))
            else:
                index, source = self._source(order[start : start + self._share])
                images_nhwc = gather(source, index, self.augmentation, self.seed, self.epoch, taken=self._taken)
                batch = Batch(images_nhwc.permute(0, 3, 1, 2), self.targets_of(index), self.further_of(index))
            yield batch if self.size is None else batch._replace(images_nchw=resized(batch.images_nchw, self.size))

    def use(self, augmentation: Augmentation, recipe: Recipe) -> None:
        """Augment otherwise from the next pass on."""
        self.augmentation, self.recipe = augmentation, recipe
        self.policies = recipe.policies(*self._size)

    def order(self) -> Tensor:
        """Return the samples (n,) of this epoch in their order, int64; where there are crops or policies on the CPU.

        A sample is an image's number, to which n is added for each time that the epoch has visited it before.
        """
        shuffled = permutation(self.seed, self.epoch, len(self.targets), self._home)
        if not self.balance:
            return shuffled
        return balanced(self._labels, self.balance, self.seed, self.epoch).to(self._home)[shuffled]

    def targets_of(self, samples: Tensor) -> Tensor:
        """Return the targets (b,) or (b, k) of samples (b,), on the training device."""
        return self.targets[self._images_of(samples)]

    def further_of(self, samples: Tensor) -> Mapping[str, Tensor]:
        """Return the further targets (b, k) of samples (b,) by name, on the training device."""
        if not self.further:
            return _NONE
        images = self._images_of(samples)
        return {name: targets[images] for name, targets in self.further.items()}

    def at(self, order: Tensor, places: Tensor) -> Batch:
        """Return the samples at `places` (b,) of the epoch's order; no other part of the batch has a say in them."""
        index = order[places]
        if self.views.count > 1:
            made = torch.cat([self._view(index, number) for number in range(self.views.count)])
            made = made.contiguous(memory_format=torch.channels_last)
            return Batch(made, self.targets_of(index), self.further_of(index))
        if not self.recipe.mixes:
            return Batch(self._pictures(index), self.targets_of(index), self.further_of(index))
        # The partner is the next of the order, so that one more picture than the batch has is enough.
        partners = mixing.partners(order, places, shift=1)
        samples, rows = torch.unique(torch.cat([index, partners]), return_inverse=True)
        made = self._pictures(samples)
        own, other = rows.to(made.device).split(len(index))
        index, partners = index.to(made.device), partners.to(made.device)
        mixed = mix(self.recipe, made[own], made[other], index, self.seed, self.epoch)
        own_images, partner_images = self._images_of(index), self._images_of(partners)

        def mixed_of(values: Tensor) -> Tensor:
            return mixing.soft_targets(values[own_images], values[partner_images], mixed.own_share, self.classes)

        further = {name: mixed_of(values) for name, values in self.further.items()}
        return Batch(mixed.images_nchw, mixed_of(self.targets), further)

    def plain(self, index: Tensor) -> Tensor:
        """Return images (b, c, h, w), uint8, as they are before they are augmented in this epoch."""
        index, source = self._source(index.to(self._home))
        return (source if self._taken else source[index]).permute(0, 3, 1, 2)

    @property
    def _home(self) -> torch.device:
        """Crops are made and policies draw on the CPU: numbers that lie there need not wait for what a GPU has still to do."""
        return self.targets.device if self._crops is None and not self.policies else torch.device("cpu")

    @property
    def _taken(self) -> bool:
        """Whether `_source` gives images in the order of the samples."""
        return self._crops is not None or self.balance > 0

    def _images_of(self, samples: Tensor) -> Tensor:
        samples = samples.to(self.targets.device, non_blocking=True)
        return samples % len(self.targets) if self.balance else samples

    def _pictures(self, index: Tensor) -> Tensor:
        return self._view(index, 0)

    def _view(self, index: Tensor, number: int) -> Tensor:
        clean = self.views.first == "clean" and self.views.count > 1
        seed = (self.seed + number * _VIEW_SEED) % _SEEDS
        _, source = self._source(index, 0 if clean else number)
        return pictures(
            source, index, self.augmentation, {} if clean and number == 0 else self.policies,
            self.seed if clean else seed, self.epoch, taken=self._taken, policy_seed=seed,
        )  # fmt: skip

    def _source(self, index: Tensor, view: int = 0) -> tuple[Tensor, Tensor]:
        """Return the samples and all images, or where `_taken` those of the samples, uint8 (n or b, h, w, c), for the device."""
        if self._crops is None:
            return index, self.images_nhwc[self._images_of(index)] if self._taken else self.images_nhwc
        device, images_nhwc = self.targets.device, self._crops.take(index, self.epoch + view * _VIEW_EPOCH)
        if device.type == "cuda":
            images_nhwc = images_nhwc.pin_memory()
        return index.to(device, non_blocking=True), images_nhwc.to(device, non_blocking=True)


def resized(images_nchw: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize uint8 images (b, c, h, w) to `size` (height, width), bilinear with antialiasing; channels last in memory."""
    made = functional.interpolate(images_nchw.float(), size, mode="bilinear", antialias=True)
    return made.round_().to(torch.uint8).contiguous(memory_format=torch.channels_last)
