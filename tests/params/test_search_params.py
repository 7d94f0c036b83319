import pytest

from deepcv.params.search import SearchParams


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
