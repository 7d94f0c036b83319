"""Laws of reading and writing params, checked on generated values."""

import io
import string
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from params_text import TEXT
from pydantic import ValidationError
from ruamel.yaml import YAML

from deepcv.params.augmentation import MAGNITUDES, AugmentationParams
from deepcv.params.base import Group, ParamsError, Section, closest, load_section
from deepcv.params.document import parse
from deepcv.params.edit import set_values, with_values
from deepcv.params.whole import SECTIONS, loads

laws = settings(deadline=None)  # the machine may be busy

REFUSED = ("Cc", "Cs", "Zl", "Zp")  # categories of characters that a text must not hold, and the byte order mark
ONE_LINE = st.characters(codec="utf-8", exclude_categories=REFUSED, exclude_characters="\ufeff")
NUMBERS = {"gt": "min_value", "ge": "min_value", "lt": "max_value", "le": "max_value"}

# Fields whose valid values their annotation does not tell.
OTHERS: dict[str, st.SearchStrategy[Any]] = {
    "target": st.sampled_from(["label", "boxes", "tags.of it", "numbers", "numbers.age"]),
    "further_targets": st.sampled_from([[], ["tags.weather"], ["numbers.how far", "tags.größe/2"]]),
    "space": st.just({"train.lr": {"uniform": [0.1, 0.2]}}),
    "group_by": st.sampled_from(["", "(p[0-9]+)", r"^(?:a|b)/(\w+) '#", '"(.)']),
    "folds": st.sampled_from([0, 2, 5, 1000]),
    "fold": st.integers(0, 4),
    "reference": st.just("data/references/digits.parquet"),
    "modes": st.lists(st.sampled_from(["grey8", "colour8+alpha", "grey16+dim", "palette", "cmyk8"]), unique=True),
    "optimizer": st.sampled_from(["adamw", "sgd", "muon", "torch/NAdam", "timm/lamb"]),
    "schedules": st.fixed_dictionaries(
        {},
        optional={
            "lr": st.just({"kind": "one_cycle", "phases": 3, "warmup": 0.2}),
            "weight_decay": st.just({"kind": "piecewise", "points": [[0.0, 0.1], [0.5, 0.3]], "shape": "step"}),
            "augmentation.randaugment.strength": st.just({"kind": "linear", "start": 0.0, "end": 0.5}),
            "label_smoothing": st.just({"kind": "plateau", "patience": 2}),
        },
    ),
    "losses": st.sampled_from(
        [
            [],
            [
                {"loss": "focal", "gamma": 1.5},
                {"loss": "supcon", "output": "embedding", "weight": 0.5, "temperature": 0.2},
            ],
        ]
    ),
    "views": st.just({"count": 1, "first": "clean"}),
    "severity": st.just({"blurred": "quarantine"}),
    "expectations": st.just(
        [{"expectation": "expect_column_to_exist", "kwargs": {"column": "id"}, "severity": "warn"}]
    ),
}


def values_of(annotation: Any, marks: list[Any]) -> st.SearchStrategy[Any]:
    """Valid values of a field, from its annotation and its limits."""
    if annotation is AugmentationParams:
        return augmentations()
    if isinstance(annotation, type) and issubclass(annotation, Group):
        fields = annotation.model_fields.items()
        return st.fixed_dictionaries({name: values_of(field.annotation, field.metadata) for name, field in fields})
    args = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return values_of(args[0], [mark for info in args[1:] for mark in info.metadata])
    if get_origin(annotation) is Literal:
        return st.sampled_from(args)
    if get_origin(annotation) is dict:
        return st.dictionaries(
            st.text(string.ascii_letters, min_size=1, max_size=5), values_of(args[1], []), max_size=3
        )
    if get_origin(annotation) is list:
        least = max((getattr(mark, "min_length", 0) for mark in marks), default=0)
        return st.lists(values_of(args[0], []), min_size=least, max_size=3)
    if get_origin(annotation) is not None:
        return st.one_of(*(values_of(part, marks) for part in args))
    limits = {word: getattr(mark, sign) for mark in marks for sign, word in NUMBERS.items() if hasattr(mark, sign)}
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        return st.integers(**limits)
    if annotation is float:
        open_ends = {f"exclude_{NUMBERS[sign][:3]}": True for m in marks for sign in ("gt", "lt") if hasattr(m, sign)}
        return st.floats(**limits, **open_ends, allow_nan=False, allow_infinity=False)
    if any(getattr(mark, "pattern", None) for mark in marks):
        return st.from_regex(r"\A[a-z0-9][a-z0-9._-]{0,20}\Z")
    return st.text(ONE_LINE, min_size=1, max_size=20)


