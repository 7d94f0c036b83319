import math

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as V

from deepcv.data.augmentation import Draws, geometry
from deepcv.data.augmentation.geometry import Warp

HEIGHT, WIDTH = 60, 80
ENLARGE = 8


def photographs() -> Tensor:
    images = np.stack([image[100 : 100 + HEIGHT, 200 : 200 + WIDTH] for image in load_sample_images().images])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def both(value: float) -> Tensor:
    return torch.tensor([value, value])


def affine(images: Tensor, **how: object) -> Tensor:
    values = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]} | how
    return V.affine(images, interpolation=InterpolationMode.BILINEAR, **values)  # type: ignore[arg-type]


def degrees(slope: float) -> float:
    return math.degrees(math.atan(slope))


WITH_TORCHVISION = {
    "rotate": (geometry.rotate(both(23.0)), lambda i: V.rotate(i, 23.0, InterpolationMode.BILINEAR)),
    "translate": (geometry.translate(both(7.0), both(-3.0)), lambda i: affine(i, translate=[7, -3])),
    "scale": (geometry.scale(both(1.3)), lambda i: affine(i, scale=1.3)),
    "shear_x": (geometry.shear_x(both(0.2), HEIGHT), lambda i: affine(i, shear=[degrees(0.2), 0.0], center=[0, 0])),
    "shear_y": (geometry.shear_y(both(0.2), WIDTH), lambda i: affine(i, shear=[0.0, degrees(0.2)], center=[0, 0])),
    "resized_crop": (
        geometry.resized_crop(both(10.0), both(5.0), both(40.0), both(30.0), WIDTH, HEIGHT),
        lambda i: V.resized_crop(i, 5, 10, 30, 40, [HEIGHT, WIDTH], antialias=False),
    ),
}


@pytest.mark.parametrize("name", WITH_TORCHVISION)
def test_warps_are_torchvisions(name: str) -> None:
    matrix, reference = WITH_TORCHVISION[name]
    images = photographs()
    found, expected = Warp(matrix).images(images), reference(images)
    # torchvision cuts before it enlarges: at the cut, it repeats the pixel that we blend with its neighbour.
    inside = slice(2, -2) if name == "resized_crop" else slice(None)
    assert int((found.int() - expected.int()).abs()[:, :, inside, inside].max()) <= 1


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate"])
def test_warps_are_pillows_inside(name: str) -> None:
    """Pillow repeats the border pixel for half a pixel where torchvision and we blend into black: the border is left out."""
    image = photographs()[0]
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    size, bilinear = picture.size, Image.Resampling.BILINEAR
    transformed = {
        "rotate": lambda: picture.rotate(17, resample=bilinear),
        "shear_x": lambda: picture.transform(size, Image.Transform.AFFINE, (1, 0.3, 0, 0, 1, 0), resample=bilinear),
        "shear_y": lambda: picture.transform(size, Image.Transform.AFFINE, (1, 0, 0, 0.3, 1, 0), resample=bilinear),
        "translate": lambda: picture.transform(size, Image.Transform.AFFINE, (1, 0, 6, 0, 1, -4), resample=bilinear),
    }
    one = torch.tensor([1.0])
    matrix = {
        "rotate": geometry.rotate(17 * one),
        "shear_x": geometry.shear_x(0.3 * one, HEIGHT),
        "shear_y": geometry.shear_y(0.3 * one, WIDTH),
        "translate": geometry.translate(-6 * one, 4 * one),
    }[name]
    expected = torch.from_numpy(np.array(transformed[name]())).permute(2, 0, 1)
    warp = Warp(matrix)
    inside = warp.images(torch.full((1, 1, HEIGHT, WIDTH), 255, dtype=torch.uint8))[0, 0] == 255
    found = warp.images(image[None])[0]
    assert inside.float().mean() > 0.6
    assert int((found.int() - expected.int()).abs()[:, inside].max()) <= 1


def test_composed_is_one_after_the_other() -> None:
    first, second = geometry.rotate(both(20.0)), geometry.translate(both(5.0), both(9.0))
    points = torch.rand(2, 5, 2) * 50
    one_by_one = Warp(second).points(Warp(first).points(points, HEIGHT, WIDTH), HEIGHT, WIDTH)
    assert torch.allclose(Warp(geometry.compose(first, second)).points(points, HEIGHT, WIDTH), one_by_one, atol=1e-4)


def warps(count: int) -> dict[str, Warp]:
    draws = Draws(0, 0, torch.arange(count))
    value = draws.uniform(*range(4)) * 2 - 1
    matrices = {
        "rotate": geometry.rotate(30 * value[:, 0]),
        "scale": geometry.scale(1 + 0.4 * value[:, 0]),
        "shear_x": geometry.shear_x(0.3 * value[:, 0], HEIGHT),
        "shear_y": geometry.shear_y(0.3 * value[:, 0], WIDTH),
        "translate": geometry.translate(8 * value[:, 0], 8 * value[:, 1]),
    }
    matrices["all"] = geometry.compose(
        geometry.compose(matrices["rotate"], matrices["scale"]),
        geometry.compose(matrices["shear_x"], matrices["translate"]),
    )
    identity = geometry.scale(torch.ones(count))
    bend = geometry.elastic(torch.full((count,), 4.0), draws.bits(50)[:, 0]).bend
    found = {name: Warp(matrix) for name, matrix in matrices.items()}
    return found | {"bend": Warp(identity, bend), "bend all": Warp(matrices["all"], bend)}


