"""What `train.augmentation` says becomes what happens to images, alike whoever computes which part of a batch."""

import hashlib
import itertools
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import stats
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from deepcv.data.augmentation import Augmentation, Draws, Recipe, policies
from deepcv.data.augmentation.policies import Operation, Policy
from deepcv.data.augmentation.recipe import AugMix, Mix, RandAugment, mix, pictures
from deepcv.data.loaders import TrainLoader
from deepcv.data.shards import Split
from deepcv.params.augmentation import FITTING, MAGNITUDES, AugmentationParams

# Every operation with magnitudes from well inside its range, in random order, then AugMix, then MixUp and CutMix.
MILD: dict[str, list[float]] = {
    "brightness": [0.5, 1.5], "colour": [0.5, 1.5], "contrast": [0.5, 1.5], "crop": [0.6, 1], "elastic": [0, 1],
    "erase": [0.02, 0.3], "gamma": [0.7, 1.4], "noise": [0, 20], "posterize": [4, 8], "rotate": [-20, 20],
    "scale": [0.8, 1.2], "sharpness": [0.5, 1.5], "shear_x": [-0.2, 0.2], "shear_y": [-0.2, 0.2], "shift": [1, 4],
    "solarize": [100, 256], "translate_x": [-4, 4], "translate_y": [-4, 4],
}  # fmt: skip
EVERYTHING: dict[str, Any] = {
    "policy": "augmix",
    "operations": [{"name": name, "magnitude": MILD.get(name, []), "probability": 0.7} for name in MAGNITUDES],
    "order": "random",
    "depth": [1, 6],
    "mixup": {"alpha": 0.4, "probability": 0.3},
    "cutmix": {"alpha": 1.0, "probability": 0.4},
}
COUNT = 300


def recipe(**values: Any) -> Recipe:
    return Recipe.of(AugmentationParams.model_validate(values).model_dump())


def train_loader(batch_size: int = 256, **values: Any) -> TrainLoader:
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 12, 10, 3), dtype=np.uint8)
    one = TrainLoader(
        Split(images, np.arange(COUNT, dtype=np.int64) % 5), batch_size=batch_size, seed=3, device=torch.device("cpu"),
        augmentation=Augmentation(flip=True, shift=1), recipe=recipe(**(values or EVERYTHING)), classes=5,
    )  # fmt: skip
    one.epoch = 2
    return one


def test_params_name_every_operation_of_the_library() -> None:
    assert set(MAGNITUDES) == policies.NAMES - {"identity"}
    assert set(MILD) == {name for name, limits in MAGNITUDES.items() if limits}


def test_the_default_is_nothing() -> None:
    assert recipe() == Recipe()
    assert not Recipe().policies(8, 8)
    assert not Recipe().mixes


def test_settings_reach_the_policies() -> None:
    assert recipe(policy="augmix", augmix={"severity": 5.0, "depth": [2, 4]}).augmix == AugMix(5.0, 3, (2, 4), 1.0)
    assert recipe(randaugment={"count": 3, "strength": 0.5}).randaugment == RandAugment(3, 0.5)
    (found,) = recipe(policy="augmix", augmix={"chains": 2, "depth": [2, 4], "alpha": 0.5}).policies(8, 8).values()
    assert (found.chains, found.count, found.alpha) == (2, (2, 4), 0.5)
    (found,) = recipe(policy="randaugment", randaugment={"count": 3}).policies(8, 8).values()
    assert (found.count, found.strength) == ((3, 3), (0.3, 0.3))
    (found,) = recipe(policy="trivialaugment").policies(8, 8).values()
    assert found.levels == 31
    both = recipe(operations=[{"name": "flip"}, {"name": "rotate", "magnitude": [-9, 9]}], policy="trivialaugment")
    own, _ = both.policies(8, 8).values()
    assert own.operations == (Operation("flip"), Operation("rotate", -9.0, 9.0))
    assert (own.count, own.pick) == ((2, 2), "subset")


