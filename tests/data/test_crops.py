from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import RandomResizedCrop
from toys import picture

from deepcv.data.augmentation import Augmentation, Draws, Recipe
from deepcv.data.augmentation.gather import gather
from deepcv.data.augmentation.recipe import Mix
from deepcv.data.crops import crop_boxes, random_crops
from deepcv.data.loaders import TrainLoader
from deepcv.data.packed import EncodedImage, PackedImages, ShardError, write
from deepcv.images import ImageRecipe, decode, encode_png, prepare_crop, resized_crop

CPU = torch.device("cpu")
RECIPE = {"height": 16, "width": 12, "channels": 3}


def smooth(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.dstack([columns * 255 // width, rows * 255 // height, (rows + columns) % 256]).astype(np.uint8)


def jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


FILES = [jpeg(smooth(40 + n, 60 - n)) for n in range(9)] + [encode_png(picture(9, 30, 50, 3))]


@pytest.fixture
def images(tmp_path: Path) -> PackedImages:
    given = [EncodedImage(file, n, *decode(file).shape[:2]) for n, file in enumerate(FILES)]
    write(tmp_path / "packed", given, tuple("abcdefghij"))
    return PackedImages(tmp_path / "packed")


def loader(images: PackedImages, batch_size: int = 10, seed: int = 1, **options: Any) -> TrainLoader:
    recipe = {**RECIPE, **options.pop("image", {})}
    return TrainLoader(
        random_crops(images, recipe, seed=seed), batch_size=batch_size, seed=seed, classes=10,
        device=options.pop("device", CPU), augmentation=options.pop("augmentation", Augmentation()), **options,
    )  # fmt: skip


def found(batches: TrainLoader, epoch: int = 0) -> dict[int, np.ndarray]:
    """The image of each class; each image is a class of its own."""
    batches.epoch = epoch
    by_class = {}
    for images_nchw, targets, _ in batches:
        assert images_nchw.dtype == torch.uint8
        assert images_nchw.is_contiguous(memory_format=torch.channels_last)
        for image, target in zip(images_nchw, targets, strict=True):
            by_class[int(target)] = image.permute(1, 2, 0).numpy()
    return by_class


def same(one: dict[int, np.ndarray], two: dict[int, np.ndarray]) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[n], two[n]) for n in one)


def test_a_crop_depends_on_seed_epoch_and_image_alone(images: PackedImages) -> None:
    whole = found(loader(images))
    assert len(whole) == 10
    assert same(found(loader(images, batch_size=2)), whole)
    other = loader(images, batch_size=5)
    assert not any(np.array_equal(image, whole[n]) for n, image in found(other, epoch=1).items())
    assert same(found(other, epoch=0), whole)
    assert not any(np.array_equal(image, whole[n]) for n, image in found(loader(images, seed=2)).items())


def test_each_visit_of_an_image_has_a_crop_of_its_own(images: PackedImages) -> None:
    crops = random_crops(images, RECIPE, seed=1)
    visits = crops.take(torch.tensor([3, 13, 23]), 0)
    assert torch.equal(visits[:1], crops.take(torch.tensor([3]), 0))
    assert len({visit.numpy().tobytes() for visit in visits}) == 3


def test_an_image_is_its_box_at_the_size_of_the_recipe(images: PackedImages) -> None:
    sizes = torch.tensor([decode(file).shape[:2] for file in FILES])
    boxes = crop_boxes(sizes, Draws(1, 3, torch.arange(10), 2**20)).tolist()
    expected = {n: resized_crop(file, tuple(boxes[n]), 16, 12) for n, file in enumerate(FILES)}
    assert same(found(loader(images), epoch=3), expected)


def test_the_steps_after_resizing_are_done(images: PackedImages) -> None:
    image = {"height": 16, "width": 16, "denoise": "median", "clahe": 2.0, "colour": "lab"}
    plain, looks = found(loader(images, image={"height": 16, "width": 16})), found(loader(images, image=image))
    for n, crop in plain.items():
        whole = prepare_crop(encode_png(np.ascontiguousarray(crop)), (0, 0, 16, 16), ImageRecipe(channels=3, **image))
        assert np.array_equal(looks[n], whole)
    assert loader(images, image={"channels": 1}).plain(torch.arange(3)).shape == (3, 1, 16, 12)


def test_crops_are_augmented_with_the_draws_of_their_samples(images: PackedImages) -> None:
    augmentation = Augmentation(flip=True, shift=2, cutout=3)
    crops = random_crops(images, RECIPE, seed=1).take(torch.arange(10), 2)
    expected = gather(crops, torch.arange(10), augmentation, 1, 2)
    made = found(loader(images, batch_size=5, augmentation=augmentation), epoch=2)
    assert same(made, {n: expected[n].numpy() for n in range(10)})


def test_policies_and_mixing_do_not_depend_on_the_batch(images: PackedImages) -> None:
    recipe = Recipe("trivialaugment", mixup=Mix(0.4, 0.5), cutmix=Mix(1.0, 0.5))
    one, two = ([*loader(images, size, recipe=recipe)] for size in (2, 10))
    for field in range(2):
        assert torch.equal(torch.cat([batch[field] for batch in one]), two[0][field])
    assert not torch.equal(two[0].images_nchw, next(iter(loader(images))).images_nchw)


def test_batches_are_resized_after_they_are_augmented(images: PackedImages) -> None:
    small = loader(images)
    small.size = (8, 6)
    assert next(iter(small)).images_nchw.shape == (10, 3, 8, 6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gets_the_same_batches(images: PackedImages) -> None:
    recipe = Recipe(mixup=Mix(0.4, 0.5))
    for options in ({"augmentation": Augmentation(flip=True, shift=2)}, {"recipe": recipe}):
        here, there = (loader(images, 4, device=device, **options) for device in (CPU, torch.device("cuda")))
        for one, two in zip(here, there, strict=True):
            assert torch.equal(one.images_nchw, two.images_nchw.cpu())
            assert torch.equal(one.targets, two.targets.cpu())


def test_a_damaged_image_is_named(images: PackedImages) -> None:
    path = images.folder / "images.bin"
    blob = bytearray(path.read_bytes())
    blob[-100] ^= 1
    path.write_bytes(blob)
    with pytest.raises(ShardError, match="damaged at image 9"):
        list(loader(PackedImages(images.folder)))


def boxes(height: int, width: int, count: int = 20_000) -> np.ndarray:
    sizes = torch.tensor([[height, width]]).expand(count, 2)
    return crop_boxes(sizes, Draws(0, 0, torch.arange(count))).numpy()


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 100), (300, 300)])
def test_boxes_are_distributed_as_torchvisions(height: int, width: int) -> None:
    ours = boxes(height, width)
    torch.manual_seed(0)
    picture = torch.empty(3, height, width)
    theirs = np.array([
        RandomResizedCrop.make_params(RandomResizedCrop(224), [picture])[name]
        for _ in range(4_000) for name in ("top", "left", "height", "width")
    ]).reshape(-1, 4)  # fmt: skip
    grid = np.linspace(0, max(height, width), 200)
    for column in range(4):
        one, two = (np.searchsorted(np.sort(side[:, column]), grid) / len(side) for side in (ours, theirs))
        assert np.abs(one - two).max() < 0.035  # Kolmogorov and Smirnov: p 0.001 is at 0.034
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()


