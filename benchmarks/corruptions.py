"""The fifteen corruptions of Hendrycks and Dietterich 2019 (arXiv 1903.12261) in five severities, for benchmarks alone.

Made from the paper's description with the severities of CIFAR-10-C, for images of 32×32; the images are not those of
CIFAR-10-C. What differs: the paper lays photographs of frost over an image, here the frost is a generated fractal; motion is
a sum of shifted images in whole pixels; an elastic transform interpolates once; glass moves pixels to either side.
Everything runs on the CPU in float32 and draws from (corruption, severity, number of the chunk): equal on every machine but
for what libraries round otherwise. Nothing here may be used in training.
"""

import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

SEVERITIES = 5
_CHUNK = 1_000  # images that share a generator
_FAINT = 1e-3  # a share of the light that a blur leaves out
_FROST = (0.86, 0.94, 1.0)  # the colour of frost
_SIDE = 32  # of the images that the severities are meant for
_Rng = np.random.Generator


def corrupted(images_nhwc: NDArray[np.uint8], name: str, severity: int) -> NDArray[np.uint8]:
    """Return uint8 images (n, h, w, 3) after a corruption of `NAMES`; `severity` 1 … 5."""
    change, severities = _CORRUPTIONS[name]
    made = np.empty_like(images_nhwc)
    for number, start in enumerate(range(0, len(images_nhwc), _CHUNK)):
        rng = np.random.default_rng([NAMES.index(name), severity, number])
        part = np.array(images_nhwc[start : start + _CHUNK])
        images = torch.from_numpy(part).permute(0, 3, 1, 2).contiguous().float() / 255
        changed = change(images, severities[severity - 1], rng).clamp(0, 1) * 255
        made[start : start + _CHUNK] = changed.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return made


def gaussian_noise(images: Tensor, sigma: float, rng: _Rng) -> Tensor:
    """Add normal noise."""
    return images + sigma * _normal(rng, images.shape)


def shot_noise(images: Tensor, photons: float, rng: _Rng) -> Tensor:
    """Count photons: a Poisson number whose mean is the value times `photons`."""
    return torch.from_numpy(rng.poisson(images.numpy() * photons).astype(np.float32)) / photons


def impulse_noise(images: Tensor, share: float, rng: _Rng) -> Tensor:
    """Set this share of the values to 0 or 1."""
    chance = _uniform(rng, images.shape)
    return images.masked_fill(chance < share, 0).masked_fill(chance < share / 2, 1)


def defocus_blur(images: Tensor, disk: tuple[float, float], _rng: _Rng) -> Tensor:
    """Blur with a disk (radius, sigma of what softens its edge)."""
    radius, soft = disk
    places = torch.arange(-3.0, 4.0)  # the largest radius is 1.5, the softening reaches one pixel further
    kernel = (places[:, None] ** 2 + places**2 <= radius**2).float()
    line = torch.exp(-torch.tensor([1.0, 0.0, 1.0]) / (2 * soft**2))
    kernel = functional.conv2d(kernel[None, None], torch.outer(line, line)[None, None], padding=1)
    channels = images.shape[1]
    weight = (kernel / kernel.sum()).expand(channels, 1, 7, 7)
    return functional.conv2d(functional.pad(images, (3, 3, 3, 3), "reflect"), weight, groups=channels)


def glass_blur(images: Tensor, glass: tuple[float, int, int], rng: _Rng) -> Tensor:
    """Swap pixels with near ones, between two blurs (sigma, reach of a swap, how often)."""
    sigma, reach, times = glass
    images = _blurred(images, sigma)
    count, channels, height, width = images.shape
    source = np.tile(np.arange(height * width), (count, 1))
    every = np.arange(count)
    for _ in range(times):
        for y in range(height - reach - 1, reach - 1, -1):
            for x in range(width - reach - 1, reach - 1, -1):
                down, right = rng.integers(-reach, reach + 1, (2, count))
                here, there = y * width + x, (y + down) * width + x + right
                source[every, there], source[:, here] = source[:, here].copy(), source[every, there]
    index = torch.from_numpy(source)[:, None].expand(-1, channels, -1)
    return _blurred(images.flatten(2).gather(2, index).view(images.shape), sigma)


def motion_blur(images: Tensor, motion: tuple[int, float], rng: _Rng) -> Tensor:
    """Blur along a line (its radius, sigma), within 45° of the horizontal."""
    return _moved(images, *motion, degrees=rng.uniform(-45, 45, len(images)))