# Two colours of these spaces: hues at either end of their circle, and colours of Lab far from its black (0, 128, 128).
COLOURS = {"hsv": [[2, 200, 180], [253, 160, 240]], "lab": [[90, 170, 100], [200, 110, 150]]}


def makes_false_colours(space: str, pixels: NDArray[np.float64]) -> bool:
    """Whether pixels (n, 3) are others than the two, black, or in Lab what lies between the two."""
    one, other = np.array(COLOURS[space], np.float64)
    if space == "hsv":
        return bool(np.any((pixels != one).any(1) & (pixels != other).any(1) & (pixels[:, 2] != 0)))
    share = ((pixels - one) @ (other - one) / ((other - one) @ (other - one))).clip(0, 1)
    beyond = np.abs(pixels - (one + share[:, None] * (other - one))).max(1) > 1
    return bool(np.any(beyond & (pixels != [0, 128, 128]).any(1)))


@pytest.mark.parametrize("space", COLOURS)
def test_params_refuse_what_makes_false_colours(space: str) -> None:
    count = 64
    parts = torch.arange(32)[None] >= torch.arange(count)[:, None] % 8 + 2  # left one colour, right the other
    images = torch.tensor(COLOURS[space], dtype=torch.uint8)[parts.long()][:, None].expand(count, 32, 32, 3)
    index = torch.arange(count)

    def wrong(cutout: int = 0, **values: Any) -> bool:
        own, augmentation = recipe(**values), Augmentation(flip=True, shift=2, cutout=cutout)
        made = pictures(images.contiguous(), index, augmentation, own.policies(32, 32), 3, 0)
        if own.mixes:
            made = mix(own, made, made.roll(7, 0).flip(3), index, 3, 0).images_nchw
        return makes_false_colours(space, made.permute(0, 2, 3, 1).flatten(0, 2).double().numpy())

    found = {name: wrong(operations=[{"name": name, "magnitude": MILD.get(name, [])}]) for name in MAGNITUDES}
    found |= {name: wrong(policy=name) for name in ("augmix", "randaugment", "trivialaugment")}
    found |= {name: wrong(**{name: {"probability": 1.0}}) for name in ("mixup", "cutmix")}
    found["cutout"] = wrong(cutout=3)
    found["chains"] = wrong(chains=3, operations=[{"name": "flip", "probability": 0.5}])
    assert {name for name, is_wrong in found.items() if not is_wrong} == FITTING[space]
    assert set(found) == FITTING["rgb"]


@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("name", sorted(MAGNITUDES))
def test_every_operation_runs_at_the_ends_of_its_range(name: str, end: int) -> None:
    limits = MAGNITUDES[name]
    value = [float(limits[end])] * 2 if limits else []
    if value == [0.0, 0.0]:
        value = [0.0, 1e-3]
    one = train_loader(8, operations=[{"name": name, "magnitude": value}])
    batch = next(iter(one))
    assert batch.images_nchw.shape == (8, 3, 12, 10)
    assert batch.targets.dtype == torch.int64


def test_a_part_of_the_list_keeps_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Tensor] = []
    monkeypatch.setattr(policies, "apply", lambda images, _operations, which, *_: asked.append(which) or images)
    plain = tuple(Operation(name) for name in ("autocontrast", "equalize", "identity", "flip"))
    blank = torch.zeros(8_000, 1, 4, 4, dtype=torch.uint8)
    Policy(plain, (1, 2), "subset")(blank, Draws(0, 0, torch.arange(8_000)))
    got = Counter(tuple(n for n in row if n >= 0) for row in torch.stack(asked, 1).tolist())
    assert len(got) == 4 + 6  # each alone, each pair
    assert all(list(row) == sorted(row) for row in got)
    for length in (1, 2):
        assert stats.chisquare([count for row, count in got.items() if len(row) == length]).pvalue > 1e-3


def asked_of(policy: Policy, count: int, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, ...]]:
    """What a policy asks for, position by position: operations, strengths and keys."""
    asked: list[tuple[Tensor, ...]] = []
    monkeypatch.setattr(policies, "apply", lambda images, _operations, *drawn: asked.append(drawn[:3]) or images)
    policy(torch.zeros(count, 1, 4, 4, dtype=torch.uint8), Draws(3, 2, torch.arange(count)))
    return asked


