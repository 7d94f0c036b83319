from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deepcv.data import copies
from deepcv.data.findings import Limits, Looked, candidate, look, read_reference
from deepcv.data.neighbours import Agreement
from deepcv.data.notes import Notes
from deepcv.data.samples import DataError

LIMITS = Limits(10, 2, 2.0, 4, 100, 0.1)
CLASSES = ("a", "b")


def table(count: int = 400) -> pd.DataFrame:
    random = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "id": [f"{n}.png" for n in range(count)], "label": ["a", "b"] * (count // 2),
            "split": (["train"] * 6 + ["val"] * 2 + ["test"] * 2) * (count // 10),
            "sha256": [f"{n:064d}" for n in range(count)], "width": 8, "height": 9, "channels": 3, "mode": "colour8",
            "brightness": random.normal(0.5, 0.1, count), "contrast": 0.2, "sharpness": 0.01,
            "red_minus_blue": random.normal(0.1, 0.1, count),
        }
    )  # fmt: skip


def flagged(rows: pd.DataFrame, check: str, looked: Looked | None = None) -> list[int]:
    found = look(rows, CLASSES, LIMITS, looked).flagged
    return sorted(found.loc[found["check"] == check, "position"])


@pytest.mark.parametrize(
    ("check", "column", "value"),
    [
        ("size", "width", 3), ("odd_mode", "mode", "cmyk8"), ("labels", "label", "c"), ("uniform", "contrast", 0.0),
        ("blurred", "sharpness", 0.0), ("odd_shape", "height", 10), ("duplicates", "sha256", f"{0:064d}"),
        ("leakage", "sha256", f"{9:064d}"),
    ],
)  # fmt: skip
def test_the_image_at_fault_is_flagged_alone(check: str, column: str, value: object) -> None:
    assert flagged(table(), check) == []
    rows = table()
    rows.loc[5, column] = value
    assert flagged(rows, check) == [5]


@pytest.mark.parametrize(
    ("mode", "count", "reason"),
    [
        ("grey8", 19, "grey8: 19 of 400 images are"),
        ("grey8", 20, None),
        ("grey16+dim", 200, "grey16+dim: its highest bits are not used: decoded, no level is above 63 of 255; scale the levels up"),
        ("palette+animated", 1, "palette+animated: 1 of 400 images are; of its pictures the first is taken"),
        ("colour8+pages", 400, "colour8+pages: of its pages the first is taken"),
    ],
)  # fmt: skip
def test_a_mode_is_odd_where_it_is_rare_or_loses_much(mode: str, count: int, reason: str | None) -> None:
    rows = table()
    rows.loc[: count - 1, "mode"] = mode
    found = look(rows, CLASSES, LIMITS)
    odd = found.flagged[found.flagged["check"] == "odd_mode"]
    assert odd["reason"].tolist() == [reason] * (count if reason else 0)
    assert found.numbers["odd_modes"] == len(odd)
    assert found.words["odd_modes"] == (f"{mode} {count}" if reason else "")


def test_a_mode_that_is_not_wanted_is_flagged_and_no_other() -> None:
    rows = table()
    rows.loc[:9, "mode"] = "grey16+dim"
    rows.loc[5, "mode"] = "cmyk8"
    found = look(rows, CLASSES, replace(LIMITS, modes=("colour8", "grey16+dim")))
    assert found.flagged.to_dict("list") == {
        "check": ["mode"], "position": [5], "reason": ["cmyk8, not colour8 or grey16+dim"]
    }  # fmt: skip


def test_near_twins_across_splits_blame_the_one_that_is_trained_on() -> None:
    looked = Looked(twins=np.array([[0, 1], [5, 8]]))
    assert flagged(table(), "near_duplicates", looked) == [1, 8]
    assert flagged(table(), "near_leakage", looked) == [5]