@st.composite
def operations(draw: st.DrawFn) -> dict[str, Any]:
    name = draw(st.sampled_from(sorted(MAGNITUDES)))
    limits = MAGNITUDES[name]
    ends = st.floats(*limits[:2]).filter(bool) if limits else st.nothing()
    magnitude = sorted(draw(st.lists(ends, min_size=2, max_size=2))) if limits else []
    return {"name": name, "magnitude": magnitude, "probability": draw(st.floats(0, 1))}


def pairs(least: int, most: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(least, most), min_size=2, max_size=2).map(sorted)


@st.composite
def augmentations(draw: st.DrawFn) -> dict[str, Any]:
    own = draw(st.lists(operations(), max_size=3))

    def group(cls: type[Group], **known: st.SearchStrategy[Any]) -> dict[str, Any]:
        return {
            name: draw(known[name] if name in known else values_of(field.annotation, field.metadata))
            for name, field in cls.model_fields.items()
        }

    kinds: dict[str, Any] = {name: field.annotation for name, field in AugmentationParams.model_fields.items()}
    return group(
        AugmentationParams,
        operations=st.just(own),
        depth=st.just("all") | pairs(0, len(own)),
        chains=st.integers(0, 8 if own else 0),
        mixup=st.just(group(kinds["mixup"], probability=st.floats(0, 0.5))),
        cutmix=st.just(group(kinds["cutmix"], probability=st.floats(0, 0.5))),
        augmix=st.just(group(kinds["augmix"], depth=pairs(1, 6))),
        randaugment=st.just(group(kinds["randaugment"])),
    )


def sections(cls: type[Section]) -> st.SearchStrategy[Section]:
    fields = {
        name: OTHERS[name] if name in OTHERS else values_of(field.annotation, field.metadata)
        for name, field in cls.model_fields.items()
    }

    def build(values: dict[str, Any]) -> Section:
        try:
            return cls(**values)
        except ValidationError:  # values that do not fit together
            assume(False)
            raise

    return st.fixed_dictionaries(fields).map(build)


NOT_PLAIN = {"space", "severity", "expectations", "schedules", "losses"}  # `deepcv`'s edits set one plain value
FIELDS = [(cls, name) for cls in SECTIONS.values() for name in cls.model_fields if name not in NOT_PLAIN]


@pytest.mark.parametrize("cls", SECTIONS.values(), ids=SECTIONS)
@laws
@given(data=st.data())
def test_a_section_dumps_and_loads_to_itself(cls: type[Section], tmp_path_factory: Any, data: st.DataObject) -> None:
    section = data.draw(sections(cls))
    out = io.StringIO()
    YAML().dump({cls.section: section.model_dump()}, out)
    path = tmp_path_factory.getbasetemp() / f"{cls.section}.yaml"
    path.write_text(out.getvalue(), encoding="utf-8", newline="")
    assert load_section(cls, path) == section


@laws
@given(data=st.data())
def test_a_set_value_is_read_back_and_no_other_line_changes(data: st.DataObject) -> None:
    cls, name = data.draw(st.sampled_from(FIELDS))
    field = cls.model_fields[name]
    value = data.draw(OTHERS[name] if name in OTHERS else values_of(field.annotation, field.metadata))
    text = data.draw(st.sampled_from([TEXT, TEXT.replace("\n", "\r\n"), TEXT.rstrip("\n")]))
    try:
        edited = with_values(text, {f"{cls.section}.{name}": value})
    except ParamsError as error:
        misfits = (
            "must be < 1",
            "min_side",
            "must be < folds",
            "needs channels: 3",
            "is no metric of",
            "set archive: true",
            "is for muon",
            "would make false colours",
        )  # two keys that do not fit
        assert any(misfit in str(error) for misfit in misfits)  # noqa: PT017
        return
    assert getattr(loads(edited), cls.section).model_dump()[name] == value
    before, after = text.splitlines(keepends=True), edited.splitlines(keepends=True)
    root = parse(text, "")
    if name in root.content[cls.section].content:
        changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True), 1) if a != b]
        assert changed in ([], [root.content[cls.section].content[name].line])
        assert "# line 1" in edited
        assert " # kept" in edited
    elif cls.section == "evaluate":  # in braces on one line
        assert [line for line in before if not line.startswith("evaluate")] == [
            line for line in after if not line.startswith("evaluate")
        ]
    else:
        old, new = text.splitlines(), edited.splitlines()
        added = [i for i, line in enumerate(new) if new[:i] + new[i + 1 :] == old and line.startswith(f"  {name}: ")]
        assert added
        ends = {line[len(line.rstrip("\r\n")) :] for line in after}
        assert ends <= {"\r\n" if "\r" in text else "\n", ""}


