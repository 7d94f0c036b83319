"""The tuner that NNI's dispatcher process runs: the only module that imports NNI."""

import signal
from threading import Lock
from typing import Any

from nni.algorithms.hpo.tpe_tuner import TpeTuner

from deepcv.lifetime import die_with_parent

# NNI's default of 20 makes a short search purely random. Over 120 seeds of a noisy three-parameter bowl, 5 came
# nearest to the optimum at 8, 16 and 30 trials (regret 0.056, 0.030, 0.006; with 20: 0.066, 0.042, 0.010).
_RANDOM_TRIALS = 5


class TolerantTpe(TpeTuner):
    """NNI's TPE, maximising, made fit to work beside an early-stopping assessor.

    NNI reports a trial's end and its final value from two threads, in either order, and may report a final value of a
    trial that it has stopped. Its own class raises KeyError then, which ends the dispatcher and hangs the experiment.
    """

    def __init__(self, seed: int, dispatched: bool = False) -> None:
        """Set up; `dispatched` says that this process is NNI's dispatcher, which must end when its manager does."""
        if dispatched:
            die_with_parent(signal.SIGKILL)
        super().__init__(optimize_mode="maximize", seed=seed, tpe_args={"n_startup_jobs": _RANDOM_TRIALS})
        self._lock = Lock()
        self._worst: float | None = None

    def generate_parameters(self, parameter_id: int, **kwargs: Any) -> dict[str, Any]:
        """Suggest the parameters of the next trial."""
        with self._lock:
            parameters: dict[str, Any] = super().generate_parameters(parameter_id, **kwargs)
            return parameters

    def receive_trial_result(self, parameter_id: int, parameters: Any, value: float, **kwargs: Any) -> None:
        """Learn from a final value; one of a trial that is not running any more is ignored."""
        with self._lock:
            if parameter_id in self._running_params:
                self._worst = value if self._worst is None else min(self._worst, value)
                super().receive_trial_result(parameter_id, parameters, value, **kwargs)

    def trial_end(self, parameter_id: int, success: bool, **kwargs: Any) -> None:
        """Count a stopped or failed trial as no better than the worst; a success waits for its final value."""
        with self._lock:
            if success:
                return
            if parameter_id in self._running_params and self._worst is not None:
                super().receive_trial_result(parameter_id, None, self._worst)
            super().trial_end(parameter_id, success, **kwargs)
