"""The whole of params.yaml."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepcv.params.base import FILE, ParamsError, Problem, Section, closest, section_problems
from deepcv.params.document import parse, read, report
from deepcv.params.evaluate import EvaluateParams
from deepcv.params.export import ExportParams
from deepcv.params.ingest import IngestParams
from deepcv.params.losses import MAIN, TASKS, WITHOUT_TARGET, LossParams
from deepcv.params.preprocess import PreprocessParams
from deepcv.params.register import METRICS, RegisterParams
from deepcv.params.search import SearchParams, misfits
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
        if not (misfits := _misfits(params)):
            return params
        for where, text in misfits.items():
            problems.append((root.find(where.split(".", 2)).line, where, text))
    raise ParamsError(report(problems, origin))


def _misfits(params: Params) -> dict[str, str]:
    """Say, by key, what does not fit the target."""
    target = params.preprocess.target
    kind = Task(target).kind
    found = {f"search.space.{key}": text for key, text in misfits(params.search.space, params.train)}
    if params.register.metric not in METRICS[kind]:
        found["register.metric"] = (
            f"{params.register.metric} is no metric of preprocess.target {target}; expected {' or '.join(METRICS[kind])}"
        )
    if params.train.balance and kind != "classification":
        found["train.balance"] = f"is for classes, and preprocess.target is {target}; expected 0"
    found |= {f"train.{key}": text for key, text in params.train.false_colours(params.preprocess.colour).items()}
    if problems := list(_of_losses(params.train.losses, target, params.preprocess.further_targets)):
        found["train.losses"] = "; ".join(problems)
    return found


def _of_losses(losses: Sequence[LossParams], target: str, further: Sequence[str]) -> Iterator[str]:
    """Say what the losses cannot learn of the main target and the further ones."""
    there = [MAIN, "images", *further]
    for name in dict.fromkeys(term.target for term in losses if term.target not in there):
        if name == target:
            yield f"{name} is preprocess.target, which a loss calls {MAIN}; expected target: {MAIN}"
            continue
        near = closest(name, there)
        hint = f"; the closest is {' or '.join(near)}" if near else ""
        yield f"there is no target {name}; there are {', '.join(there)} (preprocess.further_targets lists further ones){hint}"
    for term in losses:
        if term.loss in WITHOUT_TARGET and term.target in further:
            yield f"{term.loss} of {term.output} learns no target; leave out target: {term.target}"
    for name in [MAIN, *further]:
        kind = Task(target if name == MAIN else name).kind
        fitting = [loss for loss, kinds in TASKS.items() if kind in kinds]
        wrong: list[str] = [term.loss for term in losses if term.target == name and kind not in TASKS[term.loss]]
        if name != MAIN:  # what learns no target says `label`, the default
            fitting, wrong = ([loss for loss in found if loss not in WITHOUT_TARGET] for found in (fitting, wrong))
        if wrong:
            what = f"preprocess.target {target}" if name == MAIN else name
            yield f"{' and '.join(wrong)} cannot learn {what}; expected {', '.join(fitting)}"
    learned = [(term.output, term.target) for term in losses if term.loss not in WITHOUT_TARGET]
    for output in dict.fromkeys(output for output, _ in learned):
        targets = list(dict.fromkeys(name for of, name in learned if of == output))
        if output == "logits" and (others := [name for name in targets if name in further]):
            yield f"logits answers preprocess.target; expected another output for {' and '.join(others)}"
        elif len(targets) > 1:
            yield f"the output {output} learns {' and '.join(targets)}; expected one target: give each an output of its own"


def _unknown_section(name: str) -> str:
    homes = [f"{section}.{name}" for section, cls in SECTIONS.items() if name in cls.model_fields]
    if homes:
        return f"not a section; there is {' and '.join(homes)}: is the line indented too little?"
    near = closest(name, SECTIONS)
    hint = f"the closest is {' or '.join(repr(key) for key in near)}" if near else f"there are {', '.join(SECTIONS)}"
    return f"unknown section; {hint}"