@laws
@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20))
def test_any_path_is_kept_or_refused_by_name(text: str) -> None:
    refused = any(unicodedata.category(character) in REFUSED or character == "\ufeff" for character in text)
    try:
        edited = with_values(TEXT, {"ingest.path": text})
    except ParamsError as error:
        assert refused  # either outcome is fine, for the right texts
        assert "ingest.path: a text must be one line without control characters" in str(error)  # noqa: PT017
        assert str(error).isprintable()  # noqa: PT017  # the message shows what cannot be seen
        return
    assert not refused
    assert loads(edited).ingest.path == text
    assert YAML(typ="safe", pure=True).load(edited)["ingest"]["path"] == text  # as DVC reads it


def one_edit(word: str) -> st.SearchStrategy[str]:
    letters, places = st.sampled_from(string.ascii_lowercase + "_"), st.integers(0, len(word) - 1)
    return st.one_of(
        st.builds(lambda i, c: word[:i] + c + word[i + 1 :], places, letters),
        st.builds(lambda i, c: word[:i] + c + word[i:], places, letters),
        st.builds(lambda i: word[:i] + word[i + 1 :], places),
        st.builds(lambda i: word[:i] + word[i : i + 2][::-1] + word[i + 2 :], places),
    ).filter(lambda other: other not in ("", word))


@laws
@given(data=st.data())
def test_a_misspelt_key_is_reported_with_its_true_name(data: st.DataObject) -> None:
    cls, name = data.draw(st.sampled_from([(cls, name) for cls in SECTIONS.values() for name in cls.model_fields]))
    wrong = data.draw(one_edit(name).filter(lambda word: word not in cls.model_fields))
    root = YAML(typ="safe").load(TEXT)
    root[cls.section][wrong] = root[cls.section].pop(name, 1)
    out = io.StringIO()
    YAML().dump(root, out)
    with pytest.raises(ParamsError) as caught:
        loads(out.getvalue())
    message = next(line for line in str(caught.value).splitlines() if "unknown key" in line)
    assert f"{cls.section}.{wrong}: unknown key; the closest is " in message
    # 'mix_side' is as near to min_side as to max_side: then both are named.
    assert f"'{name}'" in message.split("the closest is ")[1].split(",")[0]
    assert f"{cls.section}.{name}: missing" not in str(caught.value)


@laws
@given(st.sampled_from(sorted(SECTIONS)).flatmap(lambda name: st.tuples(st.just(name), one_edit(name))))
def test_a_misspelt_section_is_reported_with_its_true_name(case: tuple[str, str]) -> None:
    name, wrong = case
    with pytest.raises(ParamsError) as caught:
        loads(f"{wrong}: {{}}\n")
    assert f"params.yaml:1: {wrong}: unknown section; the closest is '{name}'" in str(caught.value).splitlines()


@laws
@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    for content in (text, TEXT.replace("digits", text, 1), TEXT.replace("0.01", text, 1)):
        try:
            loads(content)
        except ParamsError as error:
            assert str(error).startswith("params.yaml:")  # noqa: PT017  # either outcome is fine, another error is not


@laws
@given(st.lists(st.text(string.ascii_lowercase, min_size=1, max_size=8), unique=True), st.text(max_size=8))
def test_the_closest_keys_are_keys(keys: list[str], word: str) -> None:
    assert set(closest(word, keys)) <= set(keys)


@laws
@given(st.text(max_size=20).filter(lambda text: "\n" not in text))
def test_scalars_are_read_as_dvc_reads_them(text: str) -> None:
    yaml = YAML(typ="safe", pure=True)
    try:
        theirs = yaml.load(f"a: {text}\n")
    except Exception:
        return
    try:
        ours = parse(f"a: {text}\n", "").plain()
    except ParamsError:
        assert any(sign in text for sign in "!&*<?=[{\r\x85\u2028\u2029")  # refused on purpose
        return
    assert ours == theirs or text.strip().lower() == ".nan"


@pytest.mark.parametrize("scalar", ["1e-4", "1.0e-4", "0o17", "010", "0x1f", "1_000", "yes", "on", "~", "2020-01-01"])
def test_special_scalars_are_read_as_dvc_reads_them(scalar: str) -> None:
    assert parse(f"a: {scalar}", "").plain() == YAML(typ="safe").load(f"a: {scalar}")


def test_a_refused_edit_leaves_the_file_alone(write: Callable[[str], Path]) -> None:
    path = write(TEXT)
    with pytest.raises(ParamsError, match=r"as edited:22: train\.lr: must be a number > 0"):
        set_values(path, {"train.epochs": 3, "train.lr": -1.0})
    assert path.read_text() == TEXT
    assert [item.name for item in path.parent.iterdir()] == ["params.yaml"]
