"""Marks against what became of the pixels that they mark, through single operations and through whole recipes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepcv.data.augmentation import Augmentation, Marks, Recipe
from deepcv.data.augmentation.policies import Operation, Policy
from deepcv.data.augmentation.recipe import Mix, marked_pictures, pictures
from deepcv.errors import DeepcvError

HEIGHT, WIDTH = 120, 160
BOX = (40, 34, 108, 90)
POINT = (57.5, 48.5)
OUTSIDE = 9
NOTHING = Augmentation()
MOVES: dict[str, tuple[float, float]] = {
    "crop": (0.7, 0.9), "elastic": (2, 4), "flip": (0, 0), "rotate": (-40, 40), "scale": (0.8, 1.3),
    "shear_x": (-0.3, 0.3), "shear_y": (-0.3, 0.3), "shift": (10, 50), "translate_x": (-60, 60), "translate_y": (-50, 50),
}  # fmt: skip
# So little that a dot near the centre never comes so near the border that it is cut, or seen twice, and then moves back.
GENTLE: dict[str, tuple[float, float]] = {
    "crop": (0.85, 0.95), "elastic": (2, 4), "flip": (0, 0), "rotate": (-40, 40), "scale": (0.8, 1.2),
    "shear_x": (-0.2, 0.2), "shear_y": (-0.2, 0.2), "shift": (2, 6), "translate_x": (-8, 8), "translate_y": (-8, 8),
}  # fmt: skip
STRAIGHT = ("crop", "flip", "scale", "shift", "translate_x", "translate_y")  # a box stays one
RANDOM = settings(deadline=None, max_examples=15)
SEEDS = st.integers(0, 2**31 - 1)


def own(*names: str, **how: Any) -> Recipe:
    return Recipe(operations=tuple(Operation(name, *MOVES[name]) for name in names), **how)


RECIPES = {
    "own": own(*MOVES, order="random", depth=(1, 3)),
    "colours and erasing": Recipe(operations=(Operation("gamma", 0.5, 2), Operation("erase", 0.1, 0.3))),
    "randaugment": replace(own("flip"), policy="randaugment"),
    "trivialaugment": Recipe(policy="trivialaugment"),
}


def painted(count: int) -> tuple[Tensor, Marks]:
    """White rectangles on black, (count, h, w, 1), marked by box, by mask, and by their centre."""
    left, top, right, bottom = BOX
    masks = torch.zeros(count, HEIGHT, WIDTH, dtype=torch.uint8)
    masks[:, top:bottom, left:right] = 1
    boxes = torch.tensor([[BOX, (torch.nan,) * 4]] * count, dtype=torch.float32)
    points = torch.tensor([[((left + right) / 2, (top + bottom) / 2), (torch.nan, torch.nan)]] * count)
    return masks[..., None] * 255, Marks(boxes, masks, points, OUTSIDE)


def dotted(count: int) -> tuple[Tensor, Marks]:
    """A soft white dot on black, marked by a keypoint."""
    rows, columns = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    dot = 255 * torch.exp(-((columns - POINT[0]) ** 2 + (rows - POINT[1]) ** 2) / 8)
    return dot.round().to(torch.uint8).expand(count, -1, -1)[..., None].contiguous(), Marks(
        keypoints=torch.tensor([[POINT]] * count)
    )


def around(masks: Tensor) -> Tensor:
    """The boxes (b, 4) around the pixels of 1 of masks, NaN where there is none."""
    found = []
    for mask in masks == 1:
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        nothing = not len(rows)
        found.append([torch.nan] * 4 if nothing else [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return torch.tensor(found)


def area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union, (b,)."""
    shared = area(torch.cat([torch.maximum(one[:, :2], other[:, :2]), torch.minimum(one[:, 2:], other[:, 2:])], 1))
    return shared / (area(one) + area(other) - shared)


def boxes_and_masks(recipe: Recipe, seed: int, augmentation: Augmentation = NOTHING) -> tuple[Tensor, Tensor]:
    """The boxes moved and those around the moved masks of which more than a sliver is left; never fewer than half."""
    images, marks = painted(16)
    _, moved = marked_pictures(images, marks, torch.arange(16), augmentation, recipe, seed, 0)
    assert moved.boxes is not None
    assert moved.masks is not None
    seen = around(moved.masks)
    large = (seen[:, 2:] - seen[:, :2] > 25).all(1)
    assert int(large.sum()) >= 8
    return moved.boxes[large, 0], seen[large]


