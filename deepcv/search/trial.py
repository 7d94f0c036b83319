"""`python -m deepcv.search.trial`: one trial of a search, as NNI starts it."""

import signal
import sys

from deepcv.errors import DeepcvError
from deepcv.lifetime import die_with_parent, end_at_once


def main() -> None:
    """Run one trial; a DeepcvError becomes one message and exit status 1."""
    end_at_once()
    die_with_parent(signal.SIGTERM)
    # Only now: these imports take seconds, in which the trial may already be told to end.
    from deepcv.search.objective import run_trial

    try:
        run_trial()
    except DeepcvError as error:
        sys.exit(f"trial: {error}")


if __name__ == "__main__":
    main()
