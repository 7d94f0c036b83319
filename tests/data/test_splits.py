"""Laws of the two draws; `reference` is the stratified draw as it was first written, which must never give anything else."""

import hashlib
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcv.data.samples import DataError
from deepcv.data.splits import OPEN, SPLITS, SplitRule, assign, check_not_empty

Row = tuple[str, str, str, str | None]  # id, content, label, split of the source


def draw(rows: list[Row], val: float = 0.2, test: float = 0.2, seed: int = 0, **more: Any) -> dict[str, str]:
    rule = SplitRule(val, test, seed, **more)
    names = sorted({label for _, _, label, _ in rows})
    source = np.array([OPEN if split is None else SPLITS.index(split) for *_, split in rows], np.int8)
    labels = np.array([names.index(label) for _, _, label, _ in rows], np.int32)
    units = [rule.unit(image_id, content) for image_id, content, _, _ in rows]
    ranks = np.frombuffer(b"".join(rule.rank(str(unit)) for unit in units), "S16")
    digests = b"".join(hashlib.sha256(content.encode()).digest()[:16] for _, content, _, _ in rows)
    contents = np.frombuffer(digests, "S16") if rule.group_by else None
    splits = assign(source, labels, ranks, contents, rule, lambda n: rows[n][0])
    return {row[0]: SPLITS[split] for row, split in zip(rows, splits, strict=True)}


def reference(rows: list[Row], val: float, test: float, seed: int) -> dict[str, str]:
    splits = [split or "train" for *_, split in rows]
    wanted = {split: share for split, share in {"val": val, "test": test}.items() if split not in splits}
    label_of: dict[str, str] = {}
    for split, (_, content, label, _) in zip(splits, rows, strict=True):
        if split == "train":
            label_of[content] = min(label, label_of.get(content, label))
    by_class: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
    for position, (split, (_, content, _, _)) in enumerate(zip(splits, rows, strict=True)):
        if split == "train":
            rank = hashlib.sha256(f"{seed}:{content}".encode()).hexdigest()
            by_class[label_of[content]].append((rank, position))
    for ranked in by_class.values():
        ranked.sort()
        start = 0
        for split, share in wanted.items():
            end = start + max(1, round(share * len(ranked)))
            while 0 < end < len(ranked) and ranked[end][0] == ranked[end - 1][0]:
                end += 1
            for _, position in ranked[start:end]:
                splits[position] = split
            start = end
    return {row[0]: split for row, split in zip(rows, splits, strict=True)}


def images(labels: str) -> list[Row]:
    return [(f"{n:03d}", f"{n:03d}", label, None) for n, label in enumerate(labels)]


laws = settings(deadline=None, max_examples=60)
fractions = st.floats(0.05, 0.45)
seeds = st.integers(0, 9)
folds = st.integers(2, 6)
METHODS = ("stratified", "stable")


@st.composite
def collections(draw_from: st.DrawFn, sources: bool = False, least: int = 1) -> list[Row]:
    """Images of up to three classes and eight groups (`g1/…`), some equal; an equal image stays in its group."""
    count = draw_from(st.integers(least, 60))
    rows: list[Row] = []
    for n in range(count):
        group = draw_from(st.integers(0, 7))
        content = f"{group}-{draw_from(st.integers(0, 30))}"
        split = draw_from(st.sampled_from(["train", "val", "test", None])) if sources else None
        rows.append((f"g{group}/{n}", content, draw_from(st.sampled_from("abc")), split))
    return rows


@laws
@given(collections(sources=True), fractions, fractions, seeds)
def test_the_stratified_draw_is_that_of_the_first_version(rows: list[Row], val: float, test: float, seed: int) -> None:
    assert draw(rows, val, test, seed) == reference(rows, val, test, seed)


@laws
@given(st.text("abc", min_size=1, max_size=60), fractions, fractions, seeds)
def test_stratified_shares_are_exact(names: str, val: float, test: float, seed: int) -> None:
    found = draw(images(names), val, test, seed)
    for label, count in Counter(names).items():
        sizes = Counter(found[f"{n:03d}"] for n, name in enumerate(names) if name == label)
        assert sizes["val"] == min(count, max(1, round(val * count)))
        assert sizes["test"] == min(count - sizes["val"], max(1, round(test * count)))


@pytest.mark.parametrize("method", METHODS)
@laws
@given(rows=collections(), random=st.randoms(use_true_random=False), seed=seeds)
def test_the_order_of_the_images_does_not_matter(rows: list[Row], random: Any, seed: int, method: str) -> None:
    shuffled = rows.copy()
    random.shuffle(shuffled)
    assert draw(rows, seed=seed, method=method) == draw(shuffled, seed=seed, method=method)


@pytest.mark.parametrize("group_by", ["", "(g[0-9])/"])
@pytest.mark.parametrize("number_of_folds", [0, 3])
@laws
@given(rows=collections(), others=collections(), seed=seeds)
def test_in_the_stable_draw_others_move_no_image(
    rows: list[Row], others: list[Row], seed: int, group_by: str, number_of_folds: int
) -> None:
    more = [(f"{image_id}-other", f"{content}-other", label, None) for image_id, content, label, _ in others]
    rule = {"seed": seed, "method": "stable", "group_by": group_by, "folds": number_of_folds}
    before, after = draw(rows, **rule), draw([*more, *rows], **rule)
    assert before == {image_id: after[image_id] for image_id in before}
    # To replace an image is to remove it and to add another.
    assert draw([*rows[1:], *more], **rule).items() >= {(i, s) for i, s in before.items() if i != rows[0][0]}


