"""What happens to training images, put together from settings: own operations, a published policy, then mixing.

All that an image gets, its partner included, is a function of (seed, epoch, sample): see `draws`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from deepcv.data.augmentation import mixing
from deepcv.data.augmentation.draws import Draws
from deepcv.data.augmentation.gather import Augmentation, flip_and_shift, gather
from deepcv.data.augmentation.geometry import Warp
from deepcv.data.augmentation.marks import Marks
from deepcv.data.augmentation.policies import Follow, Operation, Policy, augmix, randaugment, trivialaugment
from deepcv.errors import DeepcvError

# Each part draws at a step of its own, so that switching one on changes nothing in the others.
_OPERATIONS, _POLICY, _MIXING = range(3)
_WHICH_MIXING = 16  # a stream that `mixing` leaves free


@dataclass(frozen=True)
class Mix:
    """MixUp or CutMix: the share of the images that are mixed so, with shares drawn from Beta(`alpha`, `alpha`)."""

    alpha: float = 1.0
    probability: float = 0.0


@dataclass(frozen=True)
class AugMix:
    """Settings of the policy of that name; `depth` is (least, most) operations of a chain."""

    severity: float = 3.0
    chains: int = 3
    depth: tuple[int, int] = (1, 3)
    alpha: float = 1.0


@dataclass(frozen=True)
class RandAugment:
    """Settings of the policy of that name; `strength` 0 … 1."""

    count: int = 2
    strength: float = 0.3


@dataclass(frozen=True)
class Recipe:
    """What happens to training images beyond flip, shift and cutout. Field names are those of `train.augmentation`.

    Of the own `operations`, each image gets `depth` (least, most) random ones, or all, in the listed or in a random order; with
    `chains` above 0, so many copies of the image do, and are mixed: see `Policy`.
    """

    policy: Literal["none", "augmix", "randaugment", "trivialaugment"] = "none"
    operations: tuple[Operation, ...] = ()
    order: Literal["fixed", "random"] = "fixed"
    depth: tuple[int, int] | Literal["all"] = "all"
    chains: int = 0
    alpha: float = 1.0
    mixup: Mix = Mix()
    cutmix: Mix = Mix()
    augmix: AugMix = AugMix()
    randaugment: RandAugment = RandAugment()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Recipe":
        """Return the recipe of plain values, as params.yaml has them: an operation's `magnitude` is [lowest, highest]."""
        operations = []
        for own in values["operations"]:
            low, high = own["magnitude"] or (0.0, 0.0)
            operations.append(Operation(own["name"], low, high, probability=own["probability"]))
        depth, paper = values["depth"], values["augmix"]
        return cls(
            policy=values["policy"],
            operations=tuple(operations),
            order=values["order"],
            depth=depth if depth == "all" else tuple(depth),
            chains=values["chains"],
            alpha=values["alpha"],
            mixup=Mix(**values["mixup"]),
            cutmix=Mix(**values["cutmix"]),
            augmix=AugMix(**{**paper, "depth": tuple(paper["depth"])}),
            randaugment=RandAugment(**values["randaugment"]),
        )

    @property
    def mixes(self) -> bool:
        """Whether targets become probabilities."""
        return self.mixup.probability + self.cutmix.probability > 0

    def policies(self, height: int, width: int) -> dict[int, Policy]:
        """Return what changes images of this size, by step, in their order."""
        found = {}
        if self.operations:
            every = len(self.operations)
            depth = (every, every) if self.depth == "all" else self.depth
            pick: Literal["shuffled", "subset"] = "shuffled" if self.order == "random" else "subset"
            found[_OPERATIONS] = Policy(self.operations, depth, pick, chains=self.chains, alpha=self.alpha)
        match self.policy:
            case "augmix":
                own = self.augmix
                found[_POLICY] = augmix(height, width, own.severity, own.chains, own.depth, own.alpha)
            case "randaugment":
                found[_POLICY] = randaugment(height, width, self.randaugment.count, self.randaugment.strength)
            case "trivialaugment":
                found[_POLICY] = trivialaugment()
        return found