def zoom_blur(images: Tensor, largest: float, _rng: _Rng) -> Tensor:
    """Average the image and all its enlargements from 1 to `largest`, by hundredths."""
    factors = [1 + hundredth / 100 for hundredth in range(round(100 * (largest - 1)) + 1)]
    rows, columns = ([_zoom(side, factor) for factor in factors] for side in images.shape[2:])
    # All of them as one matrix of pixels to pixels: a tenth of the time.
    every = torch.stack([torch.kron(*pair) for pair in zip(rows, columns, strict=True)]).sum(0)
    return (images + (images.flatten(2) @ every.T).view(images.shape)) / (len(factors) + 1)


def snow(images: Tensor, flakes: tuple[float, float, float, float, int, float, float], rng: _Rng) -> Tensor:
    """Whiten the image and let flakes fall: noise (mean, sigma), enlarged, cut below a value, blurred by motion (radius, sigma)."""
    mean, sigma, enlarged, least, radius, motion, kept = flakes
    count, _, height, width = images.shape
    layer = _zoomed(mean + sigma * _normal(rng, (count, 1, height, width)), enlarged)
    layer = _moved(layer.masked_fill(layer < least, 0).clamp(0, 1), radius, motion, rng.uniform(-135, -45, count))
    white = torch.maximum(images, _grey(images) * 1.5 + 0.5)
    return kept * images + (1 - kept) * white + layer + layer.flip(2, 3)


def frost(images: Tensor, shares: tuple[float, float], rng: _Rng) -> Tensor:
    """Add frost (share of the image, of the frost): ridges of a rough fractal, denser where a smooth one is high."""
    count, _, height, width = images.shape
    side = 1 << (max(height, width) - 1).bit_length()
    cover, rough = _plasma(rng, count, side, 2.0), _plasma(rng, count, side, 1.3)
    crystals = (1 - (2 * rough - 1).abs()) ** 2
    texture = (0.2 + 0.4 * cover + 0.6 * crystals * cover.sqrt()).clamp(max=1)[:, :, :height, :width]
    return shares[0] * images + shares[1] * texture * torch.tensor(_FROST)[:, None, None]


def fog(images: Tensor, density: tuple[float, float], rng: _Rng) -> Tensor:
    """Add a fractal (how much, how smooth), and scale so that the brightest value stays."""
    share, decay = density
    height, width = images.shape[2:]
    side = 1 << (max(height, width) - 1).bit_length()
    brightest = images.amax((1, 2, 3), keepdim=True)
    mist = images + share * _plasma(rng, len(images), side, decay)[:, :, :height, :width]
    return mist * brightest / (brightest + share)


def brightness(images: Tensor, more: float, _rng: _Rng) -> Tensor:
    """Raise the value of HSV; hue and saturation stay."""
    value = images.amax(1, keepdim=True)
    raised = (value + more).clamp(max=1)
    return torch.where(value > 0, images * (raised / value.clamp(min=1e-6)), raised)


def contrast(images: Tensor, factor: float, _rng: _Rng) -> Tensor:
    """Bring values nearer to the channel's mean."""
    mean = images.mean((2, 3), keepdim=True)
    return mean + factor * (images - mean)


def elastic(images: Tensor, stretch: tuple[float, float, float], rng: _Rng) -> Tensor:
    """Displace pixels by a smooth field (height, sigma) and an affine map that moves three points by up to so much, in sides."""
    reach, sigma, corners = (share * _SIDE for share in stretch)
    count, _, height, width = images.shape
    third = min(height, width) // 3
    points = torch.tensor([[1.0, 1.0, -1.0], [1.0, -1.0, -1.0]]) * third  # x and y from the centre
    ones = torch.ones(1, 3)
    moved = points + corners * (2 * _uniform(rng, (count, 2, 3)) - 1)
    matrix = moved @ torch.linalg.inv(torch.cat([points, ones]))  # (n, 2, 3)
    ys, xs = torch.meshgrid(
        torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij"
    )
    places = torch.stack([xs.flatten(), ys.flatten(), torch.ones(height * width)])
    field = reach * _blurred(2 * _uniform(rng, (count, 2, height, width)) - 1, sigma)
    source = (matrix @ places).view(count, 2, height, width) + field
    grid = source / torch.tensor([(width - 1) / 2, (height - 1) / 2])[:, None, None]
    return functional.grid_sample(
        images, grid.permute(0, 2, 3, 1), mode="bilinear", padding_mode="reflection", align_corners=True
    )


def pixelate(images: Tensor, share: float, _rng: _Rng) -> Tensor:
    """Average the image to `share` of its side, and enlarge it again."""
    down = [_boxes(side, int(side * share)) for side in images.shape[2:]]
    up = [_boxes(int(side * share), side) for side in images.shape[2:]]
    return up[0] @ (down[0] @ images @ down[1].T) @ up[1].T


