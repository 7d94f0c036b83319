"""The list of losses that a network trains on: what it refuses, what it adds up."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from deepcv.errors import DeepcvError
from deepcv.params.losses import OPTIONS, TASKS, WITHOUT_TARGET, LossParams
from deepcv.training.losses import (
    LOSSES,
    Target,
    Term,
    balanced_weights,
    check,
    cross_entropy,
    jensen_shannon,
    supcon,
    total,
    values,
)
from deepcv.training.objective import NOT_TRAINED

OUTPUTS = {"logits": (10,), "embedding": (64,), "map": (64, 7, 7)}
TARGETS = {
    "label": Target("class", (10,)), "mixed": Target("soft", (10,)), "tags": Target("multi_label", (10,)),
    "age": Target("number", (1,)), "images": Target("image", (3, 8, 8)),
}  # fmt: skip
KINDS: Mapping[str, str] = {target.kind: name for name, target in TARGETS.items()}


def refused(*terms: Term, left_out: tuple[str, ...] = ()) -> str:
    with pytest.raises(DeepcvError) as caught:
        check(terms, OUTPUTS, TARGETS, left_out=left_out)
    return str(caught.value)


def test_a_fitting_list_passes() -> None:
    terms = [Term("cross_entropy"), Term("supcon", "embedding", weight=0.5, options={"temperature": 1})]
    check(terms, OUTPUTS, TARGETS, left_out=["map"])


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_of_the_table_can_be_asked_for_and_computed(name: str) -> None:
    loss, views, images = LOSSES[name], 2, 6
    kind = loss.targets[0] if loss.targets else "class"
    target = TARGETS[KINDS[kind]]
    options = {key: option.default for key, option in loss.options.items()}
    term = Term(name, "out", KINDS[kind], options=options)
    check([term], {"out": target.shape}, TARGETS, max(1, LOSSES[name].views))
    made = {
        "class": torch.arange(images) % 3,
        "soft": torch.full((images, 10), 0.1),
        "multi_label": torch.ones(images, 10),
        "number": torch.arange(images),
    }
    found = total([term], {"out": torch.randn(views * images, *target.shape)}, {KINDS[kind]: made[kind]}, views)
    assert found.shape == ()
    assert found.isfinite()


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [(name, option, value) for name, loss in LOSSES.items() for option in loss.options for value in ("?", -1, 1e400)],
)
def test_options_are_held_to_what_the_loss_takes(name: str, option: str, value: float | str) -> None:
    views = max(1, LOSSES[name].views)
    target = KINDS[LOSSES[name].targets[0]] if LOSSES[name].targets else "label"
    output = "logits" if target != "age" else "number"
    with pytest.raises(DeepcvError, match=f"{option} must be .*; got {value!r}".replace("?", r"\?")):
        check([Term(name, output, target, options={option: value})], {"logits": (10,), "number": (1,)}, TARGETS, views)


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (Term("crossentropy"), "there is no such loss; the closest is 'cross_entropy'"),
        (Term("focal", options={"gama": 2.0}), "there is no option 'gama'; the closest is 'gamma'"),
        (Term("mse", "number", "age", options={"beta": 1}), "there is no option 'beta'; there are none"),
        (Term("one_vs_rest", options={"sum_classes": 1}), "sum_classes must be true or false; got 1"),
        (Term("focal", options={"gamma": True}), "gamma must be a number of at least 0; got True"),
        (Term("cross_entropy", weight=float("nan")), "expected a finite weight, got nan"),
        (Term("cross_entropy", "exit"), "no such output, or it was left out; there are logits, embedding, map"),
        (Term("cross_entropy", "map"), "a vector for each image, the output has shape (64, 7, 7); there are logits (10,)"),
        (Term("cross_entropy", "embedding"), "it needs 10 values for 'label', the output has 64"),
        (Term("cross_entropy", target="lable"), "there is no target 'lable'; there are label, mixed, tags, age"),
        (Term("cross_entropy", target="lable"), "images; the closest is 'label'"),
        (Term("bce"), "it learns from targets of kind multi_label; 'label' is class"),
        (Term("cross_entropy", target="tags"), "of kind class or soft; 'tags' is multi_label"),
        (Term("triplet", "embedding", "mixed"), "of kind class; 'mixed' is soft (MixUp and CutMix make classes soft)"),
        (Term("nt_xent", "embedding"), "it compares views of an image and needs 2 or more of each; got 1"),
    ],
)  # fmt: skip
def test_errors_name_the_term_and_what_would_fit(term: Term, message: str) -> None:
    said = refused(Term("cross_entropy"), term).splitlines()[0]
    assert message in said
    assert said.startswith(f"train.losses[1] ({term.loss} of {term.output!r}): ")


def test_an_output_without_a_loss_is_refused_unless_it_is_left_out() -> None:
    said = refused(Term("cross_entropy"), left_out=("map",))
    assert said == "train.losses: no term uses the network's output 'embedding': give it a loss, or leave it out"


def test_what_is_left_out_cannot_be_trained_on() -> None:
    said = refused(Term("cross_entropy"), Term("supcon", "embedding"), left_out=("embedding", "map"))
    expected = "the network has no such output, or it was left out; there are logits"
    assert said == f"train.losses[1] (supcon of 'embedding'): {expected}"


def test_views_that_no_loss_sees_are_refused() -> None:
    terms, outputs = [Term("cross_entropy")], {"logits": (10,)}
    with pytest.raises(
        DeepcvError, match=r"train\.views\.count is 2, and no loss sees more than one view; expected 1, or jensen"
    ):
        check(terms, outputs, TARGETS, 2)
    check([*terms, Term("jensen_shannon")], outputs, TARGETS, 2)


def test_no_terms_are_refused_and_all_problems_are_told() -> None:
    assert refused(left_out=tuple(OUTPUTS)) == "train.losses: expected one term or more, got none"
    assert len(refused(Term("bce"), Term("nothing"), left_out=("map",)).splitlines()) == 3


def batch(views: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    random = torch.Generator().manual_seed(0)
    outputs = {name: torch.randn(views * 8, *OUTPUTS[name], generator=random) for name in ("logits", "embedding")}
    return outputs, {"label": torch.arange(8) % 3}


def test_the_total_is_the_weighted_sum_and_only_losses_that_compare_views_see_all_of_them() -> None:
    outputs, targets = batch(3)
    logits, labels = outputs["logits"], targets["label"]
    terms = [
        Term("cross_entropy", options={"label_smoothing": 0.1}), Term("jensen_shannon", weight=12),
        Term("supcon", "embedding", weight=0.5),
    ]  # fmt: skip
    expected = [
        cross_entropy(logits[:8], labels, label_smoothing=0.1), jensen_shannon(logits, views=3),
        supcon(outputs["embedding"], labels, views=3),
    ]  # fmt: skip
    assert torch.equal(torch.stack(values(terms, outputs, targets, 3)), torch.stack(expected))
    assert total(terms, outputs, targets, 3).item() == pytest.approx(
        (expected[0] + 12 * expected[1] + expected[2] / 2).item()
    )
    later = total(terms, outputs, targets, 3, weights=[0, 0, 2])
    assert later.item() == pytest.approx(2 * expected[2].item())
    with pytest.raises(ValueError, match="longer"):
        total(terms, outputs, targets, 3, weights=[1, 1])


def test_one_term_of_weight_one_is_its_loss_bit_for_bit() -> None:
    outputs, targets = batch(1)
    found = total([Term("cross_entropy")], outputs, targets)
    assert torch.equal(found, torch.nn.functional.cross_entropy(outputs["logits"], targets["label"]))


@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
def test_class_weights_are_used_where_a_term_wants_them(name: str) -> None:
    outputs, targets = batch(1)
    weights = balanced_weights(torch.bincount(targets["label"], minlength=10))
    options: dict[str, Any] = {"class_weights": "balanced"}
    plain, balanced = values([Term(name), Term(name, options=options)], outputs, targets, class_weights=weights)
    loss = LOSSES[name].function
    assert torch.equal(plain, loss(outputs["logits"], targets["label"]))
    assert torch.equal(balanced, loss(outputs["logits"], targets["label"], class_weights=weights))
    with pytest.raises(DeepcvError, match="wants balanced class weights"):
        total([Term(name, options=options)], outputs, targets)


def test_params_know_which_tasks_a_loss_is_of() -> None:
    kinds = {"classification": "class", "multi_label": "multi_label", "regression": "number"}
    for name, loss in LOSSES.items():
        fits = {task for task, kind in kinds.items() if kind in loss.targets} or set(kinds)
        assert set(TASKS[name]) == (fits if name != "jensen_shannon" else {"classification"})  # it takes a softmax


def test_params_know_every_loss_and_its_options() -> None:
    """`deepcv.params` imports no torch, so it has the names a second time."""
    ours = {name: {key: one.default for key, one in loss.options.items()} for name, loss in LOSSES.items()}
    assert {name: options for name, options in OPTIONS.items() if name != NOT_TRAINED} == ours
    assert set(LossParams.model_fields) == {"loss", "output", "target", "weight"}.union(*ours.values())


def test_params_know_which_losses_need_no_target() -> None:
    assert set(WITHOUT_TARGET) == {NOT_TRAINED} | {name for name, loss in LOSSES.items() if not loss.targets}


def test_an_output_learns_one_target() -> None:
    said = refused(Term("bce", "logits", "tags"), Term("cross_entropy"), left_out=("map", "embedding"))
    assert (
        said
        == "train.losses: the output 'logits' learns tags and label; expected one target: give each an output of its own"
    )
