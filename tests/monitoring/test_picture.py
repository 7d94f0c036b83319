import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from deepcv.data.drift import Side, compare
from deepcv.monitoring import picture

# Centre and spread of what makes long labels.
STATISTICS = {
    "sharpness": (0.0123, 0.0034), "of a blurred set": (1.2e-5, 3e-6), "bytes": (1.2e6, 3e5), "red_minus_blue": (-1.2e-4, 5e-5),
    "noise": (0.0042, 0.0001), "brightness": (0.5, 0.1),
}  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_the_labels_of_an_axis_do_not_run_into_each_other(seed: int) -> None:
    random = np.random.default_rng(seed)
    sides = [Side({name: random.normal(*like, 400) for name, like in STATISTICS.items()}) for _ in range(2)]
    figure = picture.figure_of("drift", compare(*sides, alpha=0.01, seed=0), *sides)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for axes in figure.axes[: len(STATISTICS)]:
        shown = [
            label
            for label in axes.get_xticklabels()
            if axes.get_xlim()[0] <= label.get_position()[0] <= axes.get_xlim()[1]
        ]
        assert len(shown) >= 2
        boxes = [label.get_window_extent(canvas.get_renderer()) for label in shown]
        for left, right in itertools.pairwise(boxes):
            assert right.x0 - left.x1 >= 4, (axes.get_title("left"), [label.get_text() for label in shown])  # pixels