def jpeg(images: Tensor, quality: int, _rng: _Rng) -> Tensor:
    """Compress as JPEG."""
    made = []
    for image in (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy():
        _, encoded = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        made.append(np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR))[:, :, ::-1])
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).float() / 255


def _normal(rng: _Rng, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def _uniform(rng: _Rng, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(rng.random(shape, dtype=np.float32))


def _grey(images: Tensor) -> Tensor:
    return (images * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)


def _blurred(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur by two matrix products: also where sigma is no smaller than the image, which is mirrored at its border."""
    rows, columns = (_gaussian(side, sigma) for side in images.shape[2:])
    return rows @ images @ columns.T


def _gaussian(side: int, sigma: float) -> Tensor:
    if sigma == 0:
        return torch.eye(side)
    reach = math.ceil(3 * sigma)
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.softmax(-(offsets.double() ** 2) / (2 * sigma**2), 0).float()
    places = (torch.arange(side)[:, None] + offsets) % (2 * side)
    mirrored = torch.minimum(places, 2 * side - 1 - places)
    return torch.zeros(side, side).scatter_add(1, mirrored, weights.expand(side, -1))


def _zoomed(images: Tensor, factor: float) -> Tensor:
    """Enlarge about the centre, bilinear."""
    rows, columns = (_zoom(side, factor) for side in images.shape[2:])
    return rows @ images @ columns.T


def _zoom(side: int, factor: float) -> Tensor:
    middle = (side - 1) / 2
    source = (torch.arange(side) - middle) / factor + middle
    return (1 - (source[:, None] - torch.arange(side)).abs()).clamp(min=0)


def _boxes(side: int, pixels: int) -> Tensor:
    """Means over `pixels` equal parts of a line of `side` pixels, (pixels, side)."""
    begin = torch.arange(pixels, dtype=torch.float64)[:, None] * side / pixels
    place = torch.arange(side)
    covered = torch.minimum(begin + side / pixels, place + 1.0) - torch.maximum(begin, place.double())
    return (covered.clamp(min=0) * pixels / side).float()


def _moved(images: Tensor, radius: int, sigma: float, degrees: NDArray[np.float64]) -> Tensor:
    """Sum images moved along a line at each one's angle, with one half of a Gaussian as weights; the border is repeated."""
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    weights = weights[weights > _FAINT]
    angle = torch.deg2rad(torch.from_numpy(degrees))
    height, width = images.shape[2:]
    total = torch.zeros_like(images)
    for step, weight in enumerate(weights / weights.sum()):
        down, right = (step * angle.sin()).round().long(), (step * angle.cos()).round().long()
        rows = (torch.arange(height) + down[:, None]).clamp(0, height - 1)
        columns = (torch.arange(width) + right[:, None]).clamp(0, width - 1)
        index = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)[:, None].expand(-1, images.shape[1], -1)
        total += float(weight) * images.flatten(2).gather(2, index).view(images.shape)
    return total


def _plasma(rng: _Rng, count: int, side: int, decay: float) -> Tensor:
    """Fractals (count, 1, side, side) from 0 to 1 by diamonds and squares on a torus; noise falls by decay² per halving."""
    field = np.zeros((count, side, side), np.float32)
    step, reach = side, 1.0
    while step > 1:
        half = step // 2
        corners = field[:, ::step, ::step].copy()
        below, right = np.roll(corners, -1, 1), np.roll(corners, -1, 2)
        noise = reach * (2 * rng.random((3, *corners.shape), dtype=np.float32) - 1)
        centres = (corners + below + right + np.roll(below, -1, 2)) / 4 + noise[0]
        field[:, half::step, half::step] = centres
        field[:, ::step, half::step] = (corners + right + centres + np.roll(centres, 1, 1)) / 4 + noise[1]
        field[:, half::step, ::step] = (corners + below + centres + np.roll(centres, 1, 2)) / 4 + noise[2]
        step, reach = half, reach / decay**2
    low, high = field.min((1, 2), keepdims=True), field.max((1, 2), keepdims=True)
    return torch.from_numpy((field - low) / (high - low))[:, None]


_CORRUPTIONS: dict[str, tuple[Callable[[Tensor, Any, _Rng], Tensor], tuple[Any, ...]]] = {
    "gaussian_noise": (gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": (defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "glass_blur": (glass_blur, ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))),
    "motion_blur": (motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom_blur": (zoom_blur, (1.05, 1.10, 1.15, 1.20, 1.25)),
    "snow": (snow, (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    )),
    "frost": (frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    "fog": (fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": (brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic": (elastic, ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))),
    "pixelate": (pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg": (jpeg, (80, 65, 58, 50, 40)),
}  # fmt: skip
NAMES = tuple(_CORRUPTIONS)
