"""Checks of the manifest by Great Expectations: a verdict for the pipeline and Data Docs for people."""

import re
from dataclasses import dataclass
from typing import Any

import great_expectations as gx
import pandas as pd
from great_expectations.render.renderer import ValidationResultsPageRenderer
from great_expectations.render.view import DefaultJinjaPageView

# Data Docs load their style and scripts from public networks: the page would be bare offline and would tell them who reads it.
_REMOTE = re.compile(
    r"<link[^>]*https?://[^>]*>|<script[^>]*https?://[^>]*>\s*</script>|<img[^>]*https?://[^>]*>", re.DOTALL
)
_REMOTE_STYLE = re.compile(r"url\(['\"]?https?://[^)]*\)")
_RANDOM_ID = re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}")
_STYLE = """<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; width: 100% }
td, th { border-bottom: 1px solid #ddd; padding: .35rem .6rem; text-align: left; vertical-align: top }
.badge { background: #eee; border-radius: 4px; padding: 0 .4rem }
.text-success { color: #15803d } .text-danger, .fa-times { color: #b91c1c }
.fa-check-circle::before { content: "✓" } .fa-times::before { content: "✗" }
.modal, nav, footer, .navbar, .cooltip::after { display: none }
</style></head>"""


@dataclass(frozen=True)
class Limits:
    """What a manifest must hold to."""

    min_images: int
    min_images_per_class: int
    max_class_ratio: float
    min_side: int
    max_side: int
    max_duplicate_share: float


@dataclass(frozen=True)
class Verdict:
    """`failures` says for each expectation that failed what was expected and found; `html` is the Data Docs page."""

    success: bool
    failures: tuple[str, ...]
    html: str


def judge(manifest: pd.DataFrame, classes: tuple[str, ...], limits: Limits) -> Verdict:
    """Hold the manifest and its per-class counts against the limits."""
    counts = manifest.groupby("label").size().reindex(list(classes), fill_value=0)
    shares = pd.DataFrame(
        {
            "images": [len(manifest)],
            "smallest_class": [int(counts.min())],
            "class_ratio": [float(counts.max() / max(1, counts.min()))],
            "duplicate_share": [float(manifest["sha256"].duplicated().mean())],
        }
    )
    between = gx.expectations.ExpectColumnValuesToBeBetween
    images_results, images_html = _run(
        "images",
        manifest,
        [
            gx.expectations.ExpectColumnValuesToNotBeNull(column="label"),
            gx.expectations.ExpectColumnValuesToBeInSet(column="label", value_set=list(classes)),
            gx.expectations.ExpectColumnValuesToBeInSet(column="split", value_set=["train", "val", "test"]),
            gx.expectations.ExpectColumnValuesToBeUnique(column="id"),
            between(column="width", min_value=limits.min_side, max_value=limits.max_side),
            between(column="height", min_value=limits.min_side, max_value=limits.max_side),
            gx.expectations.ExpectColumnValuesToBeInSet(column="channels", value_set=[1, 3]),
        ],
    )
    dataset_results, dataset_html = _run(
        "dataset",
        shares,
        [
            between(column="images", min_value=limits.min_images),
            between(column="smallest_class", min_value=limits.min_images_per_class),
            between(column="class_ratio", max_value=limits.max_class_ratio),
            between(column="duplicate_share", max_value=limits.max_duplicate_share),
        ],
    )
    smallest, largest = counts.idxmin(), counts.idxmax()
    which = {"smallest_class": f" ({smallest})", "class_ratio": f" ({largest} to {smallest})"}
    failures = tuple(
        _explain(result) + which.get(result.expectation_config.kwargs.get("column"), "")
        for result in [*images_results, *dataset_results]
        if not result.success
    )
    return Verdict(not failures, failures, _page(images_html, dataset_html))


def _run(name: str, table: pd.DataFrame, expectations: list[Any]) -> tuple[list[Any], str]:
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    batch = context.data_sources.add_pandas(name).add_dataframe_asset(name).add_batch_definition_whole_dataframe(name)
    suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=expectations))
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=batch, suite=suite))
    outcome = definition.run(batch_parameters={"dataframe": table})
    for clock in ("run_id", "validation_time", "validation_id", "batch_markers"):  # the page depends on the data alone
        outcome.meta.pop(clock, None)
    page = DefaultJinjaPageView().render(ValidationResultsPageRenderer().render(outcome))
    return list(outcome.results), str(page)


def _explain(result: Any) -> str:
    config = result.expectation_config
    bounds = {
        key: config.kwargs[key] for key in ("min_value", "max_value", "value_set") if config.kwargs.get(key) is not None
    }
    if result.exception_info.get("raised_exception"):
        return f"{config.type} on {config.kwargs.get('column')}: {result.exception_info.get('exception_message')}"
    found = result.result.get("partial_unexpected_list", [])[:5]
    number, total = result.result.get("unexpected_count"), result.result.get("element_count")
    limits = ", ".join(f"{key} {value}" for key, value in bounds.items())
    return f"{config.kwargs.get('column')}: {config.type}({limits}) fails for {number} of {total}, for example {found}"


def _page(*pages: str) -> str:
    """Join Data Docs pages into one that needs no network and is the same, byte for byte, for the same data."""
    joined = "\n<hr>\n".join(pages)
    local = _REMOTE_STYLE.sub("none", _REMOTE.sub("", joined))
    seen: dict[str, str] = {}
    local = _RANDOM_ID.sub(lambda match: seen.setdefault(match.group(), f"id{len(seen)}"), local)
    return local.replace("</head>", _STYLE, 1)
