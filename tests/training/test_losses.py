"""Each loss against loops in float64 that follow its paper's equation, and against timm where timm has it."""

from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from timm import loss as timm_loss
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.ops import sigmoid_focal_loss

from deepcv.training import losses

Numbers = NDArray[np.float64]
IMAGES, CLASSES, DIMENSIONS = 12, 5, 7
CLASS_NUMBERS = torch.tensor([0, 0, 1, 2, 2, 2, 1, 0, 4, 0, 2, 1])  # one image of class 4, none of class 3
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.25])


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def soft_targets(seed: int = 1) -> Tensor:
    return normal(IMAGES, CLASSES, seed=seed).softmax(1)


def label_targets(seed: int = 1) -> Tensor:
    return (normal(IMAGES, CLASSES, seed=seed) > 0).double()


def softmax(row: Numbers) -> Numbers:
    powers = np.exp(row)
    result: Numbers = powers / powers.sum()
    return result


def gradient(loss: Callable[[Tensor], Tensor], outputs: Tensor) -> Tensor:
    leaf = outputs.detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(leaf), leaf)
    return found


# Every loss on its outputs: name -> (loss, outputs). The tests of laws below run over all of them.
LOGITS, TWO_VIEWS = normal(IMAGES, CLASSES), normal(2 * IMAGES, DIMENSIONS)
ALL: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "cross_entropy": (lambda x: losses.cross_entropy(x, CLASS_NUMBERS, label_smoothing=0.1, class_weights=WEIGHTS), LOGITS),
    "cross_entropy, soft": (lambda x: losses.cross_entropy(x, soft_targets(), class_weights=WEIGHTS), LOGITS),
    "focal": (lambda x: losses.focal(x, CLASS_NUMBERS, class_weights=WEIGHTS), LOGITS),
    "focal, soft": (lambda x: losses.focal(x, soft_targets(), gamma=0.5, class_weights=WEIGHTS), LOGITS),
    "one_vs_rest": (lambda x: losses.one_vs_rest(x, CLASS_NUMBERS, label_smoothing=0.1), LOGITS),
    "one_vs_rest, soft": (lambda x: losses.one_vs_rest(x, soft_targets(), target_threshold=0.2), LOGITS),
    "bce": (lambda x: losses.bce(x, label_targets(), label_smoothing=0.1, pos_weight=WEIGHTS), LOGITS),
    "sigmoid_focal": (lambda x: losses.sigmoid_focal(x, label_targets(), gamma=0.5), LOGITS),
    "mse": (lambda x: losses.mse(x, label_targets()), LOGITS),
    "l1": (lambda x: losses.l1(x, label_targets()), LOGITS),
    "smooth_l1": (lambda x: losses.smooth_l1(x, label_targets()), LOGITS),
    "huber": (lambda x: losses.huber(x, label_targets()), LOGITS),
    "jensen_shannon": (lambda x: losses.jensen_shannon(x, views=3), normal(3 * IMAGES, CLASSES)),
    "nt_xent": (lambda x: losses.nt_xent(x), TWO_VIEWS),
    "supcon": (lambda x: losses.supcon(x, CLASS_NUMBERS, views=2), TWO_VIEWS),
} | {
    f"triplet, {mining}, {distance}": (
        partial(lambda x, **options: losses.triplet(x, CLASS_NUMBERS, **options), mining=mining, distance=distance),
        normal(IMAGES, DIMENSIONS),
    )
    for mining, distance in product(("hard", "semi_hard", "all"), ("euclidean", "cosine"))
}  # fmt: skip
everywhere = pytest.mark.parametrize(("loss", "outputs"), ALL.values(), ids=ALL.keys())


@everywhere
def test_the_gradient_is_the_slope_of_the_value(loss: Callable[[Tensor], Tensor], outputs: Tensor) -> None:
    assert loss(outputs).dtype == torch.float64
    assert loss(outputs) > 0.01
    torch.autograd.gradcheck(loss, outputs.clone().requires_grad_())


