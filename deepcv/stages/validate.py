"""Stage `validate`: Great Expectations judges the manifest; a failed expectation stops the pipeline."""

import json
from pathlib import Path

from deepcv.data import manifest
from deepcv.data.expectations import Limits, judge
from deepcv.errors import DeepcvError
from deepcv.files import write_text
from deepcv.params.base import load_section
from deepcv.params.validate import ValidateParams
from deepcv.stages import entry

RAW = Path("data/raw")
DATA_DOCS = Path("data/validation/data_docs.html")
VERDICT = Path("data/validation/verdict.json")


def main() -> None:
    """Read data/raw, write the Data Docs page and, if all expectations hold, the verdict that `preprocess` waits for."""
    params = load_section(ValidateParams)
    rows, info = manifest.read(RAW)
    verdict = judge(rows, info.classes, Limits(**params.model_dump()))
    write_text(DATA_DOCS, verdict.html)
    if not verdict.success:
        raise DeepcvError(
            f"the data fails {len(verdict.failures)} expectations (section validate of params.yaml; report: {DATA_DOCS})\n  "
            + "\n  ".join(verdict.failures)
        )
    write_text(VERDICT, json.dumps({"success": True}) + "\n")
    print(f"{info.name}: {len(rows)} images hold to every expectation; report: {DATA_DOCS}")


if __name__ == "__main__":
    entry.run(main)