@pytest.mark.parametrize("method", METHODS)
@laws
@given(rows=collections(), val=fractions, test=fractions, seed=seeds, number_of_folds=st.sampled_from([0, 2, 5]))
def test_groups_and_equal_images_stay_together(
    rows: list[Row], val: float, test: float, seed: int, number_of_folds: int, method: str
) -> None:
    for group_by, key in (("", 1), ("^(g[0-9])/", 0)):
        found = draw(rows, val, test, seed, method=method, group_by=group_by, folds=number_of_folds)
        splits_of: defaultdict[str, set[str]] = defaultdict(set)
        for row in rows:
            splits_of[row[key].split("/")[0]].add(found[row[0]])
        assert all(len(splits) == 1 for splits in splits_of.values())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("group_by", ["", "(g[0-9])/"])
@laws
@given(rows=collections(), number=folds, seed=seeds)
def test_folds_partition_all_but_the_test_images(
    rows: list[Row], number: int, seed: int, method: str, group_by: str
) -> None:
    rule = {"seed": seed, "method": method, "group_by": group_by}
    whole = draw(rows, **rule)
    parts = [draw(rows, **rule, folds=number, fold=fold) for fold in range(number)]
    for image_id in whole:
        splits = Counter(part[image_id] for part in parts)
        assert splits == ({"test": number} if whole[image_id] == "test" else {"val": 1, "train": number - 1})


@pytest.mark.parametrize("labels", ["abc" * 30, "a" * 31 + "b" * 17 + "c" * 42, "ab" * 7])
@pytest.mark.parametrize("number", [2, 5, 7])
def test_stratified_folds_differ_by_one_image_in_all_and_in_each_class(labels: str, number: int) -> None:
    rows = images(labels)
    label_of = {image_id: label for image_id, _, label, _ in rows}
    counts = []
    for fold in range(number):
        val = [image_id for image_id, split in draw(rows, folds=number, fold=fold).items() if split == "val"]
        counts.append(Counter(label_of[image_id] for image_id in val))
    sizes = [count.total() for count in counts]
    assert max(sizes) - min(sizes) <= 1, sizes
    for label in set(labels):
        assert max(count[label] for count in counts) - min(count[label] for count in counts) <= 1


def test_folds_are_equally_large() -> None:
    for method, tolerance in (("stratified", 0.01), ("stable", 0.1)):
        rows = images("ab" * 2000)
        sizes = [Counter(draw(rows, folds=5, fold=n, method=method).values())["val"] for n in range(5)]
        assert sizes == pytest.approx([640] * 5, rel=tolerance)


def test_stable_shares_hold_on_average() -> None:
    sizes = Counter(draw(images("a" * 10_000), 0.1, 0.25, method="stable").values())
    assert sizes["val"] == pytest.approx(1000, rel=0.1)
    assert sizes["test"] == pytest.approx(2500, rel=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_splits_depend_on_the_seed(method: str) -> None:
    rows = images("a" * 50)
    assert draw(rows, seed=0, method=method) != draw(rows, seed=1, method=method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("own", ["val", "test"])
def test_a_split_of_the_source_is_kept(own: str, method: str) -> None:
    rows = [(i, c, label, own if n < 100 else "train") for n, (i, c, label, _) in enumerate(images("ab" * 300))]
    found = draw(rows, method=method)
    assert [i for i, split in found.items() if split == own] == [row[0] for row in rows[:100]]
    other = {"val": "test", "test": "val"}[own]
    assert Counter(found.values())[other] == pytest.approx(100, abs=0 if method == "stratified" else 30)


def test_all_splits_of_the_source_are_kept() -> None:
    splits = ["train", "val", "test", "train"] * 3
    rows = [(i, c, label, split) for (i, c, label, _), split in zip(images("a" * 12), splits, strict=True)]
    assert list(draw(rows).values()) == splits


def test_a_group_that_the_source_splits_is_named() -> None:
    rows: list[Row] = [("p1/a", "1", "a", "train"), ("p2/b", "2", "a", "train"), ("p1/c", "3", "a", "test")]
    with pytest.raises(
        DataError, match=r"source itself puts images of one group into two splits: p1/a is in train, p1/c"
    ):
        draw(rows, group_by="(p.)/")


def test_folds_of_a_source_with_a_val_split_are_refused() -> None:
    with pytest.raises(DataError, match="brings a val split of its own"):
        draw([("1", "1", "a", "train"), ("2", "2", "a", "val")], folds=2)


def test_an_empty_split_and_a_class_without_train_images_are_named() -> None:
    splits, labels = np.array([0, 0, 1], np.int8), np.array([0, 1, 1], np.int32)
    with pytest.raises(DataError, match=r"the split test got no image of 3; raise ingest\.test_fraction"):
        check_not_empty(splits, labels, ["a", "b"])
    with pytest.raises(DataError, match="too few images of class c, d"):
        check_not_empty(splits, labels, ["a", "b", "c", "d"])


@laws
@given(rows=collections(), seed=seeds)
def test_equal_images_of_two_groups_are_together_or_refused(rows: list[Row], seed: int) -> None:
    mixed = [(image_id, content[-1], label, None) for image_id, content, label, _ in rows]
    try:
        found = draw(mixed, seed=seed, group_by="(g[0-9])/")
    except DataError as error:
        assert "equal images of two groups" in str(error)  # noqa: PT017 - refused is one of the two outcomes
        return
    splits_of: defaultdict[str, set[str]] = defaultdict(set)
    for image_id, content, *_ in mixed:
        splits_of[content].add(found[image_id])
    assert all(len(splits) == 1 for splits in splits_of.values())


def test_equal_images_of_two_groups_in_two_splits_are_named() -> None:
    rows: list[Row] = [(f"g{n}/x", "same", "a", None) for n in range(8)]
    with pytest.raises(DataError, match=r"group_by puts equal images of two groups into two splits: g\d/x is in"):
        draw(rows, group_by="(g[0-9])/")
