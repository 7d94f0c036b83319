"""The laws of a search space: what the real tuner draws is in its range and valid for its key."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcv.params.search import SearchParams
from deepcv.params.train import TrainParams
from deepcv.search.nni import TolerantTpe
from deepcv.search.space import to_nni, to_values

RATE = st.floats(1e-6, 1.0)
SHARE = st.floats(0.0, 0.9)
COUNT = st.integers(1, 4000)


def interval(numbers: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(numbers, min_size=2, max_size=2, unique=True).map(sorted)


ENTRIES = {
    "train.lr": st.one_of(interval(RATE).map(lambda ends: {"loguniform": ends})),
    "train.label_smoothing": interval(SHARE).map(lambda ends: {"uniform": ends}),
    "train.momentum": interval(SHARE)
    .filter(lambda ends: ends[1] - ends[0] > 0.05)
    .map(lambda ends: {"quniform": [*ends, 0.05]}),
    "train.batch_size": st.one_of(
        interval(COUNT).map(lambda ends: {"randint": ends}),
        interval(COUNT).map(lambda ends: {"quniform": [ends[0], ends[1] + 16, 16]}),
    ),
    "train.optimizer": st.just({"choice": ["adamw", "sgd"]}),
    "train.flip": st.just({"choice": [True, False]}),
    "train.weight_decay": st.lists(st.floats(0, 10), min_size=1, max_size=4, unique=True).map(
        lambda values: {"choice": values}
    ),
    "train.network_parameters.width": st.just({"quniform": [8, 64, 8]}),
    "train.network_parameters.activation": st.just({"choice": ["relu", "gelu"]}),
    "train.network_parameters.scale": st.just({"choice": [1.0, 2.0, 2**60 + 1]}),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NNI, for ranges a few ulps wide
@given(space=st.fixed_dictionaries({}, optional=ENTRIES), seed=st.integers(0, 2**31 - 1))
@settings(deadline=None, max_examples=60)
def test_every_sample_is_in_its_range_and_valid_for_its_key(space: dict, seed: int) -> None:
    params = SearchParams.model_validate({"space": space, "seed": seed})
    tuner = TolerantTpe(seed=seed)
    # JavaScript stands between: it writes 1.0 as 1.
    through_javascript = json.loads(json.dumps(to_nni(params)).replace(".0,", ",").replace(".0]", "]"))
    tuner.update_search_space(through_javascript)
    for number in range(8 if space else 0):  # past the five random trials, into TPE proper
        try:
            sample = tuner.generate_parameters(number)
        except Exception as error:
            assert type(error).__name__ == "NoMoreTrialError"  # noqa: PT017 - a finite space may be exhausted
            break
        values = to_values(params, json.loads(json.dumps(sample)))
        assert values.keys() == space.keys()
        for key, value in values.items():
            ((kind, given_values),) = space[key].items()
            if kind == "choice":
                assert any(value == each and type(value) is type(each) for each in given_values)
            else:
                low, high = given_values[:2]
                assert low <= value <= high * (1 + 1e-12)
                assert kind != "randint" or value < high
        network = {key.split(".")[2]: value for key, value in values.items() if "network_parameters" in key}
        section = {key.removeprefix("train."): value for key, value in values.items() if "network_p" not in key}
        read = TrainParams.model_validate({"network": "n.yaml", "network_parameters": network, **section})
        assert {key: getattr(read, key) for key in section} == section
        tuner.receive_trial_result(number, sample, math.sin(number + seed))
        tuner.trial_end(number, True)


def test_whole_number_steps_come_back_as_int() -> None:
    params = SearchParams.model_validate({"space": {"train.batch_size": {"quniform": [16, 64, 16]}}})
    assert [type(value) for value in to_values(params, {"train.batch_size": 32.0}).values()] == [int]
