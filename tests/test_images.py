import re
import struct
import tracemalloc
import zlib
from dataclasses import replace
from io import BytesIO

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from toys import picture

from deepcv.images import DecodeError, ImageRecipe, decode, encode_png, fit, grid, headers, modes, prepare
from deepcv.images.codec import check_header, reduction
from deepcv.params.validate import MODE


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
    [(b"", "empty"), (b"hello", "not an image format"), (b"\xff\xd8\xff" + b"0" * 99, "not a whole image")],
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


def png_header(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG that claims a size and holds no pixels to speak of."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


def pillow(mode: str, suffix: str, **options: object) -> bytes:
    content = BytesIO()
    image = Image.fromarray(smooth(20, 30)).convert(mode)
    if mode == "RGBA":
        image.putalpha(100)  # of opaque ones some encoders drop it
    image.save(content, suffix, **options)
    return content.getvalue()


def claimed(suffix: str) -> bytes:
    """A file of 12×10 pixels whose header claims 20,000×20,000."""
    content = bytearray(encoded(suffix, smooth(10, 12)[:, :, ::-1]))
    place, layout = {
        ".jpg": (content.find(b"\xff\xc0") + 5, ">HH"), ".gif": (6, "<HH"), ".bmp": (18, "<ii"), ".webp": (0, ""),
    }[suffix]  # fmt: skip
    if suffix == ".webp":  # lossless: 14 bits a side, so the largest is 16384
        content[21:25] = struct.pack("<I", 16383 | 16383 << 14)
    else:
        struct.pack_into(layout, content, place, 20_000, 20_000)
    return bytes(content)


@pytest.mark.parametrize("content", [
    png_header(20_000, 20_000), png_header(2**31 - 1, 2**31 - 1), b"P6 20000 20000 255\n" + b"0" * 99,
    *(claimed(suffix) for suffix in (".jpg", ".gif", ".bmp", ".webp")),
])  # fmt: skip
def test_a_decompression_bomb_is_refused_by_its_header(content: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(DecodeError, match=r"\d+ × \d+ pixels are more than the limit of 128 × 2²⁰; scale"):
        prepare(content, ImageRecipe(8, 8, 3, reduced=True))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tiff", ".ppm", ".pam", ".gif", ".jp2", ".avif"])
def test_a_header_says_the_size(suffix: str) -> None:
    assert headers.read(encoded(suffix, smooth(40, 60)))[:2] == (60, 40)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_header_says_the_size_of_the_upright_image(orientation: int) -> None:
    jpeg = with_orientation(encoded(".jpg", smooth(16, 24)), orientation)
    assert headers.read(jpeg)[:2] == decode(jpeg).shape[1::-1]


@settings(deadline=None)
@given(
    st.sampled_from([".jpg", ".png", ".webp", ".tiff", ".ppm", ".gif", ".jp2"]),
    st.integers(0, 60),
    st.binary(max_size=9),
)
def test_a_damaged_header_raises_nothing_else(suffix: str, kept: int, noise: bytes) -> None:
    whole = encoded(suffix, smooth(40, 60))
    headers.read(whole[:kept] + noise)
    headers.read(whole[:kept] + noise + whole[kept + len(noise) :])


@pytest.mark.parametrize(
    ("content", "channels"),
    [
        (pillow("CMYK", "JPEG"), 3), (pillow("P", "PNG"), 3), (pillow("P", "GIF"), 3), (pillow("1", "PNG"), 1),
        (pillow("RGB", "GIF", save_all=True, append_images=[Image.new("RGB", (30, 20))]), 3),
        (pillow("RGB", "WEBP", save_all=True, append_images=[Image.new("RGB", (30, 20))], lossless=True), 3),
        (pillow("RGB", "JPEG", progressive=True), 3),
    ],
    ids=["CMYK", "palette PNG", "GIF", "one bit", "animated GIF", "animated WebP", "progressive"],
)  # fmt: skip
def test_unusual_files_decode(content: bytes, channels: int) -> None:
    found = decode(content)
    assert found.shape == (20, 30, channels)
    if channels == 3:  # of an animation the first frame
        assert np.abs(found.astype(int) - smooth(20, 30)).mean() < 25
    assert prepare(content, ImageRecipe(8, 8, 3, reduced=True)).shape == (8, 8, 3)


def mode_of(content: bytes) -> str:
    return modes.read(content, check_header(content), decode(content))


OTHER = Image.new("RGB", (30, 20))
DEEP = np.arange(4096, dtype=np.uint16).reshape(64, 64) * 15  # up to 61,425
DEEP_RGB = np.dstack([DEEP] * 3)


@pytest.mark.parametrize(
    ("content", "mode"),
    [
        *((pillow("L", kind), "grey8") for kind in ("JPEG", "PNG", "TIFF", "PPM", "BMP", "JPEG2000")),
        *((pillow("RGB", kind), "colour8") for kind in ("JPEG", "PNG", "TIFF", "PPM", "BMP", "WEBP", "JPEG2000", "AVIF")),
        *((pillow("RGBA", kind), "colour8+alpha") for kind in ("PNG", "TIFF", "WEBP", "AVIF")),
        *((pillow("P", kind), "palette") for kind in ("PNG", "GIF", "TIFF", "BMP")),
        (pillow("RGB", "JPEG", progressive=True), "colour8"), (pillow("CMYK", "JPEG"), "cmyk8"),
        (pillow("CMYK", "TIFF"), "cmyk8"), (pillow("LA", "PNG"), "grey8+alpha"), (pillow("1", "PNG"), "grey1"),
        (pillow("1", "TIFF"), "grey1"), (pillow("1", "PPM"), "grey1"),
        (pillow("P", "PNG", transparency=0), "palette+alpha"), (pillow("P", "GIF", transparency=0), "palette+alpha"),
        (pillow("RGB", "WEBP", lossless=True), "colour8"), (pillow("RGBA", "WEBP", lossless=True), "colour8+alpha"),
        (pillow("RGB", "GIF", save_all=True, append_images=[OTHER]), "palette+animated"),
        (pillow("RGB", "WEBP", save_all=True, append_images=[OTHER]), "colour8+animated"),
        (pillow("RGB", "PNG", save_all=True, append_images=[OTHER]), "colour8+animated"),
        (pillow("RGB", "AVIF", save_all=True, append_images=[OTHER]), "colour8+animated"),
        (pillow("RGB", "TIFF", save_all=True, append_images=[OTHER]), "colour8+pages"),
        *((encoded(suffix, DEEP), "grey16") for suffix in (".png", ".tiff", ".pgm", ".jp2")),
        *((encoded(suffix, DEEP_RGB), "colour16") for suffix in (".png", ".tiff", ".ppm", ".jp2")),
        *((encoded(suffix, DEEP // 16), "grey16+dim") for suffix in (".png", ".tiff", ".pgm")),  # 12 bits
        (encoded(".png", np.minimum(DEEP, 0x3FFF)), "grey16+dim"), (encoded(".png", np.minimum(DEEP, 0x4000)), "grey16"),
        (encoded(".pam", smooth(20, 30)), "colour8"), (encoded(".bmp", picture(1, 6, 5, 4)), "colour8+alpha"),
        (encoded(".hdr", DEEP_RGB.astype(np.float32)), "colour32f"),
        (encoded(".ras", smooth(20, 30)), "colour8"),
        (with_orientation(pillow("L", "JPEG"), 6), "grey8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_mode_says_how_a_file_stores_its_pixels(content: bytes, mode: str) -> None:
    assert mode_of(content) == mode
    assert re.fullmatch(MODE, mode)


@settings(deadline=None)
@given(
    st.sampled_from([".jpg", ".png", ".webp", ".tiff", ".ppm", ".gif", ".bmp"]),
    st.integers(0, 200),
    st.binary(max_size=9),
)
def test_a_damaged_file_has_a_mode_all_the_same(suffix: str, kept: int, noise: bytes) -> None:
    whole = encoded(suffix, smooth(40, 60))
    damaged = whole[:kept] + noise + whole[kept + len(noise) :]
    assert re.fullmatch(MODE, modes.read(damaged, headers.read(damaged), smooth(40, 60)))


def test_one_pixel_is_an_image() -> None:
    for suffix in (".png", ".jpg"):
        assert (
            prepare(encoded(suffix, np.full((1, 1, 3), 200, np.uint8)), ImageRecipe(8, 8, 1, "reflect")) == 200
        ).all()


RECIPES = st.builds(
    ImageRecipe, sides, sides, st.sampled_from([1, 3]), st.sampled_from(["stretch", "pad", "reflect", "crop"]),
    st.floats(0.05, 1), st.sampled_from(["none", "median", "bilateral", "nlmeans"]), st.sampled_from([0.0, 2.0, 40.0]),
    st.sampled_from(["rgb", "hsv", "lab"]), st.booleans(),
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(RECIPES, sides, sides)
def test_every_recipe_gives_its_shape(recipe: ImageRecipe, height: int, width: int) -> None:
    image = picture(5, height, width, recipe.channels)
    before = image.copy()
    found = fit(image, recipe)
    assert found.shape == (recipe.height, recipe.width, recipe.channels)
    assert found.dtype == np.uint8
    assert np.array_equal(image, before)  # what it was given stays
    assert np.array_equal(found, fit(image, recipe))
    assert ImageRecipe(**recipe.stored()) == recipe


def test_a_recipe_of_before_stays_as_it_was() -> None:
    old = {"height": 8, "width": 9, "channels": 3, "resize": "pad"}
    assert ImageRecipe(**old) == ImageRecipe(8, 9, 3, "pad")
    assert ImageRecipe(**old).stored() == old
    assert list(ImageRecipe(8, 9, 3, clahe=2.0).stored()) == ["height", "width", "channels", "resize", "clahe"]


def test_keep_cuts_the_margin_off() -> None:
    image = np.zeros((16, 16, 1), np.uint8)
    image[4:12, 4:12] = 9
    assert (fit(image, ImageRecipe(8, 8, 1, keep=0.5)) == 9).all()


def test_reflect_mirrors_where_pad_is_black() -> None:
    image = np.full((4, 8, 3), 70, np.uint8)
    assert (fit(image, ImageRecipe(8, 8, 3, "reflect")) == 70).all()
    assert (fit(image, ImageRecipe(8, 8, 3, "pad"))[0] == 0).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_clahe_spreads_the_lightness(channels: int) -> None:
    dull = (smooth(64, 64)[:, :, :channels] // 8 + 100).astype(np.uint8)
    assert fit(dull, ImageRecipe(64, 64, channels, clahe=4.0)).std() > 1.05 * dull.std()


@pytest.mark.parametrize("denoise", ["median", "bilateral", "nlmeans"])
@pytest.mark.parametrize("channels", [1, 3])
def test_denoising_brings_a_noisy_image_closer_to_the_clean_one(denoise: str, channels: int) -> None:
    clean = smooth(64, 64)[:, :, :channels].astype(int)
    noisy = np.clip(clean + np.random.default_rng(0).normal(0, 5, clean.shape), 0, 255).astype(np.uint8)
    found = fit(noisy, ImageRecipe(64, 64, channels, denoise=denoise))
    assert np.abs(found - clean).mean() < 0.9 * np.abs(noisy - clean).mean()


@pytest.mark.parametrize(("colour", "values"), [("rgb", [0, 255, 0]), ("hsv", [85, 255, 255]), ("lab", [224, 42, 211])])
def test_colour_spaces(colour: str, values: list[int]) -> None:
    green = np.zeros((4, 4, 3), np.uint8)
    green[..., 1] = 255
    found = fit(green, ImageRecipe(4, 4, 3, colour=colour))[0, 0]
    assert np.abs(found.astype(int) - values).max() <= 1


@pytest.mark.parametrize("resize", ["stretch", "pad", "reflect", "crop"])
@pytest.mark.parametrize("keep", [1.0, 0.6])
def test_reduced_decoding_gives_nearly_the_same(resize: str, keep: float) -> None:
    content = with_orientation(encoded(".jpg", smooth(480, 640)[:, :, ::-1]), 6)
    recipe = ImageRecipe(40, 50, 3, resize, keep)
    reduced = prepare(content, replace(recipe, reduced=True))
    assert np.abs(reduced.astype(int) - prepare(content, recipe)).mean() < 3


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from([1, 2, 4, 8]), st.sampled_from([None, 1, 3]))
def test_a_reduced_jpeg_has_the_promised_size(height: int, width: int, reduce: int, channels: int | None) -> None:
    found = decode(encoded(".jpg", smooth(height, width)), channels, reduce)
    assert found.shape[:2] == (-(-height // reduce), -(-width // reduce))


def test_a_truncated_jpeg_is_refused_when_it_is_reduced_too() -> None:
    whole = encoded(".jpg", smooth(400, 600))
    for kept in (len(whole) // 3, len(whole) - 1):
        for reduce in (2, 4, 8):
            with pytest.raises(DecodeError, match="not a whole image"):
                decode(whole[:kept], 3, reduce)


@given(st.floats(1e-3, 4))
def test_a_reduction_leaves_enough_pixels(scale: float) -> None:
    assert reduction(scale) == 1 or 1 / reduction(scale) >= scale
    assert reduction(scale) == 8 or 1 / (2 * reduction(scale)) < scale
