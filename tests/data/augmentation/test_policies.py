from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms import v2

from deepcv.data.augmentation import Draws, policies
from deepcv.data.augmentation.policies import Operation, Policy, augmix, randaugment, trivialaugment

OWN = (
    Operation("rotate", -20, 20),
    Operation("gamma", 0.5, 2, probability=0.5),
    Operation("elastic", 0, 4),
    Operation("noise", 0, 20),
)
POLICIES = {
    "augmix": augmix(32, 32),
    "randaugment": randaugment(32, 32),
    "trivialaugment": trivialaugment(),
    "all, in order": Policy(OWN, count=(4, 4), pick="listed"),
    "two or three, shuffled": Policy(OWN, count=(2, 3), pick="shuffled"),
    "own chains": Policy(OWN, count=(1, 4), pick="shuffled", chains=2, alpha=0.5),
}


def images(count: int, channels: int = 3) -> Tensor:
    photographs = load_sample_images().images
    corners = np.random.default_rng(0).integers(0, 380, (count, 2))
    patches = [photographs[n % 2][y : y + 32, x : x + 32] for n, (y, x) in enumerate(corners)]
    return torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2)[:, :channels].contiguous()


def draws(count: int, epoch: int = 0) -> Draws:
    return Draws(0, epoch, torch.arange(count))


@pytest.mark.parametrize("name", POLICIES)
@settings(deadline=None, max_examples=10)
@given(order=st.permutations(range(12)), size=st.integers(1, 12))
def test_what_happens_to_an_image_does_not_depend_on_its_batch(name: str, order: list[int], size: int) -> None:
    policy, source = POLICIES[name], images(12)
    whole = policy(source, draws(12))
    for start in range(0, 12, size):
        part = torch.tensor(order[start : start + size])
        assert torch.equal(policy(source[part], draws(12).of(part)), whole[part])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_changes_most_images_and_not_its_input(name: str, channels: int) -> None:
    policy, source = POLICIES[name], images(200, channels)
    before = source.clone()
    found = policy(source, draws(200))
    assert found.dtype == torch.uint8
    assert torch.equal(source, before)
    assert (found != source).flatten(1).any(1).float().mean() > 0.7
    assert not torch.equal(found, policy(source, draws(200, epoch=1)))


class Recorded(list[tuple[Tensor, Tensor, Tensor]]):
    """What a policy asked `apply` to do."""

    def __call__(self, images: Tensor, _operations: tuple[Operation, ...], *asked: Tensor) -> Tensor:
        self.append((asked[0].clone(), asked[1].clone(), asked[2].clone()))
        return images


def test_augmix_draws_as_its_paper_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations, depths and strengths against the distributions of the authors' program."""
    recorded = Recorded()
    monkeypatch.setattr(policies, "apply", recorded)
    count = 10_000
    augmix(4, 4)(torch.zeros(count, 3, 4, 4, dtype=torch.uint8), draws(count))
    which = torch.stack([asked[0] for asked in recorded])  # (longest, chains · count)
    depth = (which >= 0).sum(0)
    assert (which[0] >= 0).all()
    assert stats.chisquare(torch.bincount(depth, minlength=4)[1:].numpy()).pvalue > 1e-3  # randint(1, 4)
    for link in which:
        assert stats.chisquare(torch.bincount(link[link >= 0], minlength=9).numpy()).pvalue > 1e-3  # np.random.choice
    for _, strength, keys in recorded:  # sample_level: uniform(0.1, severity), over 10
        assert stats.kstest(strength.numpy(), stats.uniform(0.01, 0.29).cdf).pvalue > 1e-3
        assert stats.binomtest(int((keys >= 2**31).sum()), len(keys)).pvalue > 1e-3
    first, second = which[0], which[1]
    both = (first >= 0) & (second >= 0)
    table = torch.bincount(first[both] * 9 + second[both], minlength=81).view(9, 9).numpy()
    assert stats.chi2_contingency(table).pvalue > 1e-3  # one link does not tell the next


