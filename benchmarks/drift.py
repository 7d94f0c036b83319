"""`deepcv data drift` on halves of one dataset, as they are (false alarms) and with one half changed (detection).

    python -m benchmarks.drift --path cifar10-jpeg.tar.gz [--model URI|FILE.onnx|none] [--quick]

The test split is measured once; each trial splits it at random and draws `--sample` images of each half. Changes are made to the
pixels (or, for the JPEG quality, the file) of images of the second half before they are measured.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.result import cpu_s, emit
from deepcv.data.drift import Comparison, Side, compare
from deepcv.data.measures import measure
from deepcv.data.samples import Sample
from deepcv.data.sources import open_source
from deepcv.images import UInt8Array, decode, fit
from deepcv.monitoring.look import statistics_of
from deepcv.monitoring.model import find
from deepcv.serving.features import FeatureExtractor

_ALPHA = 0.01


def _recompressed(image: UInt8Array) -> UInt8Array:
    _, encoded = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 30])
    return decode(encoded.tobytes(), 3)


CHANGES: dict[str, Callable[[UInt8Array], UInt8Array]] = {
    "brightness +10 %": lambda image: np.clip(image * 1.1, 0, 255).round().astype(np.uint8),
    "JPEG quality 30": _recompressed,
    "blur, sigma 1": lambda image: cv2.GaussianBlur(image, (0, 0), 1.0),
    "BGR for RGB": lambda image: np.ascontiguousarray(image[:, :, ::-1]),
}


class Measured:
    """Images of one kind, measured: row i of everything is image i."""

    def __init__(self, images: list[UInt8Array], labels: list[str], extractor: FeatureExtractor | None) -> None:
        rows = [statistics_of(image) for image in images]
        self.statistics = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        self.labels = np.array(labels)
        self.features = None
        if extractor:
            prepared = [fit(image, extractor.recipe) for image in images]
            parts = [extractor.features(np.stack(prepared[i : i + 256])) for i in range(0, len(prepared), 256)]
            self.features = np.concatenate(parts)

    def side(self, chosen: NDArray[np.int64]) -> Side:
        """The images at these positions."""
        return Side(
            {name: values[chosen] for name, values in self.statistics.items()},
            Counter(self.labels[chosen].tolist()),
            None if self.features is None else self.features[chosen],
        )


def halves(count: int, sample: int, trial: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of `sample` images of each of two random halves."""
    order = np.random.default_rng(trial).permutation(count)
    return order[:sample], order[count // 2 : count // 2 + sample]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, required=True, help="a folder or tar with a test split")
    parser.add_argument("--model", default="none", help="a registered model's URI, an exported .onnx file, or none")
    parser.add_argument("--samples", type=int, nargs="+", default=[500, 2000], help="images of each half")
    parser.add_argument("--halves", type=int, default=100, help="random halves for false alarms")
    parser.add_argument("--trials", type=int, default=10, help="random halves per change")
    parser.add_argument("--quick", action="store_true", help="1,000 images, 500 of each half, 20 halves, 3 trials")
    options = parser.parse_args()
    extractor = None
    if options.model.endswith(".onnx"):
        extractor = FeatureExtractor(Path(options.model))
    elif options.model != "none":
        extractor, _ = find(options.model, Path("params.yaml"))
    samples, count, trials = options.samples, options.halves, options.trials
    found = [s for s in open_source(options.path, Path()).samples() if s.split == "test"]
    if options.quick:
        found, samples, count, trials = _evenly(found, 1000), [500], 20, 3
    images, labels = [decode(sample.encoded, 3) for sample in found], [sample.label for sample in found]
    plain = Measured(images, labels, extractor)

    def run(changed: Measured, sample: int, trial: int, dropped: str = "") -> Comparison:
        first, second = halves(len(images), min(sample, len(images) // 2), trial)
        if dropped:
            second = second[changed.labels[second] != dropped]
        return compare(plain.side(first), changed.side(second), alpha=_ALPHA, seed=trial)

    start = cpu_s()
    alarms = {sample: [run(plain, sample, trial) for trial in range(count)] for sample in samples}
    per_comparison_s = (cpu_s() - start) / (count * len(samples))
    significant = {s: sum(any(f.p_holm < _ALPHA for f in c.findings) for c in cs) / count for s, cs in alarms.items()}
    alarmed = {s: sum(bool(c.drifted) for c in cs) / count for s, cs in alarms.items()}
    largest = {
        name: round(max(f.effect for c in alarms[samples[-1]] for f in c.findings if f.measure == name), 4)
        for name in ("KS", "V", "MMD")
        if any(f.measure == name for f in alarms[samples[-1]][0].findings)
    }

    detected: dict[str, dict[str, object]] = {}
    for name, change in [*CHANGES.items(), ("one class of ten missing", None)]:
        changed = Measured([change(image) for image in images], labels, extractor) if change else plain
        for sample in samples:
            runs = [run(changed, sample, trial, "" if change else min(labels)) for trial in range(trials)]
            told = {
                finding.name: {"rate": _rate(runs, finding.name), "effect": _median_effect(runs, finding.name)}
                for finding in runs[0].findings
                if _rate(runs, finding.name) >= 0.5
            }
            rate = sum(bool(outcome.drifted) for outcome in runs) / trials
            detected[f"{name}, n = {sample}"] = {"rate": rate, "told": told}
    least = min(float(str(found["rate"])) for name, found in detected.items() if name.endswith(f"n = {samples[-1]}"))
    # Two standard errors above alpha: what so few trials cannot tell from alpha.
    allowed = _ALPHA + 2 * (_ALPHA * (1 - _ALPHA) / count) ** 0.5
    emit(
        "drift", value=max(alarmed.values()), baseline=_ALPHA,
        target=f"false alarms <= alpha; significant at all in <= {allowed:.3f} of halves; "
        f"every change found in >= 0.95 of trials at n = {samples[-1]}",
        holds=max(alarmed.values()) <= _ALPHA and max(significant.values()) <= allowed and least >= 0.95,
        n=count, images=len(images), samples=samples, trials=trials, model=bool(extractor), significant=significant,
        false_alarms=alarmed, largest_effect_of_halves=largest, detected=detected,
        cpu_s_per_comparison=round(per_comparison_s, 3), measure_us=round(measure_us(images[:1000]), 1),
    )  # fmt: skip


def measure_us(images: list[UInt8Array]) -> float:
    """Microseconds that `measure` takes for one of these images, the best of five rounds."""
    rounds = []
    for _ in range(5):
        start = time.perf_counter()
        for image in images:
            measure(image)
        rounds.append(time.perf_counter() - start)
    return min(rounds) / len(images) * 1e6


def _evenly(samples: list[Sample], count: int) -> list[Sample]:
    return [samples[position * len(samples) // count] for position in range(min(count, len(samples)))]


def _rate(outcomes: list[Comparison], name: str) -> float:
    return sum(any(finding.name == name for finding in outcome.drifted) for outcome in outcomes) / len(outcomes)


def _median_effect(outcomes: list[Comparison], name: str) -> float:
    return round(median(f.effect for outcome in outcomes for f in outcome.findings if f.name == name), 3)


if __name__ == "__main__":
    main()