@pytest.mark.parametrize(
    ("order", "digest"),
    [("random", "e710428ad44992c2"), ("fixed", "522d5f785605d06a")],
)
def test_without_chains_draws_are_those_of_before_there_were_chains(
    order: str, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own, *_) = recipe(**EVERYTHING | {"order": order}).policies(12, 10).values()
    drawn = asked_of(own, COUNT, monkeypatch)
    assert len(drawn) == 6
    assert hashlib.sha256(b"".join(one.numpy().tobytes() for step in drawn for one in step)).hexdigest()[:16] == digest


def test_chains_of_own_operations_are_mixed_with_the_image() -> None:
    posterize = {"name": "posterize", "magnitude": [1, 1]}
    (own,) = recipe(operations=[posterize], chains=3, alpha=0.5).policies(8, 8).values()
    assert (own.chains, own.alpha, own.count) == (3, 0.5, (1, 1))
    images = torch.full((4_000, 1, 8, 8), 127, dtype=torch.uint8)  # of which one bit leaves nothing
    mixed = own(images, Draws(0, 0, torch.arange(len(images)))).flatten(1)
    assert torch.equal(mixed, mixed[:, :1].expand_as(mixed))
    share = 1 - mixed[:, 0].double().numpy() / 127  # of the chains, whatever their weights
    smooth = (share + np.random.default_rng(0).uniform(-0.5, 0.5, len(share)) / 127).clip(0, 1)  # grey levels are whole
    assert (
        stats.kstest(smooth[(smooth > 0.02) & (smooth < 0.98)], truncated(stats.beta(0.5, 0.5), 0.02, 0.98)).pvalue
        > 1e-3
    )


def truncated(distribution: Any, low: float, high: float) -> Callable[[Any], Any]:
    """The distribution function between two values."""
    below, above = distribution.cdf([low, high])
    return lambda values: (distribution.cdf(values) - below) / (above - below)


def test_chains_differ_in_what_they_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    (own,) = recipe(**EVERYTHING | {"policy": "none", "chains": 2, "depth": [1, 3]}).policies(12, 10).values()
    for which, strength, _ in asked_of(own, COUNT, monkeypatch):
        first, second = which.view(2, COUNT)
        assert not torch.equal(first, second)
        assert not torch.equal(*strength.view(2, COUNT))


@pytest.mark.parametrize("order", ["fixed", "random"])
def test_params_take_as_many_chains_as_there_are_draws_for(order: Any) -> None:
    refused = 0
    for count, most, chains in itertools.product((1, 9, 21, 50), (0, 1, 6, 21), range(1, 9)):
        most = min(most, count)
        values = {"operations": [{"name": "flip"}] * count, "depth": [0, most], "chains": chains, "order": order}
        made = Recipe(operations=(Operation("flip"),) * count, depth=(0, most), chains=chains, order=order)
        try:
            made.policies(8, 8)
        except ValueError:
            refused += 1
            with pytest.raises(ValidationError, match="numbers for each image"):
                AugmentationParams.model_validate(values)
        else:
            assert Recipe.of(AugmentationParams.model_validate(values).model_dump()) == made
    assert 0 < refused < 4 * 4 * 8


def test_mixing_happens_to_its_share_of_the_images() -> None:
    count = 5_000
    own = torch.full((count, 1, 8, 8), 100, dtype=torch.uint8)
    chosen = Recipe(mixup=Mix(1.0, 0.3), cutmix=Mix(1.0, 0.5))
    mixed = mix(chosen, own, torch.full_like(own, 200), torch.arange(count), 0, 0)
    pixels = mixed.images_nchw.flatten(1)
    blended = ((pixels != 100) & (pixels != 200)).any(1).float().mean()
    pasted = ((pixels == 100).any(1) & (pixels == 200).any(1)).float().mean()
    assert float(blended) == pytest.approx(0.3, abs=0.03)
    assert float(pasted) == pytest.approx(0.5, abs=0.08)  # a small rectangle may hold no pixel
    left = (200 - pixels.float()).mean(1) / 100
    assert torch.allclose(left, mixed.own_share, atol=0.006)