def test_unreadable_images_and_contradicted_labels_are_flagged() -> None:
    agreement = Agreement(np.ones(3, np.float32), np.array(["", "b", ""], object))
    looked = Looked(unreadable={3: "truncated"}, sampled=np.array([9, 4, 2]), agreement=agreement)
    assert flagged(table(), "readable", looked) == [3]
    assert flagged(table(), "label_noise", looked) == [4]


@pytest.mark.parametrize(
    ("number", "change"),
    [
        ("brightness_ks", {"brightness": lambda t: t["brightness"] + 0.05}),
        ("channel_swap", {"red_minus_blue": lambda t: -t["red_minus_blue"]}),
        ("class_shares_v", {"label": ["a"] * 300 + ["b"] * 100}),
        ("classes_lost", {"label": "a"}),
        ("classes_added", {"label": lambda t: ["c", *t["label"][1:]]}),
    ],
)
def test_what_differs_from_the_reference_is_told(number: str, change: dict[str, object]) -> None:
    clean = look(table(), CLASSES, LIMITS, None, table()).numbers
    assert clean[number] <= 0
    assert look(table().assign(**change), CLASSES, LIMITS, None, table()).numbers[number] > 0.1


def test_a_class_that_is_not_named_is_found_without_a_reference() -> None:
    rows = table()
    rows.loc[5, "label"] = "c"
    rows.loc[6, "label"] = None
    found = look(rows, ("a", "b", "empty"), replace(LIMITS, classes=("a", "b", "z")))
    assert found.numbers["classes_unknown"] == 2
    assert found.words["classes_unknown"] == "c, empty"
    assert found.flagged.query("check == 'label_set'")["position"].tolist() == [5]
    assert set(found.skipped) >= {"class_shares", "brightness", "channel_order"}
    assert "label_set" not in found.skipped
    assert look(table(), CLASSES, replace(LIMITS, classes=("b", "a"))).numbers["classes_unknown"] == 0
    assert "label_set" in look(table(), CLASSES, LIMITS).skipped


def test_what_cannot_be_checked_is_told_with_a_reason() -> None:
    old = table().drop(columns=["contrast", "sharpness", "mode"])
    assert "no column mode" in look(old, CLASSES, replace(LIMITS, modes=["grey8"])).skipped["mode"]
    found = look(old, CLASSES, LIMITS)
    assert "no column mode" in found.skipped["odd_mode"]
    assert "no column contrast" in found.skipped["uniform"]
    assert "no reference is accepted" in found.skipped["brightness"]


def test_a_candidate_serves_as_reference(tmp_path: Path) -> None:
    share = np.linspace(0, 1, 3, dtype=np.float32)
    looked = Looked(sampled=np.array([9, 4, 2]), agreement=Agreement(share, np.full(3, "", object)))
    candidate(table(), looked).to_parquet(tmp_path / "r.parquet")
    read = read_reference(tmp_path / "r.parquet")
    assert read["label_agreement"].dropna().tolist() == share.tolist()
    assert read["label"].head(3).tolist() == ["b", "a", "a"]
    with pytest.raises(DataError, match="expected an accepted reference"):
        read_reference(tmp_path / "none.parquet")


def test_files_that_are_no_images_are_asked_for_nothing_else() -> None:
    rows = table()
    clean = look(rows, CLASSES, LIMITS, Looked(), rows)
    measured = ["width", "height", "channels", "brightness", "contrast", "sharpness", "red_minus_blue"]
    blank = pd.DataFrame({**rows.iloc[0], "split": "test", "sha256": "e" * 64}, index=[0, 1])
    blank[measured] = 0
    both = pd.concat([blank, rows], ignore_index=True)  # two empty files before all others
    both.loc[0, "label"] = "b"
    found = look(both, CLASSES, LIMITS, Looked(unreadable={0: "empty", 1: "empty"}), rows)
    assert found.numbers == clean.numbers | {"unreadable": 2}
    assert found.flagged.to_dict("list") == {"check": ["readable"] * 2, "position": [0, 1], "reason": ["empty"] * 2}
    assert found.words["unreadable"].endswith("0.png: empty\n    0.png: empty")
    both.loc[7, "width"] = 3
    agreement = Agreement(np.ones(2, np.float32), np.array(["", "b"], object))
    seen = Looked(np.array([[2, 3]]), {0: "empty"}, np.array([9, 4]), agreement)
    flags = look(both, CLASSES, LIMITS, seen).flagged
    places = {check: part["position"].tolist() for check, part in flags.groupby("check")}
    assert places == {"near_duplicates": [3], "label_noise": [4], "readable": [0], "size": [7], "odd_shape": [7]}
    assert len(candidate(both, seen)) == len(rows)