def test_augmix_mixes_with_the_papers_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each chain paints its own level: the mixture shows the weights m · w of Dirichlet(1, 1, 1) and Beta(1, 1)."""
    count = 5_000

    def paint(changed: Tensor, *_asked: object) -> Tensor:
        chains = changed.view(3, count, *changed.shape[1:])
        for number in range(3):
            chains[number] = 0
            chains[number, :, number] = 255
        return changed

    monkeypatch.setattr(policies, "apply", paint)
    mixed = augmix(4, 4)(torch.zeros(count, 3, 4, 4, dtype=torch.uint8), draws(count))
    shares = mixed[:, :, 0, 0].double() / 255
    random = np.random.default_rng(0)
    expected = random.dirichlet([1, 1, 1], 100_000) * random.beta(1, 1, (100_000, 1))
    for number in range(3):
        assert stats.ks_2samp(shares[:, number].numpy(), expected[:, number]).pvalue > 1e-3
    assert stats.ks_2samp(shares.sum(1).numpy(), expected.sum(1)).pvalue > 1e-3


@pytest.mark.parametrize(
    ("operation", "strength", "forward", "backward"),
    [
        (Operation("rotate", 0, 30, signed=True, whole=True), 0.25, 7, -7),
        (Operation("posterize", 4, 0, whole=True), 0.3, 3, 3),
        (Operation("solarize", 256, 0, whole=True), 0.3, 180, 180),
        (Operation("brightness", 1, 1.9, signed=True), 1.0, 1.9, 0.1),
    ],
)
def test_magnitudes_are_the_papers(operation: Operation, strength: float, forward: float, backward: float) -> None:
    found = operation.magnitude(torch.tensor([strength, strength]), torch.tensor([False, True]))
    assert found.tolist() == pytest.approx([forward, backward])


BINS = torch.arange(31)
WITHOUT_MAGNITUDE = {"Identity", "AutoContrast", "Equalize"}
TORCHVISION_NAMES = {
    "ShearX": "shear_x", "ShearY": "shear_y", "TranslateX": "translate_x", "TranslateY": "translate_y", "Rotate": "rotate",
    "Brightness": "brightness", "Color": "colour", "Contrast": "contrast", "Sharpness": "sharpness",
    "Posterize": "posterize", "Solarize": "solarize", "AutoContrast": "autocontrast", "Equalize": "equalize",
    "Identity": "identity",
}  # fmt: skip


@pytest.mark.parametrize(
    ("policy", "peer"), [(randaugment(40, 60), v2.RandAugment()), (trivialaugment(), v2.TrivialAugmentWide())]
)
def test_magnitudes_are_torchvisions(policy: Policy, peer: v2.RandAugment) -> None:
    """All 31 of every operation: the same, or for whole numbers the same but for float32 ties."""
    ours = {operation.name: operation for operation in policy.operations}
    assert len(ours) == len(policy.operations) == len(TORCHVISION_NAMES) == len(peer._AUGMENTATION_SPACE)
    for name, (magnitudes_of, signed) in peer._AUGMENTATION_SPACE.items():
        operation = ours[TORCHVISION_NAMES[name]]
        if name in WITHOUT_MAGNITUDE:
            continue
        assert operation.signed == signed
        expected = magnitudes_of(31, 40, 60)
        if name == "Solarize":
            expected = expected * 255  # of a share of the largest value
        found = operation.magnitude(BINS / 30, torch.zeros(31, dtype=torch.bool))
        if name == "Posterize":
            assert found.long().tolist() == expected.tolist()
        elif name.startswith("Translate"):
            assert (found - expected.trunc()).abs().max() <= 1
            assert ((found - expected.trunc()) != 0).sum() <= 1
        else:
            centre = 1.0 if name in {"Brightness", "Color", "Contrast", "Sharpness"} else 0.0
            assert torch.allclose(found - centre, expected, atol=1e-4)


def test_randaugment_and_trivialaugment_use_their_whole_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded()
    monkeypatch.setattr(policies, "apply", recorded)
    blank = torch.zeros(5_000, 3, 4, 4, dtype=torch.uint8)
    randaugment(4, 4, count=2, strength=0.3)(blank, draws(5_000))
    trivialaugment()(blank, draws(5_000))
    assert len(recorded) == 3
    for which, _, _ in recorded:
        assert stats.chisquare(list(Counter(which.tolist()).values())).pvalue > 1e-3
        assert len(set(which.tolist())) == 14
    assert torch.allclose(recorded[0][1], torch.tensor(0.3))
    assert len(set(recorded[2][1].tolist())) == 31


def test_listed_operations_keep_their_order_and_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded()
    monkeypatch.setattr(policies, "apply", recorded)
    POLICIES["all, in order"](torch.zeros(4_000, 3, 4, 4, dtype=torch.uint8), draws(4_000))
    shares = [float((asked[0] == number).float().mean()) for number, asked in enumerate(recorded)]
    assert shares[0] == shares[2] == shares[3] == 1
    assert shares[1] == pytest.approx(0.5, abs=0.04)


def test_shuffled_operations_come_once_in_every_order(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded()
    monkeypatch.setattr(policies, "apply", recorded)
    plain = tuple(Operation(name) for name in ("autocontrast", "equalize", "identity"))
    Policy(plain, count=(3, 3), pick="shuffled")(torch.zeros(6_000, 1, 4, 4, dtype=torch.uint8), draws(6_000))
    orders = Counter(zip(*(asked[0].tolist() for asked in recorded), strict=True))
    assert {tuple(sorted(order)) for order in orders} == {(0, 1, 2)}
    assert stats.chisquare(list(orders.values())).pvalue > 1e-3
    assert len(orders) == 6


@pytest.mark.parametrize("count", [(3, 2), (-1, 2), (1, 5)])
def test_an_impossible_count_is_refused(count: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="count must be 0 <= least <= most <= 4"):
        Policy(OWN, count=count, pick="shuffled")


def test_too_many_draws_are_refused() -> None:
    with pytest.raises(ValueError, match="too many draws"):
        Policy(OWN, count=(1, 20), chains=10)


@pytest.mark.parametrize("name", sorted(policies.NAMES))
def test_every_operation_can_be_named(name: str) -> None:
    source = images(8)
    policy = Policy((Operation(name, 1.2, 1.3),), count=(1, 1))
    found = policy(source, draws(8))
    assert found.shape == source.shape
    assert torch.equal(found, source) == (name == "identity")


def test_levels_and_chains_are_checked() -> None:
    with pytest.raises(ValueError, match="levels must be at least 2, got 1"):
        Policy(OWN, count=(1, 1), levels=1)
    with pytest.raises(ValueError, match="chains must be at least 0, got -1"):
        Policy(OWN, count=(1, 1), chains=-1)
    with pytest.raises(ValueError, match="at least one operation"):
        Policy((), count=(1, 1))


@pytest.mark.parametrize("name", POLICIES)
def test_an_empty_batch_passes(name: str) -> None:
    assert POLICIES[name](images(2)[:0], draws(0)).shape == (0, 3, 32, 32)


def test_an_unknown_operation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected one of autocontrast, .*got 'rotat'"):
        Operation("rotat")


@pytest.mark.parametrize("name", ["elastic", "shift"])
def test_small_moves_fill_by_reflection(name: str) -> None:
    white = torch.full((20, 1, 32, 32), 255, dtype=torch.uint8)
    assert torch.equal(Policy((Operation(name, 3, 3),), (1, 1))(white, draws(20)), white)
