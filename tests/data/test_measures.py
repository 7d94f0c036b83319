import cv2
import numpy as np
import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits, load_sample_image

from deepcv.data import measures
from deepcv.data.measures import hash_distance, measure, measure_all
from deepcv.images import UInt8Array, decode, encode_png

LIMITS = {
    "brightness": (0, 1), "contrast": (0, 0.5), "sharpness": (0, 64), "noise": (0, 3.35), "entropy": (0, 8), "saturation": (0, 1),
    "red_minus_blue": (-1, 1), "phash": (0, 2**64 - 1),
}  # fmt: skip


def photograph(name: str = "china") -> UInt8Array:
    return np.asarray(load_sample_image(f"{name}.jpg"), np.uint8)


def jpeg(image: UInt8Array, quality: int) -> UInt8Array:
    return decode(cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes())


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 3]), st.integers(0, 99), st.integers(0, 255))
def test_ranges(height: int, width: int, channels: int, seed: int, ceiling: int) -> None:
    image = toys.picture(seed, height, width, channels)
    for picture in (image, np.minimum(image, ceiling), (image > ceiling).astype(np.uint8) * 255):
        found = measure(picture)._asdict()
        assert found.keys() == LIMITS.keys()
        for name, (low, high) in LIMITS.items():
            assert low <= found[name] <= high, name


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_a_grey_image_measures_as_it_does_in_rgb(height: int, width: int, seed: int) -> None:
    grey = toys.picture(seed, height, width)
    assert measure(grey) == measure(np.repeat(grey, 3, axis=2))


def test_known_values() -> None:
    flat = measure(np.full((5, 7, 1), 51, np.uint8))
    assert (flat.brightness, flat.contrast, flat.sharpness, flat.entropy) == (pytest.approx(0.2), 0, 0, 0)
    halves = measure(np.repeat(np.array([[[0], [255]]], np.uint8), 10, axis=0))
    assert (halves.brightness, halves.contrast, halves.entropy) == pytest.approx((0.5, 0.5, 1))
    red = measure(np.full((4, 4, 3), (255, 0, 0), np.uint8))
    assert (red.red_minus_blue, red.saturation) == (1, 1)
    assert red.brightness == pytest.approx(0.299, abs=0.005)
    assert measure(np.arange(256, dtype=np.uint8).reshape(16, 16, 1)).entropy == 8


@pytest.mark.parametrize("grey", [0, 1, 77, 255])
@pytest.mark.parametrize("side", [1, 8, 32, 33, 200])
def test_a_flat_image_has_one_hash(grey: int, side: int) -> None:
    assert measure(np.full((side, side, 1), grey, np.uint8)).phash == 0


@pytest.mark.parametrize("name", ["china", "flower"])
def test_measures_are_those_of_the_pixels_not_of_the_file(name: str) -> None:
    image = photograph(name)
    assert measure(decode(encode_png(image))) == measure(image)


def test_the_channel_order_turns_the_sign() -> None:
    image = photograph()
    swapped = measure(np.ascontiguousarray(image[:, :, ::-1]))
    assert swapped.red_minus_blue == pytest.approx(-measure(image).red_minus_blue)
    assert abs(swapped.red_minus_blue) > 0.01


def test_blur_and_noise_move_the_sharpness() -> None:
    image = photograph()
    blurred = [measure(cv2.GaussianBlur(image, (0, 0), sigma)).sharpness for sigma in (1, 3, 9)]
    assert measure(image).sharpness > blurred[0] > blurred[1] > blurred[2]
    grain = cv2.resize(np.random.default_rng(0).normal(0, 40, (64, 64, 1)), image.shape[1::-1])[:, :, None]
    noisy = np.clip(image + grain, 0, 255).astype(np.uint8)
    assert measure(noisy).sharpness > measure(image).sharpness


def test_noise_is_measured_and_compression_removes_it() -> None:
    flat = np.full((64, 64, 1), 128, np.uint8)
    noisy = (flat + np.random.default_rng(0).normal(0, 10, flat.shape)).round().astype(np.uint8)
    assert measure(noisy).noise == pytest.approx(10 / 255, rel=0.05)
    assert measure(flat).noise == 0
    image = photograph()
    assert measure(image).noise > measure(jpeg(image, 60)).noise > measure(jpeg(image, 20)).noise


def test_sharpness_compares_between_sizes() -> None:
    image = photograph()
    halved = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    assert measure(halved).sharpness == pytest.approx(measure(image).sharpness, rel=0.1)


def test_near_duplicates_have_near_hashes() -> None:
    for name, other in (("china", "flower"), ("flower", "china")):
        image = photograph(name)
        half = cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        brighter = np.clip(image * 1.1, 0, 255).astype(np.uint8)
        original = measure(image).phash
        assert max(hash_distance(original, measure(kin).phash) for kin in (half, brighter, jpeg(image, 40))) <= 6
        assert hash_distance(original, measure(photograph(other)).phash) >= 16


def test_hashes_of_different_digits_differ_in_about_half_of_the_bits() -> None:
    images = (load_digits().images[:200] * 15).astype(np.uint8)[..., None]
    hashes = [measure(image).phash for image in images]
    distances = [hash_distance(a, b) for a, b in zip(hashes, hashes[100:], strict=False)]
    assert 20 < np.mean(distances) < 40
    assert hash_distance(0, 2**64 - 1) == 64


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 31, 32, 64]), st.sampled_from([1, 3]), st.integers(0, 99)), max_size=9)
)
def test_images_measured_together_measure_the_same(kinds: list[tuple[int, int, int]]) -> None:
    pictures = [toys.picture(seed, side, 32, channels) for side, channels, seed in kinds]
    assert measure_all(pictures) == [measure(picture) for picture in pictures]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (9, 1), (33, 31), (32, 32), (96, 80)])
def test_sums_and_filters_are_those_of_opencv(height: int, width: int) -> None:
    pictures = [toys.picture(seed, height, width, 1) for seed in range(5)]
    for found, picture in zip(measure_all(pictures), pictures, strict=True):
        mean, deviation = cv2.meanStdDev(picture)
        assert (found.brightness, found.contrast) == (mean[0, 0] / 255, deviation[0, 0] / 255)
        square = cv2.resize(
            picture[:, :, 0].astype(np.float32), (64, 64),
            interpolation=cv2.INTER_AREA if height * width > 64**2 else cv2.INTER_LINEAR,
        )  # fmt: skip
        laplacian = cv2.Laplacian(square, cv2.CV_32F)
        assert found.sharpness == pytest.approx(float(laplacian.var(dtype=np.float64)) / 255**2, rel=1e-9, abs=1e-12)
        difference = cv2.filter2D(picture[:, :, 0], cv2.CV_32F, measures._NOISE_MASK)
        assert found.noise == pytest.approx(np.sqrt(np.pi / 2) / 6 * np.abs(difference).mean(dtype=np.float64) / 255)
