"""AugMix on small images: DeepCV's batches against per-sample transforms.v2 and a per-image Pillow implementation.

    python -m benchmarks.augmix [--quick]

All sides: 32×32 photographs, flip, crop from 4 pixels of padding, AugMix with the paper's settings, float32 batches of
256, normalised as batches. One core, CPU seconds of all processes, a DataLoader with 0, 1 and 2 workers (its best counts).
"""

import argparse
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import v2

from benchmarks.small_images import BATCH, SIDE, judge, normalise, one_core, photographs
from deepcv.data.augmentation import Augmentation, Draws, gather, permutation
from deepcv.data.augmentation.policies import augmix


def deepcv(images_nhwc: Tensor) -> Iterator[Tensor]:
    """One epoch of DeepCV's batches."""
    order = permutation(0, 0, len(images_nhwc), torch.device("cpu"))
    policy = augmix(SIDE, SIDE)
    for index in order.split(BATCH):
        batch = gather(images_nhwc, index, Augmentation(flip=True, shift=4), 0, 0).permute(0, 3, 1, 2).contiguous()
        yield normalise(policy(batch, Draws(0, 0, index)))


def torchvision_transform() -> Callable[[Tensor], Tensor]:
    """The per-sample pipeline of transforms.v2 on tensors; its strengths are ten levels where the paper's are a range."""
    return v2.Compose([v2.RandomHorizontalFlip(), v2.RandomCrop(SIDE, padding=4), v2.AugMix(all_ops=False)])


class PillowAugMix:
    """The paper's algorithm, one Pillow image at a time."""

    def __call__(self, image: Image.Image) -> Tensor:
        """Return a tensor (3, 32, 32) of values 0–255, float32."""
        random = np.random
        if random.uniform() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        left, top = random.randint(9), random.randint(9)
        image = ImageOps.expand(image, 4).crop((left, top, left + SIDE, top + SIDE))
        weights, share = random.dirichlet([1, 1, 1]), random.beta(1, 1)
        mixture = np.zeros((SIDE, SIDE, 3), np.float32)
        for weight in weights:
            changed = image
            for _ in range(random.randint(1, 4)):
                changed = self.operation(random.randint(9), random.uniform(0.1, 3) / 10, changed)
            mixture += np.float32(weight) * np.asarray(changed)
        mixed = np.float32(1 - share) * np.asarray(image, np.float32) + np.float32(share) * mixture
        return torch.from_numpy(np.ascontiguousarray(mixed.transpose(2, 0, 1)))

    def operation(self, number: int, strength: float, image: Image.Image) -> Image.Image:
        """One of the paper's nine."""
        if number == 0:
            return ImageOps.autocontrast(image)
        if number == 1:
            return ImageOps.equalize(image)
        if number == 2:
            return ImageOps.posterize(image, 4 - int(strength * 4))
        sign = 1 if np.random.uniform() > 0.5 else -1
        if number == 3:
            return image.rotate(sign * int(strength * 30), resample=Image.Resampling.BILINEAR)
        if number == 4:
            return ImageOps.solarize(image, 256 - int(strength * 256))
        shear, shift = sign * strength * 0.3, sign * int(strength * SIDE / 3)
        matrix = {
            5: (1, shear, 0, 0, 1, 0), 6: (1, 0, 0, shear, 1, 0), 7: (1, 0, shift, 0, 1, 0), 8: (1, 0, 0, 0, 1, shift)
        }[number]  # fmt: skip
        return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer images and rounds, within 60 s")
    quick = parser.parse_args().quick
    one_core()
    count, rounds = (2_048, 1) if quick else (8_192, 5)
    images_nhwc = photographs(count)
    judge(
        "augmix", lambda: deepcv(images_nhwc), images_nhwc, rounds,
        on_tensors=torchvision_transform(), on_pictures=PillowAugMix(), at_least=(4, 4.5),
    )  # fmt: skip


if __name__ == "__main__":
    main()