def test_a_loader_gives_soft_targets_of_image_and_partner() -> None:
    one = train_loader(32, cutmix={"alpha": 1.0, "probability": 1.0})
    batch = next(iter(one))
    assert batch.targets.shape == (32, 5)
    assert batch.targets.dtype == torch.float32
    assert torch.allclose(batch.targets.sum(1), torch.ones(32))
    assert int((batch.targets.max(1).values < 1).sum()) > 10
    assert batch.images_nchw.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="the number of classes"):
        TrainLoader(
            Split(np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2, np.int64)), batch_size=2, seed=0,
            augmentation=Augmentation(), device=torch.device("cpu"), recipe=Recipe(mixup=Mix(1.0, 0.5)),
        )  # fmt: skip


def test_an_unmixed_recipe_keeps_class_numbers() -> None:
    one = train_loader(32, policy="trivialaugment")
    index = one.order()[:32]
    batch = next(iter(one))
    assert torch.equal(batch.targets, index % 5)
    expected = pictures(one.images_nhwc, index, one.augmentation, one.policies, 3, 2)
    assert torch.equal(batch.images_nchw, expected)


def by_place(batches: list[tuple[Any, ...]]) -> tuple[Tensor, Tensor]:
    images, targets, _ = zip(*batches, strict=True)
    return torch.cat(images)[:256], torch.cat(targets)[:256]


def test_no_batch_size_changes_a_sample() -> None:
    images, targets = by_place(list(train_loader(256)))
    for size in (64, 37):
        batches = [train_loader(size).at(train_loader().order(), part) for part in torch.arange(256).split(size)]
        other = by_place([tuple(batch) for batch in batches])
        assert torch.equal(other[0], images), size
        assert torch.equal(other[1], targets), size


RANK = """
import sys, torch; torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from test_recipe import train_loader
rank, made = int(sys.argv[2]), []
one = train_loader(64)
for places in torch.arange(256).split(64):  # each rank takes every second sample of a batch
    made.append(tuple(one.at(one.order(), places[rank::2])))
torch.save(made, sys.argv[3])
"""


def test_two_ranks_make_the_samples_of_one(tmp_path: Path) -> None:
    """Two processes share batches of 64; one process makes batches of 256."""
    images, targets = by_place(list(train_loader(256)))
    files = [tmp_path / "rank0.pt", tmp_path / "rank1.pt"]
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(Path(__file__).parent), str(rank), str(file)])
        for rank, file in enumerate(files)
    ]
    assert [process.wait(timeout=120) for process in ranks] == [0, 0]
    for rank, file in enumerate(files):
        for number, (own_images, own_targets, _) in enumerate(torch.load(file)):
            places = slice(64 * number + rank, 64 * (number + 1), 2)
            assert torch.equal(own_images, images[places])
            assert torch.equal(own_targets, targets[places])


class Places(Dataset[tuple[Any, ...]]):
    """Batches by the places of their samples, as a DataLoader's workers ask for them."""

    def __init__(self, size: int) -> None:
        self.loader = train_loader(size)
        self.parts = torch.arange(256).split(size)

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, number: int) -> tuple[Any, ...]:
        return tuple(self.loader.at(self.loader.order(), self.parts[number]))


def test_workers_make_the_samples_of_the_main_process() -> None:
    images, targets = by_place(list(train_loader(256)))
    for size, workers in ((64, 0), (64, 2)):
        # Not forked: a worker that inherits the locks of threads that other tests left may fail as it ends.
        context = "spawn" if workers else None
        loader = DataLoader(Places(size), batch_size=None, num_workers=workers, multiprocessing_context=context)
        other = by_place([*loader])
        assert torch.equal(other[0], images), (size, workers)
        assert torch.equal(other[1], targets), (size, workers)
