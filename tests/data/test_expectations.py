import re
from dataclasses import replace

import pandas as pd
import pytest

from deepcv.data.expectations import Own, judge
from deepcv.data.findings import Limits, look
from deepcv.errors import DeepcvError

LIMITS = Limits(
    min_images=10, min_images_per_class=3, max_class_ratio=2.0, min_side=4, max_side=100, max_duplicate_share=0.1
)


def table(a: int = 8, b: int = 8) -> pd.DataFrame:
    count = a + b
    return pd.DataFrame(
        {
            "id": [f"{n}.png" for n in range(count)], "label": ["a"] * a + ["b"] * b,
            "split": (["train", "val", "test"] * count)[:count], "sha256": [f"{n:064d}" for n in range(count)],
            "width": 8, "height": 9, "mode": "grey8", "channels": 1,
        }
    )  # fmt: skip


def with_values(column: str, *values: object) -> pd.DataFrame:
    changed = table()
    changed[column] = changed[column].astype(object)
    for row, value in enumerate(values, start=4):
        changed.loc[row, column] = value
    return changed.infer_objects()


ALONE = {
    "too few images": (table(4, 4), "images is 8, expected at least 10"),
    "unbalanced": (table(30, 8), r"class_ratio is 3\.75, expected at most 2"),
    "duplicates": (table().assign(sha256="0" * 64), "duplicate_share is 0.9375, expected at most 0.1"),
    "sides": (with_values("width", 3, 101), r"width: .*min_value 4.0, max_value 100.0.* fails for 2 of 16.*\[3, 101\]"),
    "doubled id": (with_values("id", "0.png"), "id: expect_column_values_to_be_unique.* for example .*0.png"),
}


@pytest.fixture(scope="module")
def clean_html() -> str:
    verdict = judge(table(), ("a", "b"), LIMITS)
    assert verdict.success
    assert verdict.failures == ()
    return verdict.html


@pytest.mark.parametrize("case", ALONE)
def test_a_violated_limit_is_named_and_nothing_else(case: str) -> None:
    manifest, message = ALONE[case]
    verdict = judge(manifest, ("a", "b"), LIMITS, severities={"leakage": "warn", "label_conflict": "warn"})
    assert not verdict.success
    assert [bool(re.match(message, failure)) for failure in verdict.failures] == [True], verdict.failures


def test_every_violated_limit_is_named() -> None:
    manifest = table(16, 0)
    for column, values in {
        "height": (3, 101), "mode": ("cmyk8",), "split": ("dev",), "label": (None, "c"),
    }.items():  # fmt: skip
        manifest[column] = with_values(column, *values)[column]
    verdict = judge(manifest, ("a", "b", "c"), replace(LIMITS, modes=["grey8", "colour8"]))
    for message in (
        r"height: .* for example \[3, 101\]",
        r"mode: .*value_set \['grey8', 'colour8'\].* for example \['cmyk8'\]",
        r"split: .*value_set \['train', 'val', 'test'\].* for example \['dev'\]",
        "label: expect_column_values_to_not_be_null",
        "smallest_class is 1, expected at least 3",
    ):
        assert any(re.match(message, failure) for failure in verdict.failures), (message, verdict.failures)


def test_rare_modes_are_told_with_their_numbers() -> None:
    manifest = pd.concat([table(20, 20), with_values("mode", "palette")[4:5]], ignore_index=True)
    manifest["id"] = manifest["sha256"] = [f"{n}" for n in range(41)]
    verdict = judge(manifest, ("a", "b"), LIMITS, severities={"odd_mode": "warn"})
    assert verdict.success
    assert verdict.warnings == ("odd_modes is 1, expected at most 0 (palette 1)",)
    assert verdict.limits["odd_mode"] == (False, "above the limit of 0 images")


def test_a_manifest_without_modes_is_judged() -> None:
    assert judge(table().drop(columns="mode"), ("a", "b"), replace(LIMITS, modes=["colour8"])).success


def test_a_class_that_params_do_not_name_stops() -> None:
    verdict = judge(table(), ("a", "b"), replace(LIMITS, classes=["a", "cat"]))
    assert verdict.failures == ("classes_unknown is 1, expected at most 0 (b)",)
    assert judge(table(), ("a", "b"), replace(LIMITS, classes=["a", "b", "cat"])).success


def test_a_label_that_is_no_class_is_named() -> None:
    verdict = judge(with_values("label", "c"), ("a", "b"), LIMITS)
    assert [f for f in verdict.failures if re.match(r"label: .*value_set \['a', 'b'\].* for example \['c'\]", f)]


def test_a_page_is_the_same_for_the_same_data(clean_html: str) -> None:
    assert judge(table(), ("a", "b"), LIMITS).html == clean_html


def test_a_page_loads_nothing_from_a_network(clean_html: str) -> None:
    failed = judge(with_values("width", 3), ("a", "b"), LIMITS).html
    assert failed != clean_html
    assert "Failed" in failed
    for page in (clean_html, failed):
        assert "width" in page
        for tag in re.findall(r"<(?:script|link|img|iframe|source|object|embed)\b[^>]*>", page):
            assert not re.search(r"""(?:src|href|data)\s*=\s*["']?\s*(?:https?:)?//""", tag), tag
        assert not re.search(r"url\(\s*['\"]?\s*(?:https?:)?//", page)
        assert not re.search(r"@import\s+['\"]?\s*(?:url|https?:|//)", page)


