"""Operations on pixel values: batches of uint8 images (b, c, h, w), 1 or 3 channels, each with its own magnitude (b,).

Values follow Pillow's ImageEnhance and ImageOps, which the papers on augmentation are written against.
"""

import torch
from torch import Tensor

from deepcv.data.augmentation.draws import mix32


def brightness(images_nchw: Tensor, factor: Tensor) -> Tensor:
    """Blend with black: 0 is black, 1 the image, above 1 brighter."""
    return to_uint8(images_nchw * _per_image(factor))


def contrast(images_nchw: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image's mean grey: 0 is that grey, 1 the image."""
    grey = _grey(images_nchw)
    count = grey.shape[2] * grey.shape[3]
    mean = (2 * grey.sum(dim=(1, 2, 3), keepdim=True) + count) // (2 * count)  # rounded, in integers: exact
    return _blend(images_nchw, mean, factor)


def colour(images_nchw: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image (saturation): 0 is grey, 1 the image; a grey image stays as it is."""
    if images_nchw.shape[1] == 1:
        return images_nchw
    return _blend(images_nchw, _grey(images_nchw), factor)


def sharpness(images_nchw: Tensor, factor: Tensor) -> Tensor:
    """Blend with the smoothed image: 0 is smooth, 1 the image, above 1 sharper. The border keeps its values."""
    if min(images_nchw.shape[2:]) < 3:
        return images_nchw
    # Sums of integers instead of a convolution: they are exact under autocast and TF32 too, and take half the time.
    smooth = images_nchw.float()
    rows = smooth[:, :, :-2] + smooth[:, :, 1:-1] + smooth[:, :, 2:]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth[:, :, 1:-1, 1:-1] = ((box + 4 * smooth[:, :, 1:-1, 1:-1]) / 13 + 0.5).floor()
    return _blend(images_nchw, smooth, factor)


def gamma(images_nchw: Tensor, exponent: Tensor) -> Tensor:
    """255 · (v / 255)^exponent: below 1 brighter, above 1 darker."""
    values = torch.arange(256, device=images_nchw.device, dtype=torch.float64) / 255
    tables = (255 * values ** exponent.double()[:, None] + 0.5).to(torch.uint8)  # float32 powers depend on their place
    return _look_up(images_nchw, tables[:, None].expand(-1, images_nchw.shape[1], -1))


def posterize(images_nchw: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest `bits` of each value, 0 … 8, cut to a whole number; 0 is black."""
    mask = (0xFF00 >> bits.long().clamp(0, 8)) & 0xFF
    return images_nchw & _per_image(mask.to(torch.uint8))


def solarize(images_nchw: Tensor, threshold: Tensor) -> Tensor:
    """Invert values at or above the threshold, 0 … 256."""
    above = images_nchw.to(torch.int16) >= _per_image(threshold)
    return images_nchw ^ (
        above.to(torch.uint8) * 255
    )  # v ^ 255 is 255 − v; `torch.where` of bytes takes ten times as long


def autocontrast(images_nchw: Tensor) -> Tensor:
    """Stretch each channel to 0 … 255; a constant one stays as it is."""
    flat = images_nchw.flatten(2)
    low, high = flat.amin(2)[:, :, None, None].float(), flat.amax(2)[:, :, None, None].float()
    flat_channel = high == low
    low, high = low.masked_fill(flat_channel, 0), high.masked_fill(flat_channel, 255)
    return to_uint8((images_nchw - low) * (255 / (high - low)))


def equalize(images_nchw: Tensor) -> Tensor:
    """Spread each channel's histogram evenly over 0 … 255, as Pillow's integer arithmetic does it."""
    batch, channels = images_nchw.shape[:2]
    planes = images_nchw.flatten(2).flatten(0, 1)
    one = torch.ones((), dtype=torch.int64, device=planes.device).expand(planes.shape)
    # `bincount` waits for a GPU, and takes longer on a CPU.
    histogram = one.new_zeros(len(planes), 256).scatter_add_(1, planes.long(), one)
    highest = planes.amax(1, keepdim=True).long()
    step = (planes.shape[1] - histogram.gather(1, highest)) // 255
    before = histogram.cumsum(1) - histogram
    tables = ((step // 2 + before) // step.clamp(min=1)).clamp(max=255)
    tables = torch.where(step > 0, tables, torch.arange(256, device=planes.device))
    return _look_up(images_nchw, tables.to(torch.uint8).view(batch, channels, 256))


def noise(images_nchw: Tensor, sigma: Tensor, keys: Tensor) -> Tensor:
    """Add noise of `sigma` grey levels; `keys` (b,), int64 0 … 2³²−1, decide it, alike on every device.

    The sum of the 4 bytes of a hash has the mean 510 and the variance 4 · (256² − 1) / 12: near enough to normal.
    """
    shape = images_nchw.shape[1:]
    pixels = torch.arange(shape.numel(), device=images_nchw.device).view(shape)
    bits = mix32(mix32(pixels + 1) ^ _per_image(keys))
    total = (bits & 0xFF) + ((bits >> 8) & 0xFF) + ((bits >> 16) & 0xFF) + (bits >> 24)
    normal = (total - 510).float() * (12 / (4 * (256**2 - 1))) ** 0.5
    return to_uint8((images_nchw + normal * _per_image(sigma) + 0.5).floor())


def _grey(images_nchw: Tensor) -> Tensor:
    """ITU-R 601 luma in Pillow's integer arithmetic, int32 (b, 1, h, w)."""
    if images_nchw.shape[1] == 1:
        return images_nchw.int()
    red, green, blue = images_nchw.int().unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16)[:, None]


def _blend(images_nchw: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return to_uint8(other + (images_nchw - other) * _per_image(factor))


def _look_up(images_nchw: Tensor, tables: Tensor) -> Tensor:
    """Map values by a table of 256 per channel: `tables` uint8 (b, c, 256)."""
    return tables.gather(2, images_nchw.flatten(2).long()).view(images_nchw.shape)


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def to_uint8(values: Tensor) -> Tensor:
    """Cut to 0 … 255 and to integers; through int16, which takes a third of the time of the direct way."""
    return values.clamp(0, 255).to(torch.int16).to(torch.uint8)