def test_no_crop_is_smaller_than_allowed() -> None:
    sizes = torch.tensor([[300, 400]]).expand(2000, 2)
    found = crop_boxes(sizes, Draws(0, 0, torch.arange(2000)), least_area=0.5)
    shares = found[:, 2] * found[:, 3] / (300 * 400)
    assert 0.495 < shares.min() < 0.51
    assert crop_boxes(sizes[:9, [0, 0]], Draws(0, 0, torch.arange(9)), least_area=1.0)[:, 2:].float().mean() > 290


def test_where_nothing_fits_the_centre_is_taken() -> None:
    assert boxes(1, 1, 1).tolist() == [[0, 0, 1, 1]]
    top, left, height, width = boxes(1000, 2, 50)[0]
    assert (abs(top + height // 2 - 500) <= 1, left, width) == (True, 0, 2)


@pytest.mark.parametrize(("box", "limit"), [
    ((10, 20, 230, 240), 2.0),  # below a shrinkage of 2: interpolated
    ((0, 0, 600, 800), 2.0),  # decoded at a half
    ((7, 13, 1200, 1500), 2.0),  # at a quarter
])  # fmt: skip
def test_a_resized_crop_is_pillows_crop(box: tuple[int, int, int, int], limit: float) -> None:
    encoded = jpeg(smooth(1300, 1600) if box[2] > 600 else smooth(700, 900))
    top, left, height, width = box
    whole = Image.fromarray(decode(encoded, 3))
    theirs = whole.resize((224, 224), Image.Resampling.BILINEAR, (left, top, left + width, top + height), None)
    difference = np.abs(resized_crop(encoded, box, 224, 224).astype(int) - np.asarray(theirs))
    assert difference[:, :, :2].mean() < limit  # the third channel jumps from 255 to 0


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_box_counts_in_the_upright_image(orientation: int) -> None:
    from test_images import with_orientation

    encoded = with_orientation(jpeg(smooth(480, 640)), orientation)
    upright = decode(encoded, 3)
    found = resized_crop(encoded, (0, 0, *upright.shape[:2]), 60, 60)  # decoded at 1/8
    theirs = cv2.resize(upright, (60, 60), interpolation=cv2.INTER_AREA)
    assert np.abs(found.astype(int) - theirs)[:, :, :2].mean() < 2
