"""Checks of the manifest by Great Expectations: a verdict for the pipeline and Data Docs for people."""

import difflib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import great_expectations as gx
import numpy as np
import pandas as pd
from great_expectations.expectations.expectation import (
    ColumnAggregateExpectation,
    ColumnMapExpectation,
    ColumnPairMapExpectation,
    MulticolumnMapExpectation,
)
from great_expectations.render.renderer import ValidationResultsPageRenderer
from great_expectations.render.view import DefaultJinjaPageView

from deepcv.data.drift import MIN_CRAMERS_V, MIN_KS
from deepcv.data.findings import MIN_CHANNEL_SWAP, Findings, Limits, look
from deepcv.data.manifest import readable
from deepcv.errors import DeepcvError

_COUNTS = (
    "unreadable",
    "odd_shapes",
    "odd_modes",
    "label_conflicts",
    "leaks",
    "near_leaks",
)  # numbers of images, as shares of them are
_OF_IMAGES = (ColumnMapExpectation, ColumnPairMapExpectation, MulticolumnMapExpectation)  # they say which rows fail
# The columns that these name must be there; expectations on the table may name others, to find out whether they are.
_OF_COLUMNS = (*_OF_IMAGES, ColumnAggregateExpectation, gx.expectations.ExpectColumnTypeToBe)

# Data Docs load their style and scripts from public networks: the page would be bare offline and would tell them who reads it.
_REMOTE = re.compile(
    r"<link[^>]*https?://[^>]*>|<script[^>]*https?://[^>]*>\s*</script>|<img[^>]*https?://[^>]*>", re.DOTALL
)
_REMOTE_STYLE = re.compile(r"url\(['\"]?https?://[^)]*\)")
_RANDOM_ID = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}")
_STYLE = """<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; padding: 0 1rem; color: #222 }
h4 { font-size: 1.4rem; margin: 0 } h5 { font-size: 1.1rem; margin: 1.2rem 0 .2rem } h6 { font-size: 1rem; margin: .6rem 0 0 }
table { border-collapse: collapse; width: 100% } th:first-child { width: 5rem } th:last-child { width: 14rem }
td, th { border-bottom: 1px solid #ddd; padding: .35rem .6rem; text-align: left; vertical-align: top }
.badge { background: #eee; border-radius: 4px; padding: 0 .4rem }
.text-success { color: #15803d } .text-danger, .fa-times { color: #b91c1c }
.fa-check-circle::before { content: "✓" } .fa-times::before { content: "✗" }
.modal, nav, footer, .navbar, .cooltip::after { display: none }
/* What needs the scripts that are left out, or links to pages that are not there. */
.card, .collapse, a[data-toggle=collapse], .lead { display: none } .alert a { color: inherit; pointer-events: none }
</style></head>"""


@dataclass(frozen=True)
class Own:
    """An expectation from params.yaml on the manifest's table: a type of Great Expectations, its arguments, a severity."""

    expectation: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    severity: str = "fail"


@dataclass(frozen=True)
class Verdict:
    """What failed by severity, each as what was expected and found; `html` is the Data Docs page.

    `quarantined` has a row (position, reason) per image and reason to leave it out. `limits` says of each check that counts images
    whether all of its expectations hold, and how its numbers stand: "within the limit of 5 %".
    """

    success: bool
    failures: tuple[str, ...]
    warnings: tuple[str, ...]
    quarantined: pd.DataFrame
    html: str
    limits: Mapping[str, tuple[bool, str]]


def judge(
    manifest: pd.DataFrame, classes: tuple[str, ...], limits: Limits, findings: Findings | None = None,
    severities: Mapping[str, str] | None = None, own: Sequence[Own] = (),
) -> Verdict:  # fmt: skip
    """Hold the manifest and what was found in it against the limits.

    A check that fails stops the pipeline where its severity is `fail`, as by default; `quarantine` leaves out each image that
    it flags, however few. Raises DeepcvError for an expectation of params.yaml that cannot be judged.
    """
    findings = findings or look(manifest, classes, limits)
    severities = severities or {}
    on_images = [
        *(
            _tagged(item, check, severities.get(check, "fail"))
            for check, item in _on_images(classes, limits)
            if item.column in manifest.columns
        ),
        *(
            _tagged(_own(number, entry, manifest.columns.astype(str).tolist()), "own", entry.severity)
            for number, entry in enumerate(own)
        ),
    ]
    on_dataset = [
        _tagged(item, check, severities.get(check, "fail"), dataset=True)
        for check, item in _on_dataset(limits)
        if item.column in findings.numbers
    ]
    complete = any(entry.severity == "quarantine" for entry in own)
    # Those that are no images are `readable`'s to judge; positions stay those of the manifest.
    images = manifest.reset_index(drop=True)[readable(manifest)]
    images_results, images_html = _run("images", images, on_images, complete=complete)
    row = pd.DataFrame({name: [value] for name, value in findings.numbers.items()})
    dataset_results, dataset_html = _run("dataset", row, on_dataset)
    texts: dict[str, list[str]] = {"fail": [], "quarantine": [], "warn": []}
    reasons = [
        findings.flagged[findings.flagged["check"].isin([c for c, s in severities.items() if s == "quarantine"])]
    ]
    for result in [*images_results, *dataset_results]:
        if not result.success:
            config = result.expectation_config
            severity = config.meta["severity"]
            if severity == "quarantine" and config.meta["check"] == "own":
                positions = result.result.get("unexpected_index_list") or []
                severity = severity if positions else "fail"  # it raised
                reasons.append(pd.DataFrame({"check": "own", "position": positions, "reason": config.type}))
            texts[severity].append(_explain(result, findings.words))
    quarantined = pd.concat([part for part in reasons if len(part)] or reasons[:1], ignore_index=True)
    return Verdict(
        not texts["fail"], tuple(texts["fail"]), tuple(texts["quarantine"] + texts["warn"]), quarantined,
        _page(images_html, dataset_html), _limits(dataset_results),
    )  # fmt: skip


