"""Values that a search or find-lr found, as they stand in params.yaml."""

from collections.abc import Mapping

from deepcv.params import whole
from deepcv.params.edit import with_values
from deepcv.training.config import TrainConfig
from deepcv.training.optimizers import agreeing_betas


def with_tuned(text: str, values: Mapping[str, object], origin: str) -> str:
    """Return the text with these values; the betas of `optimizer_options` then begin with a momentum that is one of them.

    Raises ParamsError as `with_values` does, and DeepcvError for an optimizer or an option that there is not.
    """
    text = with_values(text, values, origin)
    if "train.momentum" in values:
        betas = agreeing_betas(TrainConfig.of(whole.loads(text, origin).train.configuration()))
        if betas is not None:
            text = with_values(text, {"train.optimizer_options.betas": betas}, origin)
    return text