@pytest.mark.parametrize(
    ("column", "values", "reasons"),
    [
        ("label", ("a", "b", "a"), ["a, but b as 4.png", "b, but a as 3.png", "a, but b as 4.png"]),
        (
            "annotations", ('{"boxes": [{"label": "cow"}]}', '{"boxes": [{"label": "dog"}]}', '{"boxes": [{"label": "dog"}]}'),
            ["a (cow), but a (dog) as 4.png", "a (dog), but a (cow) as 3.png", "a (dog), but a (cow) as 3.png"],
        ),
        ("annotations", ('{"boxes": [{"label": "cow", "x": 1}]}', '{"boxes": [{"label": "cow", "x": 2}]}') * 2, []),
        ("annotations", ('{"tags": {"has": ["b", "a"]}}', '{"tags": {"has": ["a", "b"]}}', '{"tags": {"has": ["a"]}}'),
            [*["a (has: a, b), but a (has: a) as 5.png"] * 2, "a (has: a), but a (has: a, b) as 3.png"]),
        ("label", ("a", "a", "a"), []),
    ],
)  # fmt: skip
def test_copies_with_other_labels_are_flagged_all(column: str, values: tuple[str, ...], reasons: list[str]) -> None:
    rows = table().assign(annotations="")
    rows.loc[3:5, "label"] = "a"
    rows.loc[3:5, "sha256"] = "c" * 64
    rows.loc[3:5, column] = values[:3]
    found = look(rows, CLASSES, LIMITS)
    assert found.numbers["label_conflicts"] == len(reasons)
    part = found.flagged[found.flagged["check"] == "label_conflict"]
    assert part["position"].tolist() == [3, 4, 5][: len(reasons)]
    assert part["reason"].tolist() == reasons


def test_of_very_many_copies_each_is_told_one_that_differs() -> None:
    """They would take some half an hour where each copy looked through the others."""
    count = 20_000
    rows = table(count).assign(sha256="c" * 64, annotations="", label="a", id=[f"{n}.png" for n in range(count)])
    rows.loc[count - 2, "label"] = None
    rows.loc[count - 1, "label"] = "b"
    notes = Notes({})
    copies.equal(rows, notes)
    assert notes.numbers["label_conflicts"] == count
    flags = notes.table()
    reasons = flags[flags["check"] == "label_conflict"].set_index("position")["reason"]
    assert set(reasons[: count - 2]) == {f"a, but no label as {count - 2}.png"}
    assert reasons[count - 2 :].tolist() == ["no label, but a as 0.png", "b, but a as 0.png"]


@pytest.mark.parametrize("kind", [object, "float64", "str"])
def test_copies_without_annotations_are_no_conflict(kind: object) -> None:
    """Older manifests and those of others have no text there, which pandas reads as None or NaN."""
    rows = table().assign(annotations=pd.Series([None] * 400, dtype=kind))
    rows.loc[3:5, "sha256"] = "c" * 64
    rows.loc[3:5, "label"] = "a"
    assert look(rows, CLASSES, LIMITS).numbers["label_conflicts"] == 0
    if kind != "float64":
        rows.loc[4, "annotations"] = '{"boxes": [{"label": "cow"}]}'
        rows.loc[5, "label"] = np.nan
        assert look(rows, CLASSES, LIMITS).flagged.query("check == 'label_conflict'")["reason"].tolist() == [
            "a, but a (cow) as 4.png", "a (cow), but a as 3.png", "no label, but a as 3.png"
        ]  # fmt: skip