def enlarged(warp: Warp) -> tuple[Warp, int, int]:
    """The same warp of images so many times as large, that a pixel is small, and their size."""
    matrix = torch.cat([warp.matrix[:, :, :2], warp.matrix[:, :, 2:] * ENLARGE], 2)
    return Warp(matrix, None if warp.bend is None else warp.bend * ENLARGE), HEIGHT * ENLARGE, WIDTH * ENLARGE


@pytest.mark.parametrize("name", warps(1))
def test_boxes_move_as_their_masks(name: str) -> None:
    """The box of a warped rectangle against the warped box: intersection over union at least 0.98, pixels being pixels."""
    warp, height, width = enlarged(warps(50)[name])
    left, top, right, bottom = (edge * ENLARGE for edge in (24, 18, 56, 44))
    masks = torch.zeros(50, height, width, dtype=torch.uint8)
    masks[:, top:bottom, left:right] = 1
    moved = warp.masks(masks)
    boxes = warp.boxes(torch.tensor([[[left, top, right, bottom]]] * 50, dtype=torch.float32), height, width)[:, 0]
    for mask, box in zip(moved, boxes, strict=True):
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        around = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=torch.float32)
        assert overlap(box, around) >= 0.98


def overlap(one: Tensor, other: Tensor) -> float:
    low, high = torch.maximum(one[:2], other[:2]), torch.minimum(one[2:], other[2:])
    shared = float((high - low).clamp(min=0).prod())
    return shared / (float((one[2:] - one[:2]).prod()) + float((other[2:] - other[:2]).prod()) - shared)


@pytest.mark.parametrize("name", warps(1))
def test_keypoints_move_with_what_they_mark(name: str) -> None:
    warp, height, width = enlarged(warps(50)[name])
    x, y = 43.0 * ENLARGE, 28.0 * ENLARGE
    images = torch.zeros(50, 1, height, width, dtype=torch.uint8)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    blob = 255 * torch.exp(-((rows + 0.5 - y) ** 2 + (columns + 0.5 - x) ** 2) / 18)
    images[:, 0] = blob.round().to(torch.uint8)
    moved = warp.images(images)[:, 0].double()
    points = warp.points(torch.tensor([[[x, y]]] * 50), height, width)[:, 0]
    total = moved.sum((1, 2))
    centre_x = (moved * (columns + 0.5)).sum((1, 2)) / total
    centre_y = (moved * (rows + 0.5)).sum((1, 2)) / total
    assert float((torch.stack([centre_x, centre_y], 1) - points).abs().max()) < 0.5


@pytest.mark.parametrize(("height", "width"), [(48, 48), (40, 200)])
def test_nothing_folds_at_the_stated_reach(height: int, width: int) -> None:
    """The Jacobian of where pixels come from stays positive, for random and for the steepest control points."""
    reach = (min(height, width) - 1) / 25
    keys = Draws(0, 0, torch.arange(500)).bits(0)[:, 0]
    random = geometry.elastic(torch.full((500,), reach), keys).bend
    assert random is not None
    signs = (torch.randint(0, 2, (500, 2, 4, 4), generator=torch.Generator().manual_seed(0)) * 2 - 1).float()
    for bend in (random, signs * reach):
        moved = geometry._surface(bend, height, width)
        xx, yx = (1 + moved[:, 0].diff(dim=2))[:, :-1], moved[:, 1].diff(dim=2)[:, :-1]
        xy, yy = moved[:, 0].diff(dim=1)[:, :, :-1], (1 + moved[:, 1].diff(dim=1))[:, :, :-1]
        assert float((xx * yy - xy * yx).min()) > 0


def test_points_may_be_float64_and_compose_ignores_autocast() -> None:
    matrix = geometry.compose(geometry.rotate(both(20.0)), geometry.translate(both(5.0), both(9.0)))
    points = torch.rand(2, 5, 2, dtype=torch.float64) * 50
    assert torch.allclose(
        Warp(matrix).points(points, HEIGHT, WIDTH), Warp(matrix).points(points.float(), HEIGHT, WIDTH)
    )
    assert Warp(matrix).boxes(torch.tensor([[[1.0, 2, 3, 4]]] * 2, dtype=torch.float64), HEIGHT, WIDTH).shape == (
        2,
        1,
        4,
    )
    with torch.autocast("cpu", torch.bfloat16):
        again = geometry.compose(geometry.rotate(both(20.0)), geometry.translate(both(5.0), both(9.0)))
    assert torch.equal(again, matrix)


def test_boxes_stay_inside_the_image() -> None:
    moved = Warp(geometry.translate(both(60.0), both(-50.0))).boxes(
        torch.tensor([[[30.0, 20, 60, 50], [0, 0, 5, 5]]] * 2), HEIGHT, WIDTH
    )
    assert torch.equal(moved[0], torch.tensor([[WIDTH, 0, WIDTH, 0], [60.0, 0, 65, 0]]))


def test_masks_hold_only_their_own_values_and_the_fill() -> None:
    masks = torch.randint(0, 5, (2, HEIGHT, WIDTH)) * 1000
    moved = Warp(geometry.rotate(both(33.0))).masks(masks, outside=255)
    assert moved.dtype == masks.dtype
    assert set(moved.unique().tolist()) <= {0, 1000, 2000, 3000, 4000, 255}
    assert int((moved == 255).sum()) > 0


def test_nothing_changes_where_nothing_is_asked() -> None:
    images = photographs()
    still = Warp(geometry.rotate(both(0.0)), torch.zeros(2, 2, 4, 4))
    assert torch.equal(still.images(images), images)
