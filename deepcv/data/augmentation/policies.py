"""Random operations from a list: RandAugment, TrivialAugment and AugMix, each image with its own operations and strengths.

Batches are uint8 (b, c, h, w). All that a policy does to an image is a function of (seed, epoch, sample): see `draws`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from torch import Tensor

from deepcv.data.augmentation import colour, geometry, mixing
from deepcv.data.augmentation.draws import STREAMS_PER_STEP, Draws
from deepcv.errors import DeepcvError

_WARPS: dict[str, Callable[[Tensor, Tensor, int, int], Tensor]] = {
    "crop": geometry.random_crop,
    "rotate": lambda value, _keys, _height, _width: geometry.rotate(value),
    "scale": lambda value, _keys, _height, _width: geometry.scale(value),
    "shear_x": lambda value, _keys, height, _width: geometry.shear_x(value, height),
    "shear_y": lambda value, _keys, _height, width: geometry.shear_y(value, width),
    "translate_x": lambda value, _keys, _height, _width: geometry.translate(value, torch.zeros_like(value)),
    "translate_y": lambda value, _keys, _height, _width: geometry.translate(torch.zeros_like(value), value),
}
# Moves of their own: `elastic` fills by reflection, the other two move whole pixels.
_MOVES: dict[str, Callable[[Tensor, Tensor], geometry.Move]] = {
    "elastic": geometry.elastic,
    "flip": lambda _value, keys: geometry.Flip(len(keys), keys.device),
    "shift": geometry.shift,
}
_OTHERS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "autocontrast": lambda images, _value, _keys: colour.autocontrast(images),
    "brightness": lambda images, value, _keys: colour.brightness(images, value),
    "colour": lambda images, value, _keys: colour.colour(images, value),
    "contrast": lambda images, value, _keys: colour.contrast(images, value),
    "equalize": lambda images, _value, _keys: colour.equalize(images),
    "erase": lambda images, value, keys: mixing.fill(images, value, Draws(0, 0, keys)),
    "gamma": lambda images, value, _keys: colour.gamma(images, value),
    "identity": lambda images, _value, _keys: images,
    "noise": colour.noise,
    "posterize": lambda images, value, _keys: colour.posterize(images, value),
    "sharpness": lambda images, value, _keys: colour.sharpness(images, value),
    "solarize": lambda images, value, _keys: colour.solarize(images, value),
}
_MOVING = frozenset(_WARPS) | frozenset(_MOVES)
NAMES = _MOVING | frozenset(_OTHERS)
# Told of every move: the rows (n,) of the batch whose images have moved, and their warp.
Follow = Callable[[Tensor, geometry.Warp], None]


@dataclass(frozen=True)
class Operation:
    """An operation of `NAMES`; at strength s its magnitude is `start` + s · (`end` − `start`).

    `signed`: to either side of `start`, by a coin; `whole`: the way from `start` is cut to an integer. It is left out of an
    image with 1 − `probability`.
    """

    name: str
    start: float = 0.0
    end: float = 0.0
    signed: bool = False
    whole: bool = False
    probability: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"expected one of {', '.join(sorted(NAMES))}, got {self.name!r}")

    @property
    def moves(self) -> bool:
        """Whether positions change with the image."""
        return self.name in _MOVING

    def magnitude(self, strength: Tensor, backwards: Tensor) -> Tensor:
        """Magnitudes (b,) for strengths 0 … 1 and coins."""
        way = strength * (self.end - self.start)
        if self.whole:
            way = way.trunc()
        return self.start + (torch.where(backwards, -way, way) if self.signed else way)


def apply(
    images_nchw: Tensor, operations: tuple[Operation, ...], which: Tensor, strength: Tensor, keys: Tensor,
    follow: Follow | None = None,
) -> Tensor:  # fmt: skip
    """Return images of which each went through `operations[which]`; through none where `which` (b,) is negative.

    `keys` (b,), int64 0 … 2³²−1, decide what is random in an operation beyond its strength. Where these three lie on the CPU,
    nothing waits for what a GPU has still to do to the images. `follow` is told of every move.
    """
    device, (height, width) = images_nchw.device, images_nchw.shape[2:]
    # Sorted, the images of an operation are neighbours: a slice, changed in place. Warps come last and share one call.
    ranked = sorted(range(len(operations)), key=lambda number: operations[number].name in _WARPS)
    rank_of = torch.empty(len(operations) + 1, dtype=torch.int64, device=which.device)
    rank_of[ranked] = torch.arange(1, len(operations) + 1, device=which.device)
    rank_of[-1] = 0  # where `which` is −1
    ranks = rank_of[which]
    order = ranks.argsort()
    images, strength, keys = images_nchw.index_select(0, _there(order, device)), strength[order], keys[order]
    start, *counts = torch.bincount(ranks, minlength=len(operations) + 1).tolist()
    first_warped, matrices = len(images), []
    for number, count in zip(ranked, counts, strict=True):
        if count == 0:
            continue
        own = slice(start, start + count)
        start += count
        operation = operations[number]
        value = operation.magnitude(strength[own], keys[own] >= 2**31)
        if operation.name in _WARPS:
            first_warped = min(first_warped, own.start)
            matrices.append(_WARPS[operation.name](value, keys[own], height, width))
        elif operation.name in _MOVES:
            move = _MOVES[operation.name](_there(value, device), _there(keys[own], device))
            images[own] = move.images(images[own])
            if follow is not None:
                follow(_there(order[own], device), move.warp())
        else:
            images[own] = _OTHERS[operation.name](images[own], _there(value, device), _there(keys[own], device))
    if matrices:
        warp = geometry.Warp(_there(torch.cat(matrices), device))
        images[first_warped:] = warp.images(images[first_warped:])
        if follow is not None:
            follow(_there(order[first_warped:], device), warp)
    return images.index_select(0, _there(order.argsort(), device))


def _there(values: Tensor, device: torch.device) -> Tensor:
    return values.to(device, non_blocking=True)


@dataclass(frozen=True)
class Policy:
    """Random operations for each image: how many of which, one after the other, and how strong.

    An image gets `count` (least, most) operations, by `pick`: the first of the list as they stand, of a list shuffled for
    each image, a random part of the list in its order ("subset"), or drawn anew each time. Their strengths are drawn from
    `strength` (lowest, highest), evenly or from so many `levels`. With `chains`, that is done as often to copies of the
    image, which are mixed with Dirichlet(`alpha`) weights; the mixture's share in the result is Beta(`alpha`, `alpha`), the
    rest is the image.
    """

    operations: tuple[Operation, ...]
    count: tuple[int, int]
    pick: Literal["listed", "shuffled", "subset", "anew"] = "anew"
    strength: tuple[float, float] = (0.0, 1.0)
    levels: int | None = None
    chains: int = 0
    alpha: float = 1.0

    def __post_init__(self) -> None:
        least, most = self.count
        limit = len(self.operations) if self.pick != "anew" else most
        if not 0 <= least <= most <= limit:
            raise ValueError(f"count must be 0 <= least <= most <= {limit}, got {self.count}")
        if not self.operations:
            raise ValueError("expected at least one operation, got none")
        if self.levels is not None and self.levels < 2:
            raise ValueError(f"levels must be at least 2, got {self.levels}")
        if self.chains < 0:
            raise ValueError(f"chains must be at least 0, got {self.chains}")
        if self._streams() > STREAMS_PER_STEP:
            raise ValueError(
                f"{self.chains} chains of {most} out of {len(self.operations)} operations are too many draws"
            )

    def __call__(self, images_nchw: Tensor, draws: Draws, follow: Follow | None = None) -> Tensor:
        """Return changed images; the input stays as it is. The samples of the draws may lie on the CPU: see `apply`.

        Raises DeepcvError where `follow` asks for the moves of mixed chains: a thing would be in several places of one picture.
        """
        if follow is not None and self.chains and (moving := [own.name for own in self.operations if own.moves]):
            raise DeepcvError(
                f"boxes, masks and keypoints cannot follow chains that are mixed ({', '.join(moving)} move each chain's copy "
                "otherwise); choose another policy than augmix and chains: 0, or operations for the chains that move nothing"
            )
        batch, copies, most = len(images_nchw), max(1, self.chains), self.count[1]
        streams = iter(range(self._streams()))
        links = copies * most  # the draws of each operation of each copy; (b, copies, most)
        which = self._which(draws, copies, streams).view(batch, copies, most)
        strength = draws.uniform(*islice(streams, links)).view(which.shape)
        keys = draws.bits(*islice(streams, links)).view(which.shape)
        chance = draws.uniform(*islice(streams, links)).view(which.shape)
        least = self.count[0]
        depth = least + draws.integers(most - least + 1, *islice(streams, copies))
        if self.pick == "subset":
            beyond = torch.arange(most, device=which.device) >= depth[:, :, None]
            which = which.masked_fill(beyond, len(self.operations)).sort(2).values.clamp(max=len(self.operations) - 1)
        applied = chance < self._probabilities(which)
        if self.levels:
            strength = (strength * self.levels).floor() / (self.levels - 1)
        strength = self.strength[0] + strength * (self.strength[1] - self.strength[0])

        changed = images_nchw.repeat(copies, 1, 1, 1)  # copy by copy
        for position in range(most):
            active = (depth > position) & applied[:, :, position]
            changed = apply(
                changed, self.operations, torch.where(active, which[:, :, position], -1).t().reshape(-1),
                strength[:, :, position].t().reshape(-1), keys[:, :, position].t().reshape(-1), follow,
            )  # fmt: skip
        if not self.chains:
            return changed
        weights = draws.dirichlet(self.alpha, *islice(streams, copies - 1))
        share = draws.beta(self.alpha, self.alpha, *islice(streams, 1))
        parts = _there(torch.cat([1 - share, share * weights], 1), images_nchw.device)[:, :, None, None, None]
        mixed = images_nchw * parts[:, 0]
        for number, image in enumerate(changed.view(copies, *images_nchw.shape), start=1):
            mixed.addcmul_(image.float(), parts[:, number])
        return colour.to_uint8(mixed.round_())

    def _which(self, draws: Draws, copies: int, streams: Iterator[int]) -> Tensor:
        number, most = len(self.operations), self.count[1]
        if self.pick == "anew":
            return draws.integers(number, *islice(streams, copies * most))
        if self.pick == "listed":
            return torch.arange(most, device=draws.samples.device).repeat(len(draws.samples), copies)
        ranks = draws.bits(*islice(streams, copies * number)).view(-1, copies, number)
        return ranks.argsort(dim=2, stable=True)[:, :, :most].flatten(1)

    def _probabilities(self, which: Tensor) -> Tensor:
        table = torch.tensor([operation.probability for operation in self.operations], device=which.device)
        return table[which]

    def _streams(self) -> int:
        copies, most = max(1, self.chains), self.count[1]
        picks = {"anew": copies * most, "listed": 0}.get(self.pick, copies * len(self.operations))
        return picks + 3 * copies * most + copies + copies


def augmix(
    height: int,
    width: int,
    severity: float = 3.0,
    chains: int = 3,
    depth: tuple[int, int] = (1, 3),
    alpha: float = 1.0,
) -> Policy:
    """Chains of few operations, mixed; as they stand, those of the paper (Hendrycks et al. 2020, arXiv 1912.02781).

    The list leaves out what robustness is measured with. Strengths and ranges are those of the authors' program.
    """
    operations = (
        Operation("autocontrast"),
        Operation("equalize"),
        Operation("posterize", 4, 0, whole=True),
        Operation("rotate", 0, 30, signed=True, whole=True),
        Operation("solarize", 256, 0, whole=True),
        Operation("shear_x", 0, 0.3, signed=True),
        Operation("shear_y", 0, 0.3, signed=True),
        Operation("translate_x", 0, width / 3, signed=True, whole=True),
        Operation("translate_y", 0, height / 3, signed=True, whole=True),
    )
    return Policy(operations, count=depth, strength=(0.01, severity / 10), chains=chains, alpha=alpha)


def randaugment(height: int, width: int, count: int = 2, strength: float = 0.3) -> Policy:
    """`count` operations, all of one strength 0 … 1 (Cubuk et al. 2019, arXiv 1909.13719); torchvision's ranges."""
    operations = _torchvisions(0.3, width * 150 / 331, height * 150 / 331, degrees=30, reach=0.9, bits=4)
    return Policy(operations, count=(count, count), strength=(strength, strength))


def trivialaugment() -> Policy:
    """One operation of a random strength, in "wide" ranges (Müller and Hutter 2021, arXiv 2103.10158)."""
    operations = _torchvisions(0.99, 32, 32, degrees=135, reach=0.99, bits=2)
    return Policy(operations, count=(1, 1), levels=31)


def _torchvisions(
    shear: float, right: float, down: float, *, degrees: float, reach: float, bits: int
) -> tuple[Operation, ...]:
    """The fourteen operations of torchvision's policies, up to these magnitudes; `reach` is that of the enhancements."""
    return (
        Operation("identity"),
        Operation("shear_x", 0, shear, signed=True),
        Operation("shear_y", 0, shear, signed=True),
        Operation("translate_x", 0, right, signed=True, whole=True),
        Operation("translate_y", 0, down, signed=True, whole=True),
        Operation("rotate", 0, degrees, signed=True),
        *(Operation(name, 1, 1 + reach, signed=True) for name in ("brightness", "colour", "contrast", "sharpness")),
        Operation("posterize", 8.5, bits + 0.5),  # cut to whole bits: 8 − round((8 − bits) · s)
        Operation("solarize", 255, 0),
        Operation("autocontrast"),
        Operation("equalize"),
    )