def _on_images(classes: tuple[str, ...], limits: Limits) -> list[tuple[str, Any]]:
    """Pairs of (check, expectation) on the table of images."""
    between, in_set = gx.expectations.ExpectColumnValuesToBeBetween, gx.expectations.ExpectColumnValuesToBeInSet
    return [
        ("labels", gx.expectations.ExpectColumnValuesToNotBeNull(column="label")),
        ("labels", in_set(column="label", value_set=list(classes))),
        ("split", in_set(column="split", value_set=["train", "val", "test"])),
        ("id", gx.expectations.ExpectColumnValuesToBeUnique(column="id")),
        ("size", between(column="width", min_value=limits.min_side, max_value=limits.max_side)),
        ("size", between(column="height", min_value=limits.min_side, max_value=limits.max_side)),
        *([("mode", in_set(column="mode", value_set=list(limits.modes)))] if limits.modes else []),
    ]


def _limits(results: Sequence[Any]) -> dict[str, tuple[bool, str]]:
    """Say of each check that counts images whether its expectations hold, and how: "above the limit of 2 images"."""
    counts, others = {}, defaultdict(list)
    for result in results:
        check, column = result.expectation_config.meta["check"], result.expectation_config.kwargs["column"]
        if column.endswith("_share") or column in _COUNTS:
            limit = result.expectation_config.kwargs["max_value"]
            amount = (
                f"{100 * limit:g} %" if column.endswith("_share") else f"{limit:g} image{'' if limit == 1 else 's'}"
            )
            counts[check] = bool(result.success), f"{'within' if result.success else 'above'} the limit of {amount}"
        elif not result.success:
            others[check].append(_compared(result))
    return {
        check: (holds and check not in others, ", but ".join([told, *others[check]] if check in others else [told]))
        for check, (holds, told) in counts.items()
    }


def _on_dataset(limits: Limits) -> list[tuple[str, Any]]:
    """Pairs of (check, expectation) on the one row of numbers; a column's maximum is its number, and the page shows it."""
    between = gx.expectations.ExpectColumnMaxToBeBetween
    most = {
        "class_ratio": ("balance", limits.max_class_ratio),
        "unreadable": ("readable", 0),
        "odd_shapes": ("odd_shape", 0),
        "odd_modes": ("odd_mode", 0),
        "label_conflicts": ("label_conflict", 0),
        "duplicate_share": ("duplicates", limits.max_duplicate_share),
        "near_duplicate_share": ("near_duplicates", limits.max_near_duplicate_share),
        "leaks": ("leakage", limits.max_leaks),
        "near_duplicates_cut_short": ("near_duplicates", 0),
        "near_leaks": ("near_leakage", limits.max_near_leaks),
        "near_leaks_cut_short": ("near_leakage", 0),
        "uniform_share": ("uniform", limits.max_uniform_share),
        "blurred_share": ("blurred", limits.max_blurred_share),
        "contradicted_share": ("label_noise", limits.max_contradicted_share),
        "classes_unknown": ("label_set", 0),
        "classes_added": ("label_set", 0),
        "classes_lost": ("label_set", 0),
        "class_shares_v": ("class_shares", MIN_CRAMERS_V),
        "brightness_ks": ("brightness", MIN_KS),
        "channel_swap": ("channel_order", MIN_CHANNEL_SWAP),
    }
    return [
        ("balance", between(column="images", min_value=limits.min_images)),
        ("balance", between(column="smallest_class", min_value=limits.min_images_per_class)),
        ("label_noise", between(column="label_agreement_p", min_value=limits.alpha)),
        *((check, between(column=column, max_value=limit)) for column, (check, limit) in most.items()),
    ]