def pictures(
    images_nhwc: Tensor,
    index: Tensor,
    augmentation: Augmentation,
    policies: Mapping[int, Policy],
    seed: int,
    epoch: int,
    *,
    taken: bool = False,
    policy_seed: int | None = None,
    follow: Follow | None = None,
) -> Tensor:
    """Take and change images: uint8 (n, h, w, c) and (b,) to uint8 (b, c, h, w), channels last in memory; see `gather`.

    The policies draw from `policy_seed`, or else from `seed` too. Where `index` lies on the CPU, they draw there and do not wait
    for what a GPU has still to do. `follow` is told of every move of the images, in the order of the moves.
    """
    there = index.to(images_nhwc.device, non_blocking=True)
    images = gather(images_nhwc, there, augmentation, seed, epoch, taken=taken).permute(0, 3, 1, 2).contiguous()
    if follow is not None and (augmentation.flip or augmentation.shift):
        follow(torch.arange(len(index), device=there.device), flip_and_shift(there, augmentation, seed, epoch))
    for step, policy in policies.items():
        images = policy(images, Draws(seed if policy_seed is None else policy_seed, epoch, index, step), follow)
    return images.contiguous(memory_format=torch.channels_last)


def marked_pictures(
    images_nhwc: Tensor,
    marks: Marks,
    index: Tensor,
    augmentation: Augmentation,
    recipe: Recipe,
    seed: int,
    epoch: int,
    *,
    taken: bool = False,
    policy_seed: int | None = None,
) -> tuple[Tensor, Marks]:
    """Return `pictures`, bit for bit, and the `marks` of the images of `index`, in its order, where they are in these pictures.

    Marks lie on the device of `images_nhwc`. Colours, noise, cutout and erasing leave them: what is hidden is still there. Raises
    DeepcvError where a picture would show parts of two images or several copies of one, which no set of marks could tell: with
    MixUp, CutMix or AugMix; ValueError for marks of other images than those of `index`.
    """
    if recipe.mixes:
        raise DeepcvError(
            "boxes, masks and keypoints cannot follow MixUp and CutMix, which mix two images into one; set the probability of "
            "both to 0"
        )
    height, width = images_nhwc.shape[1:3]
    if marks.size not in (None, len(index)):
        raise ValueError(f"expected marks of {len(index)} images, got those of {marks.size}")
    moved = marks.cut(height, width)

    def follow(rows: Tensor, warp: Warp) -> None:
        nonlocal moved
        moved = moved.warped(warp, rows, height, width)

    policies = recipe.policies(height, width)
    made = pictures(
        images_nhwc, index, augmentation, policies, seed, epoch, taken=taken, policy_seed=policy_seed, follow=follow
    )
    return made, moved


def mix(
    recipe: Recipe, images_nchw: Tensor, partners_nchw: Tensor, samples: Tensor, seed: int, epoch: int
) -> mixing.Mixed:
    """Mix a random share of the images with their partners; `samples` (b,) are the images' numbers in the dataset."""
    draws = Draws(seed, epoch, samples, _MIXING)
    chance = draws.uniform(_WHICH_MIXING)[:, 0]
    images, own_share = images_nchw.clone(), torch.ones_like(chance)
    blended = chance < recipe.mixup.probability
    pasted = ~blended & (chance < recipe.mixup.probability + recipe.cutmix.probability)
    for how, alpha, chosen in (
        (mixing.mixup, recipe.mixup.alpha, blended),
        (mixing.cutmix, recipe.cutmix.alpha, pasted),
    ):
        where = chosen.nonzero()[:, 0]
        mixed = how(images_nchw[where], partners_nchw[where], draws.of(where), alpha)
        images[where], own_share[where] = mixed.images_nchw, mixed.own_share
    return mixing.Mixed(images, own_share)