@everywhere
def test_no_value_is_read_on_the_host(loss: Callable[[Tensor], Tensor], outputs: Tensor) -> None:
    """Fake tensors have shapes but no values: whatever would make a GPU wait raises."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        leaf = torch.empty(outputs.shape, requires_grad=True)
        loss(leaf).backward()
        assert leaf.grad is not None


@everywhere
def test_autocast_and_half_precision_outputs_do_not_cost_digits(
    loss: Callable[[Tensor], Tensor], outputs: Tensor
) -> None:
    halves = outputs.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, single = loss(halves), loss(halves.float())
    assert found.dtype == torch.float32
    assert torch.equal(found, single)
    assert torch.allclose(found.double(), loss(halves.double()), rtol=1e-5)


@everywhere
def test_huge_outputs_have_finite_losses_and_gradients(loss: Callable[[Tensor], Tensor], outputs: Tensor) -> None:
    for scale in (1e-4, 1e4):
        huge = (outputs * scale).float()
        assert loss(huge).isfinite()
        assert gradient(loss, huge).isfinite().all()


@everywhere
def test_equal_outputs_have_finite_losses_and_gradients(loss: Callable[[Tensor], Tensor], outputs: Tensor) -> None:
    for equal in (outputs[:1].expand_as(outputs), torch.zeros_like(outputs)):
        assert loss(equal).isfinite()
        assert gradient(loss, equal.float()).isfinite().all()


def test_cross_entropy_follows_its_equation() -> None:
    share, values = 0.1, []
    for row, number in zip(LOGITS.numpy(), CLASS_NUMBERS.tolist(), strict=True):
        wanted = np.full(CLASSES, share / CLASSES)
        wanted[number] += 1 - share
        values.append(-(WEIGHTS.double().numpy() * wanted * np.log(softmax(row))).sum())
    found = losses.cross_entropy(LOGITS, CLASS_NUMBERS, label_smoothing=share, class_weights=WEIGHTS)
    assert found.item() == pytest.approx(np.mean(values), rel=1e-12)


def test_a_training_under_autocast_keeps_its_cross_entropy_bit_for_bit() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halves = LOGITS.bfloat16()
        ours = losses.cross_entropy(halves, CLASS_NUMBERS, label_smoothing=0.1)
        assert torch.equal(ours, nn.CrossEntropyLoss(label_smoothing=0.1)(halves, CLASS_NUMBERS))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_follows_its_equation(gamma: float) -> None:
    values, soft = [], []
    for row, number, wanted in zip(LOGITS.numpy(), CLASS_NUMBERS.tolist(), soft_targets().numpy(), strict=True):
        costs = -WEIGHTS.double().numpy() * (1 - softmax(row)) ** gamma * np.log(softmax(row))
        values.append(costs[number])
        soft.append((wanted * costs).sum())
    found = losses.focal(LOGITS, CLASS_NUMBERS, gamma=gamma, class_weights=WEIGHTS)
    assert found.item() == pytest.approx(np.mean(values), rel=1e-12)
    found = losses.focal(LOGITS, soft_targets(), gamma=gamma, class_weights=WEIGHTS)
    assert found.item() == pytest.approx(np.mean(soft), rel=1e-12)


@pytest.mark.parametrize("targets", [CLASS_NUMBERS, soft_targets()])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_focal_with_gamma_0_is_cross_entropy(targets: Tensor, weights: Tensor | None) -> None:
    ours = losses.focal(LOGITS, targets, gamma=0, class_weights=weights)
    assert torch.allclose(ours, losses.cross_entropy(LOGITS, targets, class_weights=weights))


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.focal, losses.one_vs_rest])
def test_a_class_number_is_the_probability_one(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    one_hot = nn.functional.one_hot(CLASS_NUMBERS, CLASSES).float()
    assert torch.allclose(loss(LOGITS, CLASS_NUMBERS), loss(LOGITS, one_hot))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_sigmoid_focal_follows_its_equation_and_torchvision(gamma: float) -> None:
    values = []
    for x, y in zip(LOGITS.flatten().tolist(), label_targets().flatten().tolist(), strict=True):
        p = 1 / (1 + np.exp(-x))
        p_t, alpha_t = (p, 0.3) if y else (1 - p, 0.7)
        values.append(-alpha_t * (1 - p_t) ** gamma * np.log(p_t))
    found = losses.sigmoid_focal(LOGITS, label_targets(), gamma=gamma, alpha=0.3)
    assert found.item() == pytest.approx(np.mean(values), rel=1e-12)
    soft = soft_targets()
    peer = sigmoid_focal_loss(LOGITS, soft, alpha=0.3, gamma=gamma, reduction="mean")
    assert torch.allclose(losses.sigmoid_focal(LOGITS, soft, gamma=gamma, alpha=0.3), peer)


def test_bce_follows_its_equation() -> None:
    values = []
    for x, y in zip(LOGITS.flatten().tolist(), label_targets().flatten().tolist(), strict=True):
        p, wanted = 1 / (1 + np.exp(-x)), 0.8 * y + 0.1
        values.append(-3 * wanted * np.log(p) - (1 - wanted) * np.log(1 - p))
    found = losses.bce(LOGITS, label_targets(), label_smoothing=0.2, pos_weight=3)
    assert found.item() == pytest.approx(np.mean(values), rel=1e-12)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 9999), st.floats(0, 0.9), st.sampled_from([0, 0.1, 0.5]), st.booleans())
def test_one_vs_rest_is_timms_binary_cross_entropy(seed: int, share: float, threshold: float, sums: bool) -> None:
    logits = normal(IMAGES, CLASSES, seed=seed)
    peer = timm_loss.BinaryCrossEntropy(share, threshold or None, sum_classes=sums)
    ours = partial(losses.one_vs_rest, target_threshold=threshold, sum_classes=sums)
    assert torch.allclose(ours(logits, CLASS_NUMBERS, label_smoothing=share), peer(logits, CLASS_NUMBERS))
    assert torch.allclose(ours(logits, soft_targets(seed)), peer(logits, soft_targets(seed)))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 9999), st.floats(0, 0.9), st.floats(0, 20))
def test_cross_entropies_are_timms(seed: int, share: float, scale: float) -> None:
    logits = scale * normal(IMAGES, CLASSES, seed=seed)
    peer = timm_loss.LabelSmoothingCrossEntropy(share)
    assert torch.allclose(
        losses.cross_entropy(logits, CLASS_NUMBERS, label_smoothing=share), peer(logits, CLASS_NUMBERS)
    )
    soft = soft_targets(seed)
    assert torch.allclose(losses.cross_entropy(logits, soft), timm_loss.SoftTargetCrossEntropy()(logits, soft))


def test_balanced_weights_average_one_over_the_images() -> None:
    counts = torch.tensor([8, 2, 0, 90])
    weights = losses.balanced_weights(counts)
    assert weights.tolist() == pytest.approx([100 / 24, 100 / 6, 0, 100 / 270])
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("loss", "cost"),
    [
        (losses.mse, lambda x: x * x),
        (losses.l1, abs),
        (partial(losses.smooth_l1, beta=0.5), lambda x: x * x if abs(x) < 0.5 else abs(x) - 0.25),
        (partial(losses.huber, delta=0.5), lambda x: x * x / 2 if abs(x) < 0.5 else 0.5 * (abs(x) - 0.25)),
    ],
)
def test_regressions_follow_their_equations(
    loss: Callable[[Tensor, Tensor], Tensor], cost: Callable[[float], float]
) -> None:
    predictions, targets = normal(IMAGES, 1), normal(IMAGES, seed=1)
    expected = np.mean([cost(x) for x in (predictions[:, 0] - targets).tolist()])
    assert loss(predictions, targets).item() == pytest.approx(expected)  # not all of one with all of the other
    with pytest.raises(RuntimeError, match="shape"):
        loss(predictions, targets[:-1])


@pytest.mark.parametrize("views", [2, 3, 4])
def test_jensen_shannon_follows_its_equation(views: int) -> None:
    logits = normal(views * IMAGES, CLASSES)
    values = []
    for image in range(IMAGES):
        p = [softmax(logits[view * IMAGES + image].numpy()) for view in range(views)]
        mixture = np.mean(p, axis=0)
        values.append(np.mean([(one * np.log(one / mixture)).sum() for one in p]))
    assert losses.jensen_shannon(logits, views=views).item() == pytest.approx(np.mean(values), rel=1e-12)


def test_jensen_shannon_is_0_for_equal_views_and_log_views_for_views_that_exclude_each_other() -> None:
    assert losses.jensen_shannon(LOGITS.repeat(3, 1), views=3).item() == pytest.approx(0, abs=1e-15)
    apart = torch.eye(3).mul(1e3)  # one image whose views are sure of three classes: timm's clamp at 1e-7 is not needed
    assert losses.jensen_shannon(apart, views=3).item() == pytest.approx(np.log(3))


def test_nt_xent_follows_its_equation() -> None:
    unit = TWO_VIEWS / TWO_VIEWS.norm(dim=1, keepdim=True)
    powers = torch.exp(unit @ unit.T / 0.3)
    values = []
    for i in range(2 * IMAGES):
        others = sum(powers[i, k].item() for k in range(2 * IMAGES) if k != i)
        values.append(-np.log(powers[i, (i + IMAGES) % (2 * IMAGES)].item() / others))
    assert losses.nt_xent(TWO_VIEWS, temperature=0.3).item() == pytest.approx(np.mean(values), rel=1e-12)


def test_nt_xent_of_more_views_compares_two_at_a_time_with_all_negatives() -> None:
    embeddings = normal(3 * IMAGES, DIMENSIONS)
    unit = embeddings / embeddings.norm(dim=1, keepdim=True)
    powers = torch.exp(unit @ unit.T / 0.3)
    values = []
    for i, p in product(range(3 * IMAGES), repeat=2):
        if i != p and i % IMAGES == p % IMAGES:
            negatives = sum(powers[i, k].item() for k in range(3 * IMAGES) if k % IMAGES != i % IMAGES)
            values.append(-np.log(powers[i, p].item() / (powers[i, p].item() + negatives)))
    assert losses.nt_xent(embeddings, views=3, temperature=0.3).item() == pytest.approx(np.mean(values), rel=1e-12)


@pytest.mark.parametrize("views", [1, 2, 3])
def test_supcon_follows_its_equation(views: int) -> None:
    embeddings, labels = normal(views * IMAGES, DIMENSIONS), CLASS_NUMBERS.tolist() * views
    unit = embeddings / embeddings.norm(dim=1, keepdim=True)
    powers = torch.exp(unit @ unit.T / 0.2)
    values = []
    for i, label in enumerate(labels):
        positives = [p for p, other in enumerate(labels) if other == label and p != i]
        others = sum(powers[i, k].item() for k in range(len(labels)) if k != i)
        if positives:  # the one image of class 4 has none where there is one view
            values.append(-np.mean([np.log(powers[i, p].item() / others) for p in positives]))
    found = losses.supcon(embeddings, CLASS_NUMBERS, views=views, temperature=0.2)
    assert found.item() == pytest.approx(np.mean(values), rel=1e-12)


def test_supcon_of_two_views_and_no_equal_labels_is_nt_xent() -> None:
    assert torch.allclose(
        losses.supcon(TWO_VIEWS, torch.arange(IMAGES), views=2, temperature=0.3),
        losses.nt_xent(TWO_VIEWS, temperature=0.3),
    )


def slow_triplet(embeddings: Numbers, labels: list[int], margin: float, mining: str, distance: str) -> float:
    def apart(a: int, b: int) -> float:
        x, y = embeddings[a], embeddings[b]
        return float(np.linalg.norm(x - y) if distance == "euclidean" else 1 - x @ y / np.sqrt((x @ x) * (y @ y)))

    violations, everyone = [], range(len(labels))
    for a in everyone:
        positives = [apart(a, p) for p in everyone if labels[p] == labels[a] and p != a]
        negatives = [apart(a, n) for n in everyone if labels[n] != labels[a]]
        if mining == "hard":
            mined = [(max(positives), min(negatives))] if positives and negatives else []
        else:
            mined = [(p, n) for p in positives for n in negatives if mining == "all" or n > p]
        violations += [p - n + margin for p, n in mined if p - n + margin > 0]
    return float(np.mean(violations)) if violations else 0.0


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 9999), st.lists(st.integers(0, 3), min_size=1, max_size=14), st.floats(0.01, 3),
    st.sampled_from(["hard", "semi_hard", "all"]), st.sampled_from(["euclidean", "cosine"]),
)  # fmt: skip
def test_triplets_are_those_of_loops(
    seed: int, labels: list[int], margin: float, mining: losses.metric.Mining, distance: losses.metric.Distance
) -> None:
    embeddings = normal(len(labels), DIMENSIONS, seed=seed)
    loss = partial(losses.triplet, labels=torch.tensor(labels), margin=margin, mining=mining, distance=distance)
    expected = slow_triplet(embeddings.numpy(), labels, margin, mining, distance)
    assert loss(embeddings).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert gradient(loss, embeddings).isfinite().all()


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2], [0]])
@pytest.mark.parametrize("mining", ["hard", "semi_hard", "all"])
def test_a_batch_without_triplets_costs_nothing_and_moves_nothing(
    labels: list[int], mining: losses.metric.Mining
) -> None:
    loss = partial(losses.triplet, labels=torch.tensor(labels), mining=mining)
    embeddings = normal(len(labels), DIMENSIONS)
    assert loss(embeddings).item() == 0
    assert not gradient(loss, embeddings).any()


@pytest.mark.parametrize("mining", ["hard", "all"])
def test_a_triplet_that_just_keeps_the_margin_is_not_counted(mining: losses.metric.Mining) -> None:
    line = torch.tensor([[0.0], [1.0], [2.0]])  # of anchor 0: 1 - 2 + 1, of anchor 1: 1 - 1 + 1
    assert losses.triplet(line, torch.tensor([0, 0, 1]), margin=1, mining=mining).item() == 1


def test_many_far_triplets_add_up_without_rounding() -> None:
    far = 1e6 * torch.eye(200)  # all distances are equal, so that each triplet costs the margin
    assert losses.triplet(far, torch.arange(200) % 50, margin=1, mining="all").item() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize(("mining", "expected"), [("hard", 0.3), ("semi_hard", 0.0), ("all", 0.3)])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_collapsed_embeddings_cost_the_margin_but_none_of_their_negatives_is_semi_hard(
    mining: losses.metric.Mining, distance: losses.metric.Distance, expected: float
) -> None:
    collapsed = torch.ones(IMAGES, 4)
    found = losses.triplet(collapsed, CLASS_NUMBERS, margin=0.3, mining=mining, distance=distance)
    assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize("loss", [partial(losses.supcon, labels=torch.tensor([0])), losses.nt_xent])
def test_a_batch_of_one_image_costs_nothing_and_moves_nothing(loss: Callable[[Tensor], Tensor]) -> None:
    embeddings = normal(2 if loss is losses.nt_xent else 1, DIMENSIONS)
    assert loss(embeddings).item() == 0
    assert not gradient(loss, embeddings).any()


def test_near_embeddings_keep_their_distances_in_float32() -> None:
    """By a product of matrices, torch's default from 26 rows on, they would be off by a tenth."""
    embeddings = 100 + normal(32, 64, dtype=torch.float32) / 100
    labels = torch.arange(32) % 2
    loss = partial(losses.triplet, labels=labels, mining="all")
    assert loss(embeddings).item() == pytest.approx(loss(embeddings.double()).item(), rel=1e-5)


@pytest.mark.parametrize("name", [name for name, loss in losses.LOSSES.items() if "class_weights" in loss.options])
@pytest.mark.parametrize("kind", [CLASS_NUMBERS, soft_targets()], ids=["numbers", "soft"])
def test_weighted_losses_of_parts_add_up_to_that_of_the_whole(name: str, kind: Tensor) -> None:
    """Accumulation, batches in pieces and several processes all count on it."""
    function = losses.LOSSES[name].function
    whole = function(LOGITS, kind, class_weights=WEIGHTS)
    parts = [
        function(logits, targets, class_weights=WEIGHTS) * len(logits)
        for logits, targets in zip(LOGITS.split(3), kind.split(3), strict=True)
    ]
    assert (sum(parts) / len(LOGITS)).item() == pytest.approx(whole.item(), rel=1e-12)
