"""The whole of params.yaml."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepcv.params.base import FILE, ParamsError, Problem, Section, closest, section_problems
from deepcv.params.document import parse, read, report
from deepcv.params.evaluate import EvaluateParams
from deepcv.params.export import ExportParams
from deepcv.params.ingest import IngestParams
from deepcv.params.preprocess import PreprocessParams
from deepcv.params.register import METRICS, RegisterParams
from deepcv.params.search import SearchParams
from deepcv.params.train import TrainParams
from deepcv.params.validate import ValidateParams
from deepcv.task import Task


@dataclass(frozen=True)
class Params:
    """Every section of params.yaml."""

    ingest: IngestParams
    validate: ValidateParams
    preprocess: PreprocessParams
    train: TrainParams
    evaluate: EvaluateParams
    export: ExportParams
    register: RegisterParams
    search: SearchParams


_CLASSES = (
    IngestParams,
    ValidateParams,
    PreprocessParams,
    TrainParams,
    EvaluateParams,
    ExportParams,
    RegisterParams,
    SearchParams,
)
SECTIONS: dict[str, type[Section]] = {cls.section: cls for cls in _CLASSES}


def load(path: Path = FILE) -> Params:
    """Read and validate a whole params file; ParamsError lists every problem in it."""
    return loads(read(path), str(path))


def loads(text: str, origin: str = str(FILE)) -> Params:
    """Validate the text of a params file; messages name `origin` as the file."""
    root = parse(text, origin)
    unknown = [name for name in root.content if name not in SECTIONS]
    problems: list[Problem] = [(root.content[name].line, name, _unknown_section(name)) for name in unknown]
    # A section that is merely misspelt is not reported as missing as well.
    meant = {near for name in unknown for near in closest(name, SECTIONS)}
    loaded: dict[str, Any] = {}
    for name, cls in SECTIONS.items():
        if name in root.content or name not in meant:
            loaded[name], found = section_problems(cls, root, SECTIONS)
            problems += found
    if not problems:
        params = Params(**loaded)
        if not (misfit := _misfit(params)):
            return params
        problems.append((root.content["register"].line if "register" in root.content else 1, "register.metric", misfit))
    raise ParamsError(report(problems, origin))


def _misfit(params: Params) -> str:
    """Say what does not fit where the metric is none of what the target is judged by."""
    metrics = METRICS[Task(params.preprocess.target).kind]
    if params.register.metric in metrics:
        return ""
    return f"{params.register.metric} is no metric of preprocess.target {params.preprocess.target}; expected {' or '.join(metrics)}"


def _unknown_section(name: str) -> str:
    homes = [f"{section}.{name}" for section, cls in SECTIONS.items() if name in cls.model_fields]
    if homes:
        return f"not a section; there is {' and '.join(homes)}: is the line indented too little?"
    near = closest(name, SECTIONS)
    hint = f"the closest is {' or '.join(repr(key) for key in near)}" if near else f"there are {', '.join(SECTIONS)}"
    return f"unknown section; {hint}"