def _tagged(expectation: Any, check: str, severity: str, *, dataset: bool = False) -> Any:
    """Note with an expectation what its result means: Great Expectations returns results in an order of its own."""
    expectation.meta = {**(expectation.meta or {}), "check": check, "severity": severity, "dataset": dataset}
    return expectation


def _own(number: int, own: Own, columns: Sequence[str]) -> Any:
    """Make an expectation that params.yaml names as Great Expectations' documentation does, in snake_case or CamelCase."""
    where = f"params.yaml: validate.expectations.{number}"
    known = {name: getattr(gx.expectations, name) for name in dir(gx.expectations) if name.startswith("Expect")}
    known.pop("Expectation", None)
    by_name = {re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower(): cls for name, cls in known.items()}
    cls = known.get(own.expectation) or by_name.get(own.expectation)
    if cls is None:
        snake = re.sub(r"(?<!^)(?=[A-Z])", "_", own.expectation).lower().replace("__", "_")
        near = difflib.get_close_matches(snake, by_name, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "see https://greatexpectations.io/expectations"
        raise DeepcvError(f"{where}.expectation: Great Expectations has no {own.expectation!r}; {hint}")
    if own.severity == "quarantine" and not issubclass(cls, _OF_IMAGES):
        raise DeepcvError(
            f"{where}.severity: must be fail or warn, got quarantine: {own.expectation} is about all images together, so that none "
            "can be left out; expect_column_values_… judges each"
        )
    named = [own.kwargs.get(key) for key in ("column", "column_A", "column_B")]
    for column in [*named, *(own.kwargs.get("column_list") or ())] if issubclass(cls, _OF_COLUMNS) else ():
        if column is not None and column not in columns:
            near = difflib.get_close_matches(str(column), columns, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(columns)}"
            raise DeepcvError(f"{where}.kwargs: the manifest has no column {column!r}; {hint}")
    try:
        return cls(**own.kwargs)
    except (TypeError, ValueError) as error:
        raise DeepcvError(f"{where}.kwargs: {own.expectation} does not take {dict(own.kwargs)}: {error}") from error


def _run(name: str, table: pd.DataFrame, expectations: list[Any], *, complete: bool = False) -> tuple[list[Any], str]:
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    batch = context.data_sources.add_pandas(name).add_dataframe_asset(name).add_batch_definition_whole_dataframe(name)
    suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=expectations))
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=batch, suite=suite))
    # Positions of all images that fail are slow to collect, and asked for only where they are quarantined.
    format_ = {"result_format": "COMPLETE" if complete else "SUMMARY"}
    outcome = definition.run(batch_parameters={"dataframe": table}, result_format=format_)
    for clock in ("run_id", "validation_time", "validation_id", "batch_markers"):  # the page depends on the data alone
        outcome.meta.pop(clock, None)
    for result in outcome.results:
        if isinstance(observed := result.result.get("observed_value"), np.generic):
            result.result["observed_value"] = observed.item()  # else the page says that it cannot show it
    page = DefaultJinjaPageView().render(ValidationResultsPageRenderer().render(outcome))
    return list(outcome.results), str(page)


def _explain(result: Any, words: Mapping[str, str]) -> str:
    config = result.expectation_config
    word = words.get(config.kwargs.get("column"), "")
    if config.meta["check"] == "readable":
        return word
    return _compared(result) + (f" ({word})" if word else "")


def _compared(result: Any) -> str:
    config = result.expectation_config
    bounds = {
        key: config.kwargs[key] for key in ("min_value", "max_value", "value_set") if config.kwargs.get(key) is not None
    }
    if result.exception_info.get("raised_exception"):
        return f"{config.type} on {config.kwargs.get('column')}: {result.exception_info.get('exception_message')}"
    found = result.result.get("partial_unexpected_list", [])[:5]
    number, total = result.result.get("unexpected_count"), result.result.get("element_count")
    if config.meta["dataset"]:
        words = {"min_value": "at least", "max_value": "at most"}
        expected = " and ".join(f"{words[key]} {bounds[key]:g}" for key in words if key in bounds)
        return f"{config.kwargs.get('column')} is {result.result['observed_value']:.6g}, expected {expected}"
    limits = ", ".join(f"{key} {value}" for key, value in bounds.items())
    if number is None:  # about a column as a whole
        return f"{config.kwargs.get('column')}: {config.type}({limits}) fails: {result.result.get('observed_value')}"
    return f"{config.kwargs.get('column')}: {config.type}({limits}) fails for {number} of {total}, for example {found}"


def _page(*pages: str) -> str:
    """Join Data Docs pages into one that needs no network and is the same, byte for byte, for the same data."""
    joined = "\n<hr>\n".join(pages)
    local = _REMOTE_STYLE.sub("none", _REMOTE.sub("", joined))
    seen: dict[str, str] = {}
    local = _RANDOM_ID.sub(lambda match: seen.setdefault(match.group(), f"id{len(seen)}"), local)
    return local.replace("</head>", _STYLE, 1)