@pytest.mark.parametrize("name", sorted(set(MOVES) - {"rotate"}))
def test_boxes_move_as_their_masks(name: str) -> None:
    boxes, seen = boxes_and_masks(own(name), 3)
    assert float((boxes - seen).abs().max()) <= 1
    assert float(overlap(boxes, seen).mean()) >= 0.98
    assert not torch.equal(seen, torch.tensor(BOX, dtype=torch.float32).expand(seen.shape))


@RANDOM
@given(SEEDS)
def test_boxes_move_as_their_masks_through_whole_recipes(seed: int) -> None:
    recipe = own(*STRAIGHT, order="random", depth=(1, 2))
    boxes, seen = boxes_and_masks(recipe, seed, Augmentation(flip=True, shift=8))
    assert float((boxes - seen).abs().max()) <= 1.5  # half a pixel of each move, enlarged by the next
    assert float(overlap(boxes, seen).mean()) >= 0.98


@RANDOM
@given(SEEDS, st.sampled_from([own("rotate"), own(*MOVES, order="random", depth=(1, 3)), RECIPES["randaugment"]]))
def test_boxes_enclose_their_masks(seed: int, recipe: Recipe) -> None:
    boxes, seen = boxes_and_masks(recipe, seed)
    assert float((boxes[:, :2] - seen[:, :2]).max()) <= 1.5
    assert float((seen[:, 2:] - boxes[:, 2:]).max()) <= 1.5
    limit = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    assert ((boxes >= 0) & (boxes <= limit)).all()


@pytest.mark.parametrize("name", MOVES)
def test_masks_are_the_pictures_cut_at_half(name: str) -> None:
    images, marks = painted(16)
    made, moved = marked_pictures(images, marks, torch.arange(16), NOTHING, own(name), 5, 0)
    assert moved.masks is not None
    from_inside = moved.masks != OUTSIDE
    assert bool(from_inside.all()) == (name in ("crop", "flip"))
    wrong = ((made[:, 0] >= 128) != (moved.masks == 1)) & from_inside
    assert int(wrong.sum((1, 2)).max()) <= (0 if name in ("flip", "shift") else 12)  # at the corners, and ties


@RANDOM
@given(SEEDS, st.integers(0, 3), st.booleans())
def test_flip_and_shift_take_each_masks_pixels_along(seed: int, epoch: int, flip: bool) -> None:
    """Masks that are the pictures themselves: equal wherever the picture is not mirrored at its border."""
    images = torch.randint(1, 255, (300, 9, 7, 1), dtype=torch.uint8)
    index, augmentation = torch.arange(300).flip(0)[:250], Augmentation(flip=flip, shift=3)
    masks = images[index, :, :, 0].int()
    made, moved = marked_pictures(images, Marks(masks=masks, outside=-1), index, augmentation, Recipe(), seed, epoch)
    assert moved.masks is not None
    inside = moved.masks >= 0
    assert torch.equal(made[:, 0].int()[inside], moved.masks[inside])
    rows, columns = inside.any(2).sum(1), inside.any(1).sum(1)
    assert torch.equal(inside.sum((1, 2)), rows * columns)
    assert set((9 - rows).tolist()) == set((7 - columns).tolist()) == {0, 1, 2, 3}


@RANDOM
@given(SEEDS)
def test_keypoints_stay_on_what_they_mark(seed: int) -> None:
    gentle = tuple(Operation(name, *limits) for name, limits in GENTLE.items())
    recipe = Recipe(operations=gentle, order="random", depth=(1, 3))
    images, marks = dotted(16)
    made, moved = marked_pictures(images, marks, torch.arange(16), Augmentation(flip=True, shift=5), recipe, seed, 0)
    assert moved.keypoints is not None
    assert moved.keypoints_inside is not None
    rows, columns = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    assert moved.keypoints_inside.all()
    for picture, (x, y) in zip(made[:, 0].double(), moved.keypoints[:, 0], strict=True):
        near = picture * ((rows - y) ** 2 + (columns - x) ** 2 < 64)
        assert near.max() >= 150
        assert float((near * columns).sum() / near.sum()) == pytest.approx(float(x), abs=0.5)
        assert float((near * rows).sum() / near.sum()) == pytest.approx(float(y), abs=0.5)


