"""Each operation against Pillow and torchvision, at many magnitudes."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from deepcv.data.augmentation import Draws, colour

Reference = Callable[[Image.Image, float], Image.Image]
FACTORS = [0.0, 0.1, 0.55, 1.0, 1.3, 1.9, 4.0]


def photographs(channels: int = 3) -> Tensor:
    """Patches of two photographs, pure noise, a constant image, few grey levels, and one pixel apart from all others."""
    patches = [image[y : y + 40, x : x + 48] for image in load_sample_images().images for y, x in [(0, 0), (200, 300)]]
    random = np.random.default_rng(0)
    patches.append(random.integers(0, 256, (40, 48, 3), np.uint8))
    patches.append(np.full((40, 48, 3), 77, np.uint8))
    patches.append(random.integers(100, 104, (40, 48, 3)).astype(np.uint8))
    odd = np.full((40, 48, 3), 10, np.uint8)
    odd[3, 4] = 200
    images = torch.from_numpy(np.stack([*patches, odd])).permute(0, 3, 1, 2).contiguous()
    return images[:, :channels].contiguous()


def with_pillow(images: Tensor, reference: Reference, magnitude: float) -> Tensor:
    found = []
    for image_chw in images:
        array = image_chw.permute(1, 2, 0).numpy()
        picture = Image.fromarray(array[:, :, 0] if len(image_chw) == 1 else array)
        changed = np.asarray(reference(picture, magnitude))
        found.append(torch.from_numpy(changed.reshape(array.shape).copy()).permute(2, 0, 1))
    return torch.stack(found)


def difference(found: Tensor, expected: Tensor) -> int:
    assert found.dtype == torch.uint8
    assert found.shape == expected.shape
    return int((found.int() - expected.int()).abs().max())


PILLOW: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Reference, list[float]]] = {
    "brightness": (colour.brightness, lambda p, m: ImageEnhance.Brightness(p).enhance(m), FACTORS),
    "contrast": (colour.contrast, lambda p, m: ImageEnhance.Contrast(p).enhance(m), FACTORS),
    "colour": (colour.colour, lambda p, m: ImageEnhance.Color(p).enhance(m), FACTORS),
    "sharpness": (colour.sharpness, lambda p, m: ImageEnhance.Sharpness(p).enhance(m), [0.0, 0.5, 1.0]),
    "posterize": (colour.posterize, lambda p, m: ImageOps.posterize(p, int(m)), [1, 2, 4, 7, 8]),
    "solarize": (colour.solarize, lambda p, m: ImageOps.solarize(p, m), [0, 1, 100, 128, 255, 256]),
    "autocontrast": (lambda i, _: colour.autocontrast(i), lambda p, _: ImageOps.autocontrast(p), [0]),
    "equalize": (lambda i, _: colour.equalize(i), lambda p, _: ImageOps.equalize(p), [0]),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", PILLOW)
def test_operations_are_pillows(name: str, channels: int) -> None:
    operation, reference, magnitudes = PILLOW[name]
    images = photographs(channels)
    for magnitude in magnitudes:
        found = operation(images, torch.full((len(images),), float(magnitude)))
        furthest = difference(found, with_pillow(images, reference, magnitude))
        assert furthest <= (1 if name == "autocontrast" else 0)  # which Pillow rounds from float64


# Without contrast and colour: torchvision cuts grey values where Pillow rounds them, and at factors 0 and 4 the two differ
# from each other by up to 3. We are Pillow.
TORCHVISION: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, float], Tensor], list[float]]] = {
    "brightness": (colour.brightness, V.adjust_brightness, FACTORS),
    "sharpness": (colour.sharpness, V.adjust_sharpness, [0.0, 0.5, 1.0]),
    "gamma": (colour.gamma, V.adjust_gamma, [0.3, 0.7, 1.0, 1.4, 3.0]),
    "posterize": (colour.posterize, lambda i, m: V.posterize(i, int(m)), [1, 2, 4, 7, 8]),
    "solarize": (colour.solarize, V.solarize, [0, 1, 100, 128, 255]),
    "autocontrast": (lambda i, _: colour.autocontrast(i), lambda i, _: V.autocontrast(i), [0]),
    "equalize": (lambda i, _: colour.equalize(i), lambda i, _: V.equalize(i), [0]),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_operations_are_torchvisions(name: str) -> None:
    operation, reference, magnitudes = TORCHVISION[name]
    images = photographs()
    for magnitude in magnitudes:
        found = operation(images, torch.full((len(images),), float(magnitude)))
        expected = torch.stack([reference(image, magnitude) for image in images])
        assert difference(found, expected) <= 1


@pytest.mark.parametrize("name", PILLOW)
def test_each_image_has_its_own_magnitude(name: str) -> None:
    operation, _, magnitudes = PILLOW[name]
    images = photographs()
    own = torch.tensor([magnitudes[n % len(magnitudes)] for n in range(len(images))], dtype=torch.float32)
    whole = operation(images, own)
    for number in range(len(images)):
        assert torch.equal(whole[number], operation(images[number : number + 1], own[number : number + 1])[0])


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 2)])
@pytest.mark.parametrize("name", PILLOW)
def test_tiny_images_pass(name: str, size: tuple[int, int]) -> None:
    operation, _, magnitudes = PILLOW[name]
    images = torch.randint(0, 256, (4, 3, *size), dtype=torch.uint8)
    assert operation(images, torch.full((4,), float(magnitudes[-1]))).shape == images.shape


def test_contrast_rounds_the_mean_as_pillow_does() -> None:
    """A mean just below a half, which float32 would round up; factor 4 makes a wrong grey level visible."""
    image = torch.full((1, 1, 512, 512), 200, dtype=torch.uint8)
    image.view(-1)[:131072] = 201
    image.view(-1)[-1] = 199
    expected = with_pillow(image, lambda p, m: ImageEnhance.Contrast(p).enhance(m), 4)
    assert difference(colour.contrast(image, torch.tensor([4.0])), expected) <= 1


@pytest.mark.parametrize("name", PILLOW)
def test_an_empty_batch_and_autocast_change_nothing(name: str) -> None:
    operation, _, magnitudes = PILLOW[name]
    assert len(operation(torch.zeros(0, 3, 4, 4, dtype=torch.uint8), torch.zeros(0))) == 0
    images, own = photographs(), torch.full((len(photographs()),), float(magnitudes[1 % len(magnitudes)]))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(operation(images, own), expected := operation(images, own))
    assert torch.equal(expected, operation(images, own))


def test_noise_is_normal_of_the_given_width_and_repeats() -> None:
    grey = torch.full((4, 3, 40, 50), 128, dtype=torch.uint8)
    keys = Draws(0, 0, torch.arange(4)).bits(0)[:, 0]
    sigma = torch.tensor([0.0, 5.0, 10.0, 20.0])
    found = colour.noise(grey, sigma, keys)
    assert torch.equal(found[0], grey[0])
    for image, width in zip(found[1:], sigma[1:], strict=True):
        values = image.double().flatten() - 128
        assert float(values.mean()) == pytest.approx(0, abs=4 * float(width) / 6000**0.5)
        assert float(values.std()) == pytest.approx(float(width), rel=0.05)
        assert abs(stats.kurtosis(values.numpy())) < 0.5
    assert torch.equal(colour.noise(grey[2:3], sigma[2:3], keys[2:3])[0], found[2])
    assert not torch.equal(found[2] - 128, (found[1] - 128) * 2)  # every image has its own
