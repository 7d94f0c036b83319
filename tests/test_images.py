import struct

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import picture

from deepcv.images import DecodeError, ImageRecipe, decode, encode_png, fit, grid, prepare


def smooth(height: int, width: int) -> np.ndarray:
    """A picture that JPEG keeps closely: red grows to the right, green downwards."""
    rows, columns = np.mgrid[:height, :width]
    return np.dstack([columns * 255 // width, rows * 255 // height, np.full((height, width), 30)]).astype(np.uint8)


def encoded(suffix: str, bgr: np.ndarray) -> bytes:
    return cv2.imencode(suffix, bgr)[1].tobytes()


def with_orientation(jpeg: bytes, orientation: int) -> bytes:
    """Put an EXIF segment with one tag, the orientation, after JPEG's start marker."""
    tiff = b"II*\x00" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    body = b"Exif\x00\x00" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


@pytest.mark.parametrize(("channels", "kept"), [(1, 1), (3, 3)])
@pytest.mark.parametrize("asked", [None, 1, 3])
def test_decode_gives_the_channels_that_are_asked_for(channels: int, kept: int, asked: int | None) -> None:
    image = picture(0, 5, 7, channels)
    found = decode(encode_png(image), asked)
    assert found.shape == (5, 7, asked or kept)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    if asked in (None, channels):
        assert np.array_equal(found, image)
    elif asked == 3:
        assert np.array_equal(found, np.repeat(image, 3, axis=2))


def test_colours_are_rgb() -> None:
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 2] = 255  # OpenCV writes BGR
    assert decode(encoded(".png", red))[0, 0].tolist() == [255, 0, 0]
    assert abs(int(decode(encoded(".png", red), 1)[0, 0, 0]) - 76) <= 1  # luma of red, ITU-R BT.601


def test_transparency_is_dropped() -> None:
    image = picture(1, 6, 5, 4)
    found = decode(encoded(".png", image))
    assert np.array_equal(found, image[:, :, 2::-1])


def test_sixteen_bits_become_eight() -> None:
    image = picture(2, 6, 5, 1)
    assert np.array_equal(decode(encoded(".png", image.astype(np.uint16) * 257)), image)


@pytest.mark.parametrize(("orientation", "turned"), [(1, 0), (3, 2), (6, -1), (8, 1)])
@pytest.mark.parametrize("channels", [None, 1, 3])
def test_exif_orientation_is_applied(orientation: int, turned: int, channels: int | None) -> None:
    jpeg = encoded(".jpg", smooth(16, 24)[:, :, ::-1])
    upright, found = decode(jpeg, channels), decode(with_orientation(jpeg, orientation), channels)
    assert np.array_equal(found, np.rot90(upright, turned))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tiff", ".ppm", ".gif"])
@pytest.mark.parametrize("channels", [None, 1, 3])
def test_a_truncated_file_is_refused(suffix: str, channels: int | None) -> None:
    whole = encoded(suffix, smooth(40, 60))
    assert decode(whole, channels).shape[:2] == (40, 60)
    for kept in (len(whole) // 3, len(whole) * 9 // 10, len(whole) - 1):
        with pytest.raises(DecodeError, match="not a whole image"):
            decode(whole[:kept], channels)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b"hello", "not a whole image"), (b"\xff\xd8\xff" + b"0" * 99, "not a whole image")],
)
def test_what_is_no_image_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        decode(content)


sides = st.integers(1, 40)


@settings(deadline=None)
@given(sides, sides, sides, sides, st.sampled_from([1, 3]), st.sampled_from(["stretch", "pad", "crop"]))
def test_fit_always_gives_the_shape_of_the_recipe(
    height: int, width: int, to_height: int, to_width: int, channels: int, resize: str
) -> None:
    image = picture(3, height, width, channels)
    found = fit(image, ImageRecipe(to_height, to_width, channels, resize))
    assert found.shape == (to_height, to_width, channels)
    assert found.dtype == np.uint8
    if (height, width) == (to_height, to_width):
        assert np.array_equal(found, image)


@settings(deadline=None)
@given(st.integers(4, 40), st.integers(4, 40), st.integers(8, 40), st.integers(8, 40))
def test_pad_keeps_the_aspect_ratio(height: int, width: int, to_height: int, to_width: int) -> None:
    found = fit(np.full((height, width, 1), 255, np.uint8), ImageRecipe(to_height, to_width, 1, "pad"))[:, :, 0]
    rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
    scale = min(to_height / height, to_width / width)
    assert abs(len(rows) - height * scale) <= 1
    assert abs(len(columns) - width * scale) <= 1
    assert found[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()  # one block …
    assert abs(rows[0] - (to_height - 1 - rows[-1])) <= 1  # … in the middle
    assert abs(columns[0] - (to_width - 1 - columns[-1])) <= 1


def test_crop_takes_the_centre() -> None:
    image = np.repeat(np.arange(12, dtype=np.uint8), 4).reshape(12, 4, 1)
    assert np.array_equal(fit(image, ImageRecipe(4, 4, 1, "crop")), image[4:8])


def test_stretch_fills_the_frame() -> None:
    assert (fit(np.full((3, 9, 3), 7, np.uint8), ImageRecipe(8, 8, 3)) == 7).all()


def test_shrinking_averages() -> None:
    stripes = np.zeros((12, 12, 1), np.uint8)
    stripes[::3] = 90  # linear interpolation to a third looks at the rows between them alone
    assert (fit(stripes, ImageRecipe(4, 4, 1)) == 30).all()


def test_prepare_is_decode_then_fit() -> None:
    content = encode_png(picture(4, 9, 7, 3))
    recipe = ImageRecipe(8, 8, 1, "crop")
    assert np.array_equal(prepare(content, recipe), fit(decode(content, 1), recipe))
    with pytest.raises(DecodeError):
        prepare(content[:-20], recipe)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 99), sides, sides, st.sampled_from([1, 3]))
def test_png_round_trip(seed: int, height: int, width: int, channels: int) -> None:
    image = picture(seed, height, width, channels)
    assert np.array_equal(decode(encode_png(image), channels), image)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("count", "rows"), [(1, 1), (3, 1), (4, 2)])
def test_grid_shows_every_image(channels: int, count: int, rows: int) -> None:
    images = np.stack([np.full((4, 4, channels), 10 * (n + 1), np.uint8) for n in range(count)])
    sheet = grid(images, [("a", "b")] * count, columns=3, tile_side=16)
    assert sheet.shape == (rows * (16 + 2 * 14 + 6 + 6), 3 * (16 + 6), 3)
    for number in range(count):
        row, column = divmod(number, 3)
        top, left = row * (16 + 2 * 14 + 12), column * 22
        assert (sheet[top : top + 16, left : left + 16] == 10 * (number + 1)).all()
    assert (sheet[16:34, :16] < 128).any()  # the caption


def test_grid_of_nothing_is_an_empty_sheet() -> None:
    sheet = grid(np.zeros((0, 8, 8, 1), np.uint8), [], columns=5)
    assert sheet.size
    assert (sheet == 255).all()
