import pytest
from params_text import TEXT

from deepcv.params.base import ParamsError
from deepcv.params.search import SearchParams
from deepcv.params.whole import loads


@pytest.mark.parametrize(
    ("entry", "drawn", "typed"),
    [
        ({"quniform": [16, 128, 16]}, 32.0, 32),
        ({"randint": [1, 9]}, 4.0, 4),
        ({"choice": [8, 16]}, 16, 16),
        ({"choice": ["auto", 1]}, "auto", "auto"),
    ],
)
def test_a_drawn_value_gets_the_type_of_its_range(entry: dict[str, list[int]], drawn: float, typed: object) -> None:
    search = SearchParams(space={"train.threads": entry})
    found = search.typed("train.threads", drawn)
    assert found == typed
    assert type(found) is type(typed)


def test_a_number_of_a_continuous_range_stays_a_float() -> None:
    search = SearchParams(space={"train.lr": {"uniform": [1, 2]}, "train.weight_decay": {"quniform": [0.0, 1.0, 0.5]}})
    assert type(search.typed("train.lr", 1.0)) is float
    assert type(search.typed("train.weight_decay", 1.0)) is float


def test_a_network_parameter_may_be_searched() -> None:
    space = {
        "train.network_parameters.width": {"choice": [8, 16]},
        "train.network_parameters.act": {"choice": ["relu"]},
        "train.network_choices.mix.0": {"choice": ["small", "wide, skip"]},
    }
    assert SearchParams(space=space).space == space


LOSSES = TEXT.replace("  lr: 0.01\n", "  lr: 0.01\n  losses: [{loss: supcon}, {loss: triplet, weight: 0.5}]\n")


def searched(key: str, entry: str) -> str:
    return LOSSES.replace("    train.epochs:", f"    {key}: {entry}\n    train.epochs:")


@pytest.mark.parametrize(
    ("key", "entry"),
    [
        ("train.losses.0.temperature", "{loguniform: [0.05, 0.5]}"),
        ("train.losses.1.weight", "{uniform: [0.0, 1.0]}"),
        ("train.losses.1.mining", "{choice: [hard, all]}"),
        ("train.optimizer_options.eps", "{loguniform: [1.0e-9, 1.0e-6]}"),
        ("train.lr_scales.net.blocks.*", "{choice: [0.1, 0.5]}"),
    ],
)
def test_entries_of_losses_and_mappings_may_be_searched(key: str, entry: str) -> None:
    assert key in loads(searched(key, entry)).search.space


@pytest.mark.parametrize(
    ("name", "replaced_by"),
    [("label_smoothing", "losses: [{loss: focal}]"), ("warmup", "schedules: {lr: {kind: cosine}}")],
)
def test_what_another_key_replaces_is_not_searched(name: str, replaced_by: str) -> None:
    text = TEXT.replace("    train.epochs:", f"    train.{name}: {{uniform: [0.1, 0.2]}}\n    train.epochs:")
    assert f"train.{name}" in loads(text).search.space
    with pytest.raises(ParamsError, match=rf"search\.space\.train\.{name}: changes nothing beside train\."):
        loads(text.replace("  lr: 0.01\n", f"  lr: 0.01\n  {replaced_by}\n"))


@pytest.mark.parametrize("name", ["archive", "checkpoint_minutes", "keep_best", "log_every"])
def test_what_changes_nothing_in_a_trial_is_not_searched(name: str) -> None:
    with pytest.raises(ParamsError, match=rf"search\.space\.train\.{name}: changes nothing in a trial"):
        loads(searched(f"train.{name}", "{choice: [1, 2]}"))


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("train.losses.2.weight", "train.losses has 2 entries; the first is losses.0"),
        ("train.losses.0.margin", "supcon has no margin; it has weight, temperature"),
    ],
)
def test_an_entry_that_losses_lack_is_told(key: str, words: str) -> None:
    with pytest.raises(ParamsError) as caught:
        loads(searched(key, "{uniform: [0.1, 0.5]}"))
    assert str(caught.value).endswith(f"params.yaml:35: search.space.{key}: {words}")