@pytest.mark.parametrize("name", ["translate_x", "rotate", "crop"])
def test_keypoints_that_left_are_those_whose_dot_is_gone(name: str) -> None:
    recipe = Recipe(
        operations=(Operation(name, *{"translate_x": (-99, 99), "rotate": (-180, 180), "crop": (0.3, 0.6)}[name]),)
    )
    images, marks = dotted(60)
    made, moved = marked_pictures(images, marks, torch.arange(60), NOTHING, recipe, 1, 0)
    assert moved.keypoints_inside is not None
    peak = made[:, 0].amax((1, 2))
    inside = moved.keypoints_inside[:, 0]
    assert (peak[inside] >= 90).all()  # half of a dot at the very border
    assert (peak[~inside] < 250).all()
    assert name == "rotate" or 5 < int(inside.sum()) < 55


@RANDOM
@given(st.sampled_from(sorted(RECIPES)), SEEDS, st.integers(0, 9), st.booleans())
def test_pictures_are_those_without_marks(name: str, seed: int, epoch: int, taken: bool) -> None:
    images = torch.randint(0, 256, (24, HEIGHT // 4, WIDTH // 4, 3), dtype=torch.uint8)
    index = torch.randperm(24)[:10]
    _, marks = painted(10)
    marks = replace(marks, masks=None)
    augmentation, recipe = Augmentation(flip=True, shift=4, cutout=6), RECIPES[name]
    how = {"taken": taken, "policy_seed": None if taken else seed // 2}
    source = images[index] if taken else images
    found, _ = marked_pictures(source, marks, index, augmentation, recipe, seed, epoch, **how)
    expected = pictures(source, index, augmentation, recipe.policies(*images.shape[1:3]), seed, epoch, **how)
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride()


@pytest.mark.parametrize("name", RECIPES)
def test_no_batch_changes_a_mark(name: str) -> None:
    images, marks = painted(12)
    augmentation = Augmentation(flip=True, shift=6)

    def made(part: Tensor) -> Marks:
        parts = Marks(*(values[part] for values in marks._all()), OUTSIDE)
        return marked_pictures(images, parts, part, augmentation, RECIPES[name], 4, 1)[1]

    whole = made(torch.arange(12))
    for part in torch.tensor([7, 2, 11, 0, 5, 9, 1, 3, 10, 4, 8, 6]).split(5):
        for found, expected in zip(made(part)._all(), whole._all(), strict=True):
            assert torch.equal(found.nan_to_num(-1), expected[part].nan_to_num(-1))


def test_what_left_the_image_or_was_not_there_is_nan() -> None:
    images, marks = painted(3)
    away = Recipe(operations=(Operation("translate_x", 150, 150), Operation("translate_x", -150, -150)))
    _, moved = marked_pictures(images, marks, torch.arange(3), NOTHING, away, 0, 0)
    assert moved.boxes is not None
    assert moved.boxes.isnan().all()
    assert moved.boxes_inside is not None
    assert not moved.boxes_inside.any()
    assert moved.keypoints_inside is not None
    assert not moved.keypoints_inside.any()
    assert moved.masks is not None
    assert not (moved.masks == 1).any()
    left = Recipe(operations=(Operation("translate_x", 80, 80),))
    _, moved = marked_pictures(images, marks, torch.arange(3), NOTHING, left, 0, 0)
    assert moved.boxes is not None
    assert moved.boxes_inside is not None
    assert moved.boxes_inside.tolist() == [[True, False]] * 3
    assert moved.boxes[0, 0].tolist() == [120, 34, WIDTH, 90]


def test_boxes_are_cut_at_the_border_though_nothing_moves() -> None:
    boxes = torch.tensor([[[-5.0, -9, 20, 30], [150, 100, 200, 200], [170, 0, 180, 9], [5, 5, 5, 9]]])
    keypoints = torch.tensor([[[0.0, HEIGHT], [-0.1, 4]]])
    images, _ = painted(1)
    _, found = marked_pictures(images, Marks(boxes, None, keypoints), torch.arange(1), NOTHING, Recipe(), 0, 0)
    assert found.boxes is not None
    assert found.boxes[0, :2].tolist() == [[0, 0, 20, 30], [150, 100, WIDTH, HEIGHT]]
    assert found.boxes[0, 2:].isnan().all()
    assert found.keypoints is not None
    assert found.keypoints_inside is not None
    assert found.keypoints_inside.tolist() == [[True, False]]


def test_masks_of_objects_move_each_as_one_alone() -> None:
    images, _ = painted(8)
    several = torch.randint(0, 50, (8, 3, HEIGHT, WIDTH), dtype=torch.int64)
    index, recipe = torch.arange(8), RECIPES["own"]
    _, whole = marked_pictures(images, Marks(masks=several, outside=255), index, NOTHING, recipe, 2, 0)
    assert whole.masks is not None
    assert whole.masks.dtype == torch.int64
    for number in range(3):
        alone = Marks(masks=several[:, number], outside=255)
        _, moved = marked_pictures(images, alone, index, NOTHING, recipe, 2, 0)
        assert moved.masks is not None
        assert torch.equal(moved.masks, whole.masks[:, number])
    assert set(whole.masks.unique().tolist()) == {*range(50), 255}


def test_what_is_hidden_is_still_there() -> None:
    images, marks = painted(8)
    recipe = Recipe(operations=(Operation("erase", 0.3, 0.6), Operation("noise", 0, 20), Operation("solarize", 0, 99)))
    made, moved = marked_pictures(images, marks, torch.arange(8), Augmentation(cutout=40), recipe, 0, 0)
    assert not torch.equal(made, images.permute(0, 3, 1, 2))
    for found, expected in zip(moved._all(), marks._all(), strict=True):
        assert torch.equal(found.nan_to_num(-1), expected.nan_to_num(-1))


def test_no_marks_and_none_in_an_image_are_allowed() -> None:
    images, marks = painted(2)
    nothing = Marks(torch.zeros(2, 0, 4), None, torch.zeros(2, 0, 2))
    for some in (Marks(), nothing):
        _, moved = marked_pictures(
            images, some, torch.arange(2), Augmentation(flip=True), own("elastic", "rotate"), 0, 0
        )
        assert [values.shape for values in moved._all()] == [values.shape for values in some._all()]
    assert marks.size == 2
    assert Marks().size is None


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(mixup=Mix(1.0, 0.1)),
        Recipe(cutmix=Mix(1.0, 0.1)),
        Recipe(policy="augmix"),
        Recipe(operations=(Operation("rotate", -9, 9),), chains=2),
    ],
)
def test_marks_do_not_go_with_mixed_pictures(recipe: Recipe) -> None:
    images, marks = painted(2)
    with pytest.raises(
        DeepcvError, match=r"cannot follow (MixUp and CutMix|chains that are mixed .rotate[, ].*chains: 0)"
    ):
        marked_pictures(images, marks, torch.arange(2), NOTHING, recipe, 0, 0)


def test_chains_that_move_nothing_keep_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    still = Policy((Operation("gamma", 0.5, 2), Operation("equalize")), (1, 2), chains=2)
    monkeypatch.setattr(Recipe, "policies", lambda *_: {1: still})
    images, marks = painted(2)
    _, moved = marked_pictures(images, marks, torch.arange(2), NOTHING, Recipe(), 0, 0)
    assert moved.masks is marks.masks


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"boxes": torch.zeros(2, 4)}, r"expected boxes \(b, k, 4\) of floats, got \(2, 4\)"),
        ({"boxes": torch.zeros(2, 1, 4, dtype=torch.int64)}, "of floats, got .* of torch.int64"),
        ({"keypoints": torch.zeros(2, 1, 3)}, r"expected keypoints \(b, k, 2\)"),
        ({"masks": torch.zeros(2, 5, 5)}, "of integers"),
        ({"masks": torch.zeros(2, 5, 5, dtype=torch.uint8), "outside": -1}, "cannot hold -1"),
        ({"masks": torch.zeros(2, 5, 5, dtype=torch.int32), "outside": 2**24}, "between .* 2²⁴, got 16777216"),
        ({"masks": torch.zeros(2, 5, 5, dtype=torch.int64), "outside": -(2**40)}, "2²⁴, got -1099511627776"),
        ({"boxes": torch.zeros(2, 1, 4), "keypoints": torch.zeros(3, 1, 2)}, r"equally many images, got \[2, 3\]"),
    ],
)
def test_other_shapes_and_types_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Marks(**values)


def test_marks_of_another_batch_are_refused() -> None:
    images, marks = painted(3)
    with pytest.raises(ValueError, match="marks of 2 images, got those of 3"):
        marked_pictures(images, marks, torch.arange(2), NOTHING, Recipe(), 0, 0)
    with pytest.raises(ValueError, match="masks of 120 × 159 pixels, as the images, got 120 × 160"):
        marked_pictures(images[:, :, 1:], marks, torch.arange(3), NOTHING, Recipe(), 0, 0)
