"""Which dimensions of a tensor are places along the height (`y`) and the width (`x`) of the image."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

# What a dimension is made of, slowest first: (letters, size). Letters are "y", "x", "xy" where both have mixed, "" for what
# is no place. A merged dimension keeps its factors, so that a view that splits it again gives what was there before.
Dimension = tuple[tuple[str, int], ...]
Axes = tuple[Dimension, ...]


def plain(*sizes: int) -> Axes:
    """Dimensions that are no places."""
    return tuple((("", size),) for size in sizes)


def maps(shape: Sequence[int]) -> Axes:
    """(N, C, H, W): images and feature maps."""
    return (*plain(*shape[:2]), (("y", shape[2]),), (("x", shape[3]),))


def letters(*dimensions: Dimension) -> frozenset[str]:
    """The axes that these dimensions have places of; a dimension of size 1 has none to mix."""
    return frozenset(letter for dimension in dimensions for names, size in dimension if size > 1 for letter in names)


def joined(dimensions: Iterable[Dimension], size: int) -> Dimension:
    """A dimension of this size from those that meet in it, as by broadcasting or concatenation."""
    first, *others = set(dimensions)
    if not others and math.prod(part for _, part in first) == size:
        return first
    return (("".join(sorted(letters(first, *others))), size),)


def union(axes: Iterable[Axes], shape: Sequence[int]) -> Axes:
    """Dimensions of a result of this shape, its inputs aligned at the last one."""
    aligned = [one[-len(shape) :] for one in axes] if shape else []
    padded = [plain(*[1] * (len(shape) - len(one))) + one for one in aligned]
    # A dimension of size 1 is stretched over the others: it says nothing.
    return tuple(
        joined([one[place] for one in padded if letters(one[place])] or [plain(size)[0]], size)
        for place, size in enumerate(shape)
    )


def permuted(name: str, args: Any, axes: Axes) -> Axes:
    """Behind permute, transpose or t."""
    order = list(range(len(axes)))
    if name == "permute":
        order = [place % len(axes) for place in args[1]]
    elif name == "transpose":
        one, other = (place % len(axes) for place in args[1:3])
        order[one], order[other] = order[other], order[one]
    else:
        order.reverse()
    return tuple(axes[place] for place in order)


def without(axes: Axes, dimensions: Iterable[int]) -> Axes:
    """These dimensions left out."""
    gone = {place % len(axes) for place in dimensions}
    return tuple(dimension for place, dimension in enumerate(axes) if place not in gone)


def regrouped(axes: Axes, shape: Sequence[int]) -> Axes:
    """Behind a view, which keeps the order of all values: dimensions merge and split."""
    rest = [factor for dimension in axes for factor in dimension if factor[1] > 1]
    found: list[Dimension] = []
    for size in shape:
        taken: list[tuple[str, int]] = []
        wanted = size
        while wanted > 1:
            names, part = rest.pop(0)
            common = math.gcd(wanted, part)
            if common not in (part, wanted):  # e.g. (6, 4) to (4, 6)
                return _blurred(axes, shape)
            taken.append((names, common))
            wanted //= common
            if part > common:
                rest.insert(0, (names, part // common))
        found.append(tuple(taken) or plain(size)[0])
    return tuple(found)


def _blurred(axes: Axes, shape: Sequence[int]) -> Axes:
    names = "".join(sorted(letters(*axes)))
    return tuple(((names, size),) for size in shape)
