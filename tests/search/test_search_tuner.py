"""The tuner and NNI's median stopping as plain objects, in the orders in which NNI's two threads may call them."""

import pytest
from nni.algorithms.hpo.medianstop_assessor import MedianstopAssessor
from nni.algorithms.hpo.tpe_tuner import TpeTuner
from nni.assessor import AssessResult

from deepcv.search.nni import TolerantTpe

SPACE = {"x": {"_type": "uniform", "_value": [0.0, 1.0]}, "y": {"_type": "loguniform", "_value": [1e-3, 1.0]}}


def started(seed: int = 0, tuner_class: type = TolerantTpe) -> TolerantTpe:
    tuner = tuner_class(seed=seed) if tuner_class is TolerantTpe else tuner_class("maximize", seed)
    tuner.update_search_space(SPACE)
    return tuner


def test_a_late_final_value_kills_nnis_own_tuner_and_not_ours() -> None:
    for tuner_class in (TpeTuner, TolerantTpe):
        tuner = started(tuner_class=tuner_class)
        parameters = tuner.generate_parameters(0)
        tuner.trial_end(0, False)
        if tuner_class is TpeTuner:
            with pytest.raises(KeyError):
                tuner.receive_trial_result(0, parameters, 0.5)
        else:
            tuner.receive_trial_result(0, parameters, 0.5)
            assert not any(tuner._history.values())


def test_a_success_whose_end_comes_before_its_value_is_learnt_once() -> None:
    tuner = started()
    parameters = tuner.generate_parameters(0)
    tuner.trial_end(0, True)
    for _ in range(2):
        tuner.receive_trial_result(0, parameters, 0.5)
    assert [record.loss for record in tuner._history[("x",)]] == [-0.5]


def test_a_stopped_trial_counts_as_the_worst() -> None:
    tuner = started()
    for number, value in enumerate((0.9, 0.4)):
        tuner.receive_trial_result(number, tuner.generate_parameters(number), value)
        tuner.trial_end(number, True)
    tuner.generate_parameters(2)
    tuner.trial_end(2, False)
    assert [record.loss for record in tuner._history[("x",)]] == [-0.9, -0.4, -0.4]
    assert not tuner._running_params


def test_the_seed_decides_the_trials() -> None:
    def drawn(seed: int) -> list:
        tuner = started(seed)
        samples = []
        for number in range(12):
            samples.append(tuner.generate_parameters(number))
            tuner.receive_trial_result(number, samples[-1], -((samples[-1]["x"] - 0.3) ** 2))
        return samples

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_the_search_beats_chance_on_a_bowl() -> None:
    """Over 20 seeds and 20 trials each, the mean best is nearer to the optimum than with random trials only."""

    def best(tuner: TpeTuner) -> float:
        tuner.update_search_space(SPACE)
        values = []
        for number in range(20):
            sample = tuner.generate_parameters(number)
            values.append(-((sample["x"] - 0.3) ** 2) - (sample["y"] - 0.5) ** 2)
            tuner.receive_trial_result(number, sample, values[-1])
        return max(values)

    ours = [best(TolerantTpe(seed)) for seed in range(20)]
    chance = [best(TpeTuner("maximize", seed, {"n_startup_jobs": 10**6})) for seed in range(20)]
    assert sum(ours) / 20 > sum(chance) / 20


def test_median_stopping_stops_what_is_below_the_median_and_nothing_else() -> None:
    assessor = MedianstopAssessor(optimize_mode="maximize", start_step=2)
    for trial, height in (("a", 0.5), ("b", 0.7), ("c", 0.9)):
        history = [height * step / 4 for step in range(1, 5)]
        for step in range(1, 5):
            assert assessor.assess_trial(trial, history[:step]) is AssessResult.Good
        assessor.trial_end(trial, True)
    assert assessor.assess_trial("low", [0.01]) is AssessResult.Good  # within its grace
    assert assessor.assess_trial("low", [0.01, 0.02]) is AssessResult.Bad
    assert assessor.assess_trial("high", [0.3, 0.6]) is AssessResult.Good