def test_the_page_says_what_was_found(clean_html: str) -> None:
    assert ">16<" in clean_html  # images
    assert ">0.9375<" in judge(table().assign(sha256="0" * 64), ("a", "b"), LIMITS).html  # duplicate_share


def test_severities_decide_what_stops() -> None:
    black = with_values("width", 3)
    for severity, success in {"fail": False, "warn": True, "quarantine": True}.items():
        verdict = judge(black, ("a", "b"), LIMITS, severities={"size": severity, "odd_shape": "warn"})
        assert verdict.success == success
        assert verdict.quarantined["position"].tolist() == ([4] if severity == "quarantine" else [])
        assert any(text.startswith("width: ") for text in (*verdict.failures, *verdict.warnings))


def test_your_own_expectations_are_held() -> None:
    kwargs = {"column": "width", "max_value": 7}
    for name, severity in {"ExpectColumnMaxToBeBetween": "warn", "expect_column_max_to_be_between": "fail"}.items():
        verdict = judge(table(), ("a", "b"), LIMITS, own=[Own(name, kwargs, severity)])
        assert verdict.success == (severity == "warn")
        (text,) = verdict.failures + verdict.warnings
        assert text == "width: expect_column_max_to_be_between(max_value 7.0) fails: 8"
    own = Own("expect_column_values_to_not_be_in_set", {"column": "id", "value_set": ["5.png"]}, "quarantine")
    verdict = judge(table(), ("a", "b"), LIMITS, own=[own])
    assert verdict.success
    assert verdict.quarantined["position"].tolist() == [5]


@pytest.mark.parametrize(
    ("name", "kwargs", "holds"),
    [
        ("expect_column_to_exist", {"column": "x"}, False),
        ("expect_column_to_exist", {"column": "id"}, True),
        ("expect_table_columns_to_match_ordered_list", {"column_list": ["id", "x"]}, False),
        ("expect_table_columns_to_match_ordered_list", {"column_list": list(table())}, True),
        ("expect_table_columns_to_match_set", {"column_set": ["id", "x"]}, False),
    ],
)
def test_an_expectation_on_the_table_may_name_columns_that_are_not_there(
    name: str, kwargs: dict[str, object], holds: bool
) -> None:
    verdict = judge(table(), ("a", "b"), LIMITS, own=[Own(name, kwargs, "warn")])
    assert verdict.success
    assert len(verdict.warnings) == (not holds)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (Own("expect_colum_values_to_be_unique", {}), "validate.expectations.0.expectation.*mean expect_column_values_to_be_unique"),
        (Own("expect_column_values_to_be_unique", {"colum": "id"}), "validate.expectations.0.kwargs.*colum"),
        (Own("expect_column_max_to_be_between", {"column": "heigt"}), "0.kwargs: .*no column 'heigt'; did you mean height"),
        (Own("expect_column_max_to_be_between", {"column": "qq"}), "no column 'qq'; there are id, label, split, sha256"),
        (Own("expect_column_pair_values_to_be_equal", {"column_A": "width", "column_B": "hight"}), "mean height"),
        (Own("expect_column_type_to_be", {"column": "widht", "type_": "int64"}), "mean width"),
        (Own("expect_compound_columns_to_be_unique", {"column_list": ["id", "lable"]}), "mean label"),
        (
            Own("expect_column_max_to_be_between", {"column": "width", "max_value": 7}, "quarantine"),
            "expectations.0.severity: must be fail or warn, got quarantine",
        ),
    ],
)  # fmt: skip
def test_an_expectation_that_does_not_exist_is_named(own: Own, message: str) -> None:
    with pytest.raises(DeepcvError, match=message):
        judge(table(), ("a", "b"), LIMITS, own=[own])


def test_a_check_is_within_its_limit_where_its_expectation_holds() -> None:
    rows = table()
    rows.loc[1, "sha256"] = rows.loc[0, "sha256"]  # 1 of 16, in another split and of the same label
    said = judge(rows, ("a", "b"), LIMITS).limits
    assert said["duplicates"] == (True, "within the limit of 10 %")
    assert said["leakage"] == (False, "above the limit of 0 images")
    assert judge(rows, ("a", "b"), replace(LIMITS, max_leaks=1)).limits["leakage"] == (
        True,
        "within the limit of 1 image",
    )
    assert "blurred" not in said  # the table has no such column


@pytest.mark.parametrize(
    ("share", "p", "expected"),
    [
        (0.01, 0.5, (True, "within the limit of 5 %")),
        (0.01, 1e-5, (False, "within the limit of 5 %, but label_agreement_p is 1e-05, expected at least 0.001")),
        (0.2, 0.5, (False, "above the limit of 5 %")),
        (0.2, 1e-5, (False, "above the limit of 5 %, but label_agreement_p is 1e-05, expected at least 0.001")),
    ],
)
def test_a_check_of_two_numbers_holds_where_both_do(share: float, p: float, expected: tuple[bool, str]) -> None:
    found = look(table(), ("a", "b"), LIMITS)
    numbers = {**found.numbers, "contradicted_share": share, "label_agreement_p": p, "brightness_ks": 0.05}
    verdict = judge(table(), ("a", "b"), LIMITS, replace(found, numbers=numbers))
    assert verdict.limits["label_noise"] == expected
    assert verdict.success == expected[0]
    # A distance, a ratio and a number of classes are no images.
    assert not {"brightness", "balance", "label_set", "class_shares"} & set(verdict.limits)
